"""Hotwords: phrases to boost, one per line, and their token ids."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from stateless_transducer.files import file_problem, read_lines
from stateless_transducer.text.tokens import TokenTable

HotwordPhrase = tuple[tuple[int, ...], float]
"""Token ids of a phrase, and the score that the whole phrase adds to the log-probability of a hypothesis.

Example:
    >>> phrase: HotwordPhrase = ((3, 4), 2.0)
    >>> hotwords = Hotwords([[phrase]], vocab_size=6)
"""


def read_hotwords(path: Path, token_table: TokenTable, score: float) -> list[HotwordPhrase]:
    """Read a UTF-8 file with a phrase per line: ``phrase``, or ``phrase :2.5`` with its own score per token.

    Empty lines are skipped.

    Args:
        path: the file.
        token_table: of the model.
        score: score per token of phrases without one.

    Raises:
        ValueError: the file cannot be read or holds no phrase, or the token table cannot spell a phrase.
    """
    if problem := file_problem(path, may_be_pipe=True):
        raise ValueError(f"{path}: {problem}.")
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"{path}: cannot be read as a list of hotwords: {err}") from err
    scored: list[tuple[str, float]] = []
    for number, line in enumerate(lines, start=1):
        phrase, colon, suffix = line.strip().rpartition(" :")
        if not colon:
            phrase, suffix = line.strip(), score
        try:
            phrase_score = float(suffix)
        except ValueError:
            raise ValueError(f"{path}:{number}: `{suffix}` after the colon is not a number.") from None
        if not math.isfinite(phrase_score):
            raise ValueError(f"{path}:{number}: `{suffix}` after the colon is not a finite number.")
        if phrase:
            scored.append((phrase, phrase_score))
    phrases = spell_hotwords(scored, token_table, str(path))
    if not phrases:
        raise ValueError(f"{path}: holds no phrase.")
    return phrases


def spell_hotwords(
    scored: Iterable[tuple[str, float]], token_table: TokenTable, source: str = "hotwords"
) -> list[HotwordPhrase]:
    """Convert phrases with their scores per token into token ids.

    Raises:
        ValueError: the token table cannot spell a phrase, so that it could never be recognized.

    Example:
        >>> tokens = TokenTable(("<blk>", "<sos/eos>", "<unk>", "今", "天"))
        >>> spell_hotwords([("今天", 1.5)], tokens)
        [((3, 4), 3.0)]
    """
    hotwords: list[HotwordPhrase] = []
    for phrase, score in scored:
        # the form of training texts
        phrase = unicodedata.normalize("NFC", phrase)
        unknown = token_table.unknown_units(phrase)
        if unknown:
            raise ValueError(
                f"{source}: the model's tokens cannot spell `{phrase}`: it lacks {', '.join(map(repr, unknown))}."
            )
        tokens = tuple(token_table.encode(phrase))
        if tokens:
            hotwords.append((tokens, score * len(tokens)))
    return hotwords
