"""``transducer prepare text``: texts in a model's tokens, for tools that count n-grams of them."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

from tyro.conf import Positional, arg

from stateless_transducer.commands.console import complain, say
from stateless_transducer.commands.flags import parse
from stateless_transducer.files import replacing
from stateless_transducer.text.tokens import TokenTable


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare text``."""

    texts: Annotated[tuple[Path, ...], Positional, arg(metavar="FILE [FILE ...]")]
    """UTF-8 texts, a sentence a line."""
    output: Path | None = None
    """File to write; None: standard output."""
    lang_dir: Path = Path("data/lang_char")
    """Folder with the model's tokens.txt: that of training, or an exported model's."""

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("Name at least one text.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Write texts in a model's tokens with blanks between them, as KenLM and SRILM want them for n-grams."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Line by line; empty lines are left out.

    Raises:
        ValueError: a text is missing or is not UTF-8.
    """
    tokens = TokenTable.read(options.lang_dir)
    for path in options.texts:
        if not path.is_file():
            raise ValueError(f"{path}: no such file.")
        if options.output is not None and options.output.exists() and options.output.samefile(path):
            raise ValueError(f"`--output` {options.output} is one of the texts; name another one.")
    num_lines, num_units, unknown = 0, 0, Counter()
    with _opened(options.output) as file:
        for path in options.texts:
            for line in _lines(path):
                units = tokens.split(unicodedata.normalize("NFC", line))
                if not units:
                    continue
                file.write(" ".join(units) + "\n")
                num_lines, num_units = num_lines + 1, num_units + len(units)
                unknown.update(unit for unit in units if unit not in tokens.ids)
    if unknown:
        first = " ".join(unit for unit, _ in unknown.most_common(20))
        complain(f"{unknown.total()} of {num_units} units are no tokens of {options.lang_dir}: {first}")
    if options.output is not None:
        say(f"{options.output}: {num_lines} lines, {num_units} tokens")


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with replacing(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as err:
        raise ValueError(f"{path} is not UTF-8 ({err}).") from err
