# pyright: strict
"""Byte-level BPE, as in icefall: pieces of the bytes of a text, each byte written as a printable character."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stateless_transducer.text.bpe import SPACE

# byte b is character number b of these ranges, whose characters Unicode's normalization NFKC leaves alone
_RANGES = ((256, 287), (32, 126), (288, 305), (308, 318), (321, 328), (330, 382), (384, 422))
_CHARACTERS = [chr(code) for low, high in _RANGES for code in range(low, high + 1)]
BYTE_OF = {character: byte for byte, character in enumerate(_CHARACTERS)}
"""Byte that a character stands for."""
# scripts without blanks between words, each of whose characters is a word here
_ALONE = "\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff"
_WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")


def is_of_bytes(symbol: str) -> bool:
    """Report whether each character of a symbol stands for a byte, or is `SPACE`."""
    return {*symbol} <= BYTE_OF.keys() | {SPACE}


def is_byte_level(symbols: Iterable[str]) -> bool:
    """Report whether tokens are byte-level BPE: of these characters alone, with some that no alphabet needs."""
    letters = {character for symbol in symbols for character in symbol} - {SPACE}
    return letters <= BYTE_OF.keys() and any(ord(character) >= 384 for character in letters)


def words_in_bytes(text: str) -> list[str]:
    """Split a text into words, and ideographs and the like into characters; write each in its bytes."""
    words = (match[0] for match in _WORD.finditer(text))
    return ["".join(_CHARACTERS[byte] for byte in word.encode()) for word in words]


def text_of_bytes(symbols: str) -> str:
    """Return the text of bytes with `SPACE` for blanks; bytes that form no character are skipped."""
    spelled = bytes(0x20 if character == SPACE else BYTE_OF[character] for character in symbols)
    return spelled.decode(errors="ignore")
