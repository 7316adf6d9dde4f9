"""The tokens of a model, ours or somebody else's: one door to its ``tokens.txt``."""

from __future__ import annotations

import re
from pathlib import Path

from stateless_transducer.text.symbols import SymbolTable
from stateless_transducer.text.tokens import BLANK, SCORES_FILE, SPECIAL, UNKNOWN, TokenTable

_NO_TOKEN = re.compile(r"#\d+")


Vocabulary = TokenTable | SymbolTable
"""What turns ids into text; a `TokenTable` also spells text in ids."""


def read_vocabulary(path: Path, vocab_size: int) -> Vocabulary:
    """The ``tokens.txt`` beside a model: a `TokenTable` where the tokens can spell a text, with ``<unk>``.

    They are characters or words, or pieces of words with a ``bpe.vocab`` that has their scores.

    Args:
        path: the file; a ``lang.json`` beside it says which.
        vocab_size: ids that the model says.

    Raises:
        ValueError: no such file, a line that cannot be, or not the tokens of this model.
    """
    table = SymbolTable.read(path)
    table.check(path, vocab_size)
    if (path.parent / "lang.json").is_file() or _is_of_characters(table, vocab_size) or _is_of_pieces(table, path):
        return TokenTable.read(path)
    return table


def _is_of_characters(table: SymbolTable, vocab_size: int) -> bool:
    """Whether a `TokenTable` of characters can be made of the file."""
    symbols = [symbol for symbol in table.symbols.values() if not _NO_TOKEN.fullmatch(symbol)]
    are_whole = len(symbols) == len(set(symbols)) == vocab_size and table.symbols[0] == BLANK and UNKNOWN in symbols
    return are_whole and all(len(symbol) == 1 or symbol in SPECIAL for symbol in symbols)


def _is_of_pieces(table: SymbolTable, path: Path) -> bool:
    """Whether a `TokenTable` of pieces of words can be made of the file: none of them is a byte."""
    spells_bytes = table.is_byte_level or any(symbol.startswith("<0x") for symbol in table.symbols.values())
    has_marks = BLANK in table.ids and UNKNOWN in table.ids
    return (path.parent / SCORES_FILE).is_file() and has_marks and not spells_bytes
