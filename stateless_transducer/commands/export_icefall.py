"""``transducer export icefall``: one of our models as icefall's ``pretrained.pt``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse


@dataclass(frozen=True)
class Options:
    """Options of ``transducer export icefall``."""

    model: Annotated[str, arg(aliases=("--checkpoint",), metavar="MODEL")]
    """Model file, training checkpoint, folder with a checkpoint and tokens.txt, or owner/name of a published model."""
    output: Path
    """File to write, in the format of icefall's pretrained.pt."""


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Write the weights of a model as icefall's pretrained.pt."))
    return 0


def run(options: Options) -> None:
    """Export the model."""
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.files import check_output
    from stateless_transducer.icefall import save_icefall
    from stateless_transducer.recognition.model import find_checkpoint, load_pretrained

    model = find_model(options.model, forms=("checkpoint",))
    check_output(options.output, model=find_checkpoint(model)[0])
    checkpoint = load_pretrained(model)
    save_icefall(options.output, checkpoint)
    context_size = checkpoint.model_config.decoder.context_size
    say(f"{options.output}: {len(checkpoint.weights)} tensors; `--context-size` {context_size}")
