"""``transducer average``: the mean of several checkpoints as one model file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.training.averaging import Average


@dataclass(frozen=True)
class Options:
    """Options of ``transducer average``."""

    exp_dir: Path
    """Folder with the checkpoints."""
    output: Path
    """Model file to write."""
    average: Average = field(default_factory=Average)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Average checkpoints into one model, without training state."))
    return 0


def run(options: Options) -> None:
    """Average the checkpoints and write the model."""
    from stateless_transducer.checkpoint import is_training_checkpoint, save_checkpoint

    if is_training_checkpoint(options.output, options.exp_dir):
        raise ValueError(
            f"`--output` {options.output} has the name of a training checkpoint in `--exp-dir` "
            f"{options.exp_dir}. Name another file."
        )
    checkpoint = options.average.of(options.exp_dir)
    save_checkpoint(options.output, checkpoint)
    averaged = checkpoint.provenance["averaged"]
    say(f"{options.output}: the {'mean' if len(averaged) > 1 else 'weights'} of {', '.join(averaged)}")
