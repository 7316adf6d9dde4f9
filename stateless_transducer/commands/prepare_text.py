"""``transducer prepare text``: write texts as a model's tokens, for other n-gram tools."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.texts import Sentences, check_texts
from stateless_transducer.files import replacing
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.wording import counted


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare text``."""

    texts: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE [FILE ...]")]
    """UTF-8 texts, one sentence per line, or manifests: .jsonl with a "text" per object. Both may be .gz."""
    output: Path | None = None
    """File to write; by default, standard output."""
    lang_dir: Path = Path("data/lang_char")
    """Folder with the model's tokens.txt: that of its training, or an exported model."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("Name at least one text.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Write texts as a model's tokens, separated by spaces, for KenLM and SRILM."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Write the tokens sentence by sentence.

    Raises:
        ValueError: A text is missing or cannot be read.
    """
    tokens = TokenTable.read(options.lang_dir)
    check_texts(options.texts, options.output)
    sentences = Sentences(options.texts, tokens)
    with _opened(options.output) as file:
        for units in sentences:
            file.write(" ".join(units) + "\n")
    sentences.complain(options.lang_dir)
    if options.output is not None:
        say(f"{options.output}: {counted(sentences.num_sentences, 'line')}, {counted(sentences.num_units, 'token')}")


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
