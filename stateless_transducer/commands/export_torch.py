"""``transducer export torch``: one of our models in a format of torch's, or its weights as safetensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse

_ENDINGS = {
    ".safetensors": "weights, sizes, front end and tokens; input of all commands",
    ".pt2": "the encoder by torch.export",
    ".jit.pt": "TorchScript with the methods encode, predict, join",
}


@dataclass(frozen=True)
class Options:
    """Options of ``transducer export torch``."""

    model: Annotated[str, arg(aliases=("--checkpoint",), metavar="MODEL")]
    """Model file, training checkpoint, folder with a checkpoint and tokens.txt, or owner/name of a published model."""
    output: Path
    """File to write; its suffix sets the format: .safetensors (weights), .pt2 (torch.export), .jit.pt (TorchScript)."""

    def __post_init__(self) -> None:
        if self.ending is None:
            endings = ", ".join(f"{ending} ({content})" for ending, content in _ENDINGS.items())
            raise ValueError(f"`--output` must end in {endings}, but is {self.output}.")

    @property
    def ending(self) -> str | None:
        """Ending of the output's format; None if unknown."""
        return next((ending for ending in _ENDINGS if self.output.name.endswith(ending)), None)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Write a model as safetensors, torch.export program or TorchScript."))
    return 0


def run(options: Options) -> None:
    """Export the model."""
    from stateless_transducer.checkpoint import save_checkpoint
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.files import check_output
    from stateless_transducer.recognition.model import find_checkpoint, load_pretrained

    model = find_model(options.model, forms=("checkpoint",))
    check_output(options.output, model=find_checkpoint(model)[0])
    checkpoint = load_pretrained(model)
    if options.ending == ".safetensors":
        save_checkpoint(options.output, replace(checkpoint, training_state=None))
    else:
        from stateless_transducer.export.torch_writer import write_program, write_script

        write = write_program if options.ending == ".pt2" else write_script
        write(options.output, checkpoint)
    say(f"{options.output}: {_ENDINGS[options.ending or '']}")
