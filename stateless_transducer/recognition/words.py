"""Tokens to words. In a script without blanks, such as Chinese, each character is a word."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from stateless_transducer.recognition.transcript import Segment, Word
from stateless_transducer.text.symbols import Vocabulary
from stateless_transducer.text.tokens import SPACE


def word_places(tokens: Sequence[str], token_table: Vocabulary) -> list[tuple[int, int]]:
    """First token of each word, and the one after its last."""
    breaks = [i for i in range(1, len(tokens)) if _may_break(tokens[i - 1], tokens[i], token_table)]
    return list(pairwise([0, *breaks, len(tokens)])) if tokens else []


def timed_words(segment: Segment, token_table: Vocabulary) -> tuple[Word, ...]:
    """The words of a segment whose tokens have begins, ends and confidences."""
    words = []
    for first, end in word_places(segment.tokens, token_table):
        text = token_table.decode(token_table.ids[token] for token in segment.tokens[first:end])
        if not text:
            continue
        # the blank before a word does not belong to it
        first += segment.tokens[first] == SPACE
        confidence = round(math.prod(segment.confidences[first:end]), 5)
        words.append(Word(text, segment.starts[first], segment.ends[end - 1], confidence))
    return tuple(words)


def _may_break(before: str, after: str, token_table: Vocabulary) -> bool:
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in (before[-1], after[0]))
    return token_table.unit == "word" or after.startswith(SPACE) or is_wide
