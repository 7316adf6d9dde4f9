"""The ``tokens.txt`` beside any model, ours or another program's: text from ids, as sherpa-onnx reads it.

A `TokenTable` is stricter: it must also spell a text in ids. `read_vocabulary` returns one where the file allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stateless_transducer.text.tokens import (
    BLANK,
    SCORES_FILE,
    SPACE,
    SPECIAL,
    UNKNOWN,
    TokenTable,
    Unit,
    close_gaps,
    piece_scores,
    read_symbols,
)

# a byte that the model's tokens cannot spell otherwise
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# marks that stand behind the tokens: of disambiguation, of sentences
_NO_TOKEN = re.compile(r"#.*|<.*>")
_DISAMBIGUATION = re.compile(r"#\d+")
# byte-level BPE, as icefall trains it, writes byte b as character b of these
_RANGES = ((256, 287), (32, 126), (288, 305), (308, 318), (321, 328), (330, 382), (384, 422))
_BYTE_OF = {chr(code): b for b, code in enumerate(c for low, high in _RANGES for c in range(low, high + 1))}


@dataclass(frozen=True)
class SymbolTable:
    """Id -> symbol, in any order and with any gaps."""

    symbols: Mapping[int, str]
    unit: Unit = "char"
    """Symbols are joined as they are; `SPACE` in them stands for a blank."""

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Symbol -> id."""
        return {symbol: i for i, symbol in self.symbols.items()}

    @cached_property
    def unknown_ids(self) -> frozenset[int]:
        """Ids of the unknown token: none or one."""
        return frozenset(i for i, symbol in self.symbols.items() if symbol == UNKNOWN)

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the symbols are those of byte-level BPE, where a character may be spread over several."""
        letters = {c for symbol in self.symbols.values() for c in symbol} - {SPACE}
        return letters <= _BYTE_OF.keys() and any(ord(c) >= 384 for c in letters)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that make no character are left out."""
        symbols = [self.symbols[i] for i in ids]
        spell = self._spell_byte_level if self.is_byte_level else _spell
        return spell(symbols).decode("utf-8", errors="ignore").strip()

    def join(self, texts: Iterable[str]) -> str:
        """One text of several, with a blank between two of them where there is one between words."""
        text = " ".join(text for text in texts if text)
        has_blanks = self.is_byte_level or any(SPACE in symbol for symbol in self.symbols.values())
        return close_gaps(text) if has_blanks else text.replace(" ", "")

    def _spell_byte_level(self, symbols: list[str]) -> bytes:
        spelt = bytearray()
        for c in "".join(symbols):
            if c != SPACE:
                spelt.append(_BYTE_OF[c])
            # words are apart behind ASCII alone: Chinese has no blanks
            elif spelt and 0x20 < spelt[-1] < 0x7F:
                spelt += b" "
        return bytes(spelt)

    def check(self, path: Path, vocab_size: int) -> None:
        """Hold the table to the model that it was found beside.

        Raises:
            ValueError: an id of the model lacks a symbol, or symbols are left over that are no marks (``#0``, ``<s>``).
        """
        missing = next((i for i in range(vocab_size) if i not in self.symbols), None)
        if missing is not None:
            raise ValueError(f"{path}: lacks id {missing}, but the model says 0..{vocab_size - 1}.")
        left_over = [s for i, s in self.symbols.items() if i >= vocab_size and not _NO_TOKEN.fullmatch(s)]
        if left_over:
            raise ValueError(
                f"{path}: has {left_over[0]!r} with id {self.ids[left_over[0]]}, but the model says "
                f"0..{vocab_size - 1}; is it of another model?"
            )

    @classmethod
    def read(cls, path: Path) -> SymbolTable:
        """Read a file, see `read_symbols`."""
        return cls(read_symbols(path))


def _spell(symbols: list[str]) -> bytes:
    pieces = []
    for symbol in symbols:
        byte = _BYTE.fullmatch(symbol)
        pieces.append(bytes.fromhex(byte[1]) if byte else symbol.replace(SPACE, " ").encode())
    return b"".join(pieces)


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
    symbols = [symbol for symbol in table.symbols.values() if not _DISAMBIGUATION.fullmatch(symbol)]
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
