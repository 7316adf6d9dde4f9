"""``transducer models``: a list of published models that fit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.published_models import MODELS


@dataclass(frozen=True)
class Options:
    """Options of ``transducer models``."""

    output_format: Literal["txt", "json"] = "txt"
    """txt: a paragraph per model. json: one object per line with all facts."""


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "List published models; docs/models.md says how each was checked."))
    return 0


def run(options: Options) -> None:
    """Print the list."""
    if options.output_format == "json":
        for model in MODELS:
            say(json.dumps(asdict(model), ensure_ascii=False))
        return
    for model in MODELS:
        parameters = f"{model.parameters} M parameters" if model.parameters else ""
        facts = (model.language, model.encoder, model.mode, parameters, model.results, model.license, model.size)
        say(f"{model.name}\n    {', '.join(filter(None, facts))} ({model.source}; {model.check})")
