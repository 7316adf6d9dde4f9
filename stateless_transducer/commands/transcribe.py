"""``transducer transcribe``: sound files -> text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from stateless_transducer.commands.console import complain, say
from stateless_transducer.commands.flags import parse
from stateless_transducer.decoding.config import SearchConfig

_FILES_AT_ONCE = 16


@dataclass(frozen=True)
class Options:
    """Options of ``transducer transcribe``."""

    model: Annotated[Path, Positional]
    """Model file, as written by `transducer average`, or a checkpoint."""
    files: Annotated[tuple[Path, ...], Positional]
    """Sound files of any sample rate."""
    output_format: Literal["txt", "json"] = "txt"
    """txt: `file<tab>text`; json: one object a line, with tokens, times and log-probabilities."""
    search: SearchConfig = field(default_factory=SearchConfig)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run; status 1 if a file could not be read."""
    return run(parse(Options, program, arguments, "Transcribe sound files: one line each, as soon as it is known."))


def run(options: Options) -> int:
    """Transcribe what can be read, report the rest."""
    from stateless_transducer.audio import AudioError
    from stateless_transducer.serving.recognizer import Recognizer

    if not options.files:
        raise ValueError("Name at least one sound file.")
    recognizer = Recognizer.from_pretrained(options.model, options.search)
    failed = 0
    for start in range(0, len(options.files), _FILES_AT_ONCE):
        readable, waves = [], []
        for path in options.files[start : start + _FILES_AT_ONCE]:
            try:
                waves.append(recognizer.read(path))
                readable.append(path)
            except AudioError as err:
                complain(f"transducer: {err}")
                failed += 1
        for path, transcript in zip(readable, recognizer.transcribe(waves), strict=True):
            if options.output_format == "json":
                say(json.dumps({"file": str(path), **asdict(transcript)}, ensure_ascii=False))
            else:
                say(f"{path}\t{transcript.text}")
    if failed:
        complain(f"transducer: {failed} of {len(options.files)} files could not be read.")
    return 1 if failed else 0
