"""``transducer average``: the mean of several checkpoints as one model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stateless_transducer.commands.console import say
from stateless_transducer.commands.flags import parse


@dataclass(frozen=True)
class Options:
    """Options of ``transducer average``."""

    exp_dir: Path
    """Folder with the checkpoints."""
    output: Path
    """Model file to write."""
    epoch: int | None = None
    """Last checkpoint to take; None: the last there is."""
    avg: int | None = None
    """How many, ending with that one; None: ten, but no more than half the epochs."""


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Average checkpoints into one model, without training state."))
    return 0


def run(options: Options) -> None:
    """Average and write."""
    from stateless_transducer.checkpoint import average_epochs, save_checkpoint

    checkpoint = average_epochs(options.exp_dir, options.epoch, options.avg)
    save_checkpoint(options.output, checkpoint)
    say(f"{options.output}: the mean of {', '.join(checkpoint.provenance['averaged'])}")
