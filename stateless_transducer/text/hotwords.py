"""Hotwords as text: phrases, one a line, to token ids."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from stateless_transducer.files import read_lines
from stateless_transducer.text.tokens import TokenTable

HotwordPhrase = tuple[tuple[int, ...], float]
"""Token ids of a phrase, and what all of it adds to the log-probability of a hypothesis."""


def read_hotwords(path: Path, token_table: TokenTable, score: float) -> list[HotwordPhrase]:
    """Phrases of a UTF-8 file, one a line: ``phrase`` or ``phrase :2.5`` with a score of its own for each token.

    Empty lines do not count.

    Raises:
        ValueError: the file cannot be read, holds no phrase, or a phrase that the token table cannot spell.
    """
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"{path}: cannot be read as a list of hotwords: {err}") from err
    scored = []
    for number, line in enumerate(lines, start=1):
        phrase, colon, own = line.strip().rpartition(" :")
        if not colon:
            phrase, own = line.strip(), score
        try:
            scored.append((phrase, float(own)))
        except ValueError:
            raise ValueError(f"{path}:{number}: `{own}` behind the colon is not a number.") from None
        if not math.isfinite(scored[-1][1]):
            raise ValueError(f"{path}:{number}: `{own}` behind the colon is not a finite number.")
    found = spell_hotwords([(phrase, own) for phrase, own in scored if phrase], token_table, str(path))
    if not found:
        raise ValueError(f"{path}: holds no phrase.")
    return found


def spell_hotwords(
    scored: Iterable[tuple[str, float]], token_table: TokenTable, source: str = "hotwords"
) -> list[HotwordPhrase]:
    """Phrases with their scores per token, in token ids.

    Raises:
        ValueError: the token table cannot spell a phrase: such a hotword could never be found.
    """
    found = []
    for phrase, score in scored:
        # as the texts that a model learns from
        phrase = unicodedata.normalize("NFC", phrase)
        unknown = token_table.unknown_units(phrase)
        if unknown:
            raise ValueError(
                f"{source}: the model's tokens cannot spell `{phrase}`: it lacks {', '.join(map(repr, unknown))}."
            )
        tokens = tuple(token_table.encode(phrase))
        if tokens:
            found.append((tokens, score * len(tokens)))
    return found
