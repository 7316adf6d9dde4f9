"""``transducer import``: a checkpoint of icefall's as one of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse


@dataclass(frozen=True)
class Options:
    """Options of ``transducer import``."""

    model: Annotated[Path, arg(aliases=("--checkpoint",))]
    """icefall's pretrained.pt, epoch-N.pt or best-*.pt."""
    output: Path
    """Model file to write."""
    lang_dir: Path = Path("data/lang_char")
    """Folder with the model's tokens.txt, or that file."""


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Convert a checkpoint of icefall into a model file."))
    return 0


def run(options: Options) -> None:
    """Import the model."""
    from stateless_transducer.checkpoint import save_checkpoint
    from stateless_transducer.files import check_output
    from stateless_transducer.icefall import load_icefall
    from stateless_transducer.text.tokens import TokenTable

    check_output(options.output, model=options.model)
    checkpoint = load_icefall(options.model, TokenTable.read(options.lang_dir))
    save_checkpoint(options.output, checkpoint)
    num_parameters = sum(weight.numel() for weight in checkpoint.weights.values())
    say(f"{options.output}: {num_parameters:,} parameters, {checkpoint.model_config.summary}")
