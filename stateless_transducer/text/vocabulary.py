"""The tokens of a model, ours or somebody else's: one door to its ``tokens.txt``."""

from __future__ import annotations

import re
from pathlib import Path

from stateless_transducer.text.symbols import SymbolTable
from stateless_transducer.text.tokens import BLANK, SCORES_FILE, SPECIAL, UNKNOWN, TokenTable, piece_scores

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
    if (path.parent / "lang.json").is_file() or _is_of_characters(table, vocab_size):
        return TokenTable.read(path)
    return _of_pieces(table, path.parent, vocab_size) or table


def _is_of_characters(table: SymbolTable, vocab_size: int) -> bool:
    """Whether a `TokenTable` of characters can be made of the file."""
    symbols = [symbol for symbol in table.symbols.values() if not _NO_TOKEN.fullmatch(symbol)]
    are_whole = len(symbols) == len(set(symbols)) == vocab_size and table.symbols[0] == BLANK and UNKNOWN in symbols
    return are_whole and all(len(symbol) == 1 or symbol in SPECIAL for symbol in symbols)


def _of_pieces(table: SymbolTable, folder: Path, vocab_size: int) -> TokenTable | None:
    """A `TokenTable` of pieces of words, if a ``bpe.vocab`` has the scores of all that the model says."""
    symbols = tuple(table.symbols[i] for i in range(vocab_size))
    is_whole = len(set(symbols)) == vocab_size and symbols[0] == BLANK and UNKNOWN in symbols
    if table.is_byte_level or not is_whole or not (folder / SCORES_FILE).is_file():
        return None
    try:
        scores = piece_scores(folder, symbols)
    except ValueError:
        # without it the model still says text; hotwords, which need it, tell
        return None
    return None if scores is None else TokenTable(symbols, "bpe", scores)
