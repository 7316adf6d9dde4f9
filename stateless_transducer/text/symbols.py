"""The ``tokens.txt`` beside any model, ours or another program's: text from ids, as sherpa-onnx reads it.

A `TokenTable` is stricter: it must also spell a text in ids. `read_vocabulary` returns one where the file allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stateless_transducer.text.byte_level import BYTE_OF, is_byte_level
from stateless_transducer.text.tokens import (
    BLANK,
    SCORES_FILE,
    SPACE,
    SPECIAL,
    UNIT_FILE,
    UNKNOWN,
    TokenTable,
    Unit,
    close_gaps,
    piece_scores,
    read_symbols,
)

# token for one byte of a character that has no token
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# symbols after the last token: disambiguation marks, sentence boundaries
_NO_TOKEN = re.compile(r"#.*|<.*>")
_DISAMBIGUATION = re.compile(r"#\d+")


@dataclass(frozen=True)
class SymbolTable:
    """Id -> symbol, in any order and with any gaps."""

    symbols: Mapping[int, str]
    unit: Unit = "char"
    """Always "char": symbols are joined without a separator, and `SPACE` in them stands for a blank."""

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Symbol -> id."""
        return {symbol: i for i, symbol in self.symbols.items()}

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the symbols are byte-level BPE, where a character may take several symbols."""
        return is_byte_level(self.symbols.values())

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that ids spell; bytes that form no character are skipped."""
        symbols = [self.symbols[i] for i in ids]
        text = self._spell_byte_level(symbols) if self.is_byte_level else _spell(symbols)
        return text.decode("utf-8", errors="ignore").strip()

    def join(self, texts: Iterable[str]) -> str:
        """Join texts, with a blank between them if the symbols have blanks between words."""
        text = " ".join(text for text in texts if text)
        has_blanks = self.is_byte_level or any(SPACE in symbol for symbol in self.symbols.values())
        return close_gaps(text) if has_blanks else text.replace(" ", "")

    def _spell_byte_level(self, symbols: list[str]) -> bytes:
        text = bytearray()
        for c in "".join(symbols):
            if c != SPACE:
                text.append(BYTE_OF[c])
            # a blank only after ASCII: Chinese has none
            elif text and 0x20 < text[-1] < 0x7F:
                text += b" "
        return bytes(text)

    def check(self, path: Path, vocab_size: int) -> None:
        """Check that the table has a symbol for each output of a model, and no other tokens.

        Raises:
            ValueError: an id below ``vocab_size`` has no symbol, or a higher one has a token that is no mark (``#0``,
                ``<s>``).
        """
        missing = next((i for i in range(vocab_size) if i not in self.symbols), None)
        if missing is not None:
            raise ValueError(f"{path}: lacks id {missing}, but the model has ids 0..{vocab_size - 1}.")
        extra = [s for i, s in self.symbols.items() if i >= vocab_size and not _NO_TOKEN.fullmatch(s)]
        if extra:
            raise ValueError(
                f"{path}: has {extra[0]!r} with id {self.ids[extra[0]]}, but the model has ids "
                f"0..{vocab_size - 1}. Is it from another model?"
            )

    @classmethod
    def read(cls, path: Path) -> SymbolTable:
        """Read a ``tokens.txt``, see `read_symbols`."""
        return cls(read_symbols(path))


def _spell(symbols: list[str]) -> bytes:
    pieces = []
    for symbol in symbols:
        byte = _BYTE.fullmatch(symbol)
        pieces.append(bytes.fromhex(byte[1]) if byte else symbol.replace(SPACE, " ").encode())
    return b"".join(pieces)


Vocabulary = TokenTable | SymbolTable
"""Table that turns ids into text; a `TokenTable` also turns text into ids."""


def read_vocabulary(path: Path, vocab_size: int) -> Vocabulary:
    """Read the ``tokens.txt`` beside a model, as a `TokenTable` if its tokens can spell any text.

    They can if they include ``<unk>`` and are characters, words, or pieces of words with scores in a ``bpe.vocab``.

    Args:
        path: the file; a ``lang.json`` beside it gives the unit.
        vocab_size: number of outputs of the model.

    Raises:
        ValueError: there is no such file, a line is invalid, or the tokens are not those of the model.
    """
    table = SymbolTable.read(path)
    table.check(path, vocab_size)
    if (path.parent / UNIT_FILE).is_file() or _is_of_characters(table, vocab_size):
        return TokenTable.read(path)
    return _of_pieces(table, path.parent, vocab_size) or table


def _is_of_characters(table: SymbolTable, vocab_size: int) -> bool:
    """Report whether the symbols make a `TokenTable` of characters."""
    symbols = [symbol for symbol in table.symbols.values() if not _DISAMBIGUATION.fullmatch(symbol)]
    are_whole = len(symbols) == len(set(symbols)) == vocab_size and table.symbols[0] == BLANK and UNKNOWN in symbols
    return are_whole and all(len(symbol) == 1 or symbol in SPECIAL for symbol in symbols)


def _of_pieces(table: SymbolTable, folder: Path, vocab_size: int) -> TokenTable | None:
    """Return a `TokenTable` of pieces of words if a ``bpe.vocab`` has the scores of all tokens of the model."""
    symbols = tuple(table.symbols[i] for i in range(vocab_size))
    is_whole = len(set(symbols)) == vocab_size and symbols[0] == BLANK and UNKNOWN in symbols
    if table.is_byte_level or not is_whole or not (folder / SCORES_FILE).is_file():
        return None
    try:
        scores = piece_scores(folder, symbols)
    except ValueError:
        # text can still be decoded; hotwords, which need the scores, report the error
        return None
    return None if scores is None else TokenTable(symbols, "bpe", scores)
