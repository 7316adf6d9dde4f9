"""``transducer pull``: download a published model ahead of its use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse


@dataclass(frozen=True)
class Options:
    """Options of ``transducer pull``."""

    name: Annotated[str, Positional, arg(metavar="NAME")]
    """owner/name of a Hugging Face repository, with @revision for another than the newest; or asr-models/NAME of
    sherpa-onnx's releases."""
    form: Literal["any", "graphs", "checkpoint"] = "any"
    """graphs: ONNX, to transcribe. checkpoint: to train, to export, or for a GPU. any: graphs if there are any."""
    precision: Literal["fp32", "int8"] = "fp32"
    """Precision of the graphs."""


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Download a published model; print the folder that holds it."))
    return 0


def run(options: Options) -> None:
    """Download the files of the model that are not here yet."""
    from stateless_transducer.commands.shared.models import find_model

    forms = ("graphs", "checkpoint") if options.form == "any" else (options.form,)
    say(str(find_model(options.name, forms=forms, precision=options.precision)))
