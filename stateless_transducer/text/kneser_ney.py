"""N-gram language models from texts: interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998).

Letters: V vocabulary, M n-grams of one length n, L tokens of the texts with sentence ends.

An n-gram is identified by its number among those of its length; an occurrence, by the position of its last token. The
n-grams of the next length follow from these L numbers and the next tokens by sorting, without a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from stateless_transducer.text.arpa import NgramLevel

MAX_ORDER = 10

_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts if the counts define none, for example those of a few letters, all frequent; the same as KenLM's."""


@dataclass(frozen=True)
class _Counted:
    """N-grams of one length in the texts, in the order of `prefixes` and `last`."""

    prefixes: np.ndarray
    """(M,): number of the n-gram without its last token."""
    suffixes: np.ndarray
    """(M,): number of the n-gram without its first token."""
    last: np.ndarray
    """(M,): last token."""
    counts: np.ndarray
    """(M,): number of occurrences."""
    opens: np.ndarray
    """(M,), bool: whether the first token is the beginning of a sentence."""


def estimate(
    sentences: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    unsaid: Sequence[int] = (),
    order: int = 4,
    min_count: int = 1,
) -> list[NgramLevel]:
    """Estimate a language model from texts.

    Args:
        sentences: token ids of each sentence.
        vocab_size: V.
        unsaid: ids that no text has, for example the blank: they get probability 0. All others get more than 0, whether
            they occur or not.
        order: length of the longest n-grams, 1 to 10.
        min_count: n-grams of three and more tokens that occur less often are dropped; their probability goes to the
            shorter contexts.

    Returns:
        Levels 1 to `order`, or to the length of the longest n-gram in the texts.

    Raises:
        ValueError: `order` or `min_count` is out of range, or there is no token.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"`order` must be in 1..{MAX_ORDER}, but is {order}.")
    if min_count < 1:
        raise ValueError(f"`min_count` must be at least 1, but is {min_count}.")
    counted = _count(sentences, vocab_size, order)
    is_said = np.ones(vocab_size + 2, bool)
    is_said[[*unsaid, vocab_size]] = False
    # order 0: the uniform distribution, with no context to back off to
    probs, is_frequent, tokens = np.array([1 / is_said.sum()]), np.ones(1, bool), np.zeros((1, 0), np.int64)
    levels: list[NgramLevel] = []
    for n, level in enumerate(counted, start=1):
        seen = _adjusted(level, counted[n] if n < len(counted) else None)
        has_frequent_prefix, is_frequent = is_frequent, level.counts >= (min_count if n > 2 else 0)
        discounts = np.where(is_frequent, _discounts(seen)[np.minimum(seen, 3)], seen)
        totals = np.bincount(level.prefixes, seen, len(has_frequent_prefix))
        discounted = np.bincount(level.prefixes, discounts, len(has_frequent_prefix))
        weights = np.where(totals > 0, discounted / np.maximum(totals, 1), 1)
        direct_probs = (seen - discounts) / np.maximum(totals, 1)[level.prefixes]
        probs = direct_probs + weights[level.prefixes] * probs[level.suffixes]
        if n == 1:
            probs[~is_said] = 0
            is_frequent = is_said | level.opens
        else:
            levels[-1] = replace(levels[-1], backoffs=np.log(weights[has_frequent_prefix]))
        tokens = np.concatenate([tokens[level.prefixes], level.last[:, None]], axis=1)
        with np.errstate(divide="ignore"):
            log_probs = np.log(probs[is_frequent])
        levels.append(NgramLevel(tokens[is_frequent], log_probs, np.zeros_like(log_probs)))
    return levels


def _count(sentences: Iterable[Sequence[int]], vocab_size: int, order: int) -> list[_Counted]:
    """Count the n-grams of all lengths; those of one token are in the order of their ids, whether they occur or not."""
    start, end = vocab_size, vocab_size + 1
    text = np.fromiter(chain.from_iterable((start, *sentence, end) for sentence in sentences), np.int32)
    if np.all(text >= start):
        raise ValueError("The texts hold no token.")
    places = np.arange(len(text))
    # position of each token in its sentence
    depths = places - np.maximum.accumulate(np.where(text == start, places, 0))
    ids = np.arange(vocab_size + 2)
    # the beginning of a sentence follows no token
    counts = np.where(ids == start, 0, np.bincount(text, minlength=len(ids)))
    counted = [_Counted(np.zeros_like(ids), np.zeros_like(ids), ids, counts, ids == start)]
    numbers = text.astype(np.int64)
    for n in range(2, order + 1):
        places = np.flatnonzero(depths >= n - 1)
        if not len(places):
            break
        keys, first, back, counts = np.unique(
            numbers[places - 1] * len(ids) + text[places], return_index=True, return_inverse=True, return_counts=True
        )
        prefixes, last = np.divmod(keys, len(ids))
        counted.append(_Counted(prefixes, numbers[places[first]], last, counts, counted[-1].opens[prefixes]))
        numbers[places] = back
    return counted


def _adjusted(level: _Counted, longer: _Counted | None) -> np.ndarray:
    """Return the number of different tokens that each n-gram follows, or its count if no longer n-gram ends with it."""
    if longer is None:
        return level.counts
    return np.where(level.opens, level.counts, np.bincount(longer.suffixes, minlength=len(level.counts)))


def _discounts(scores: np.ndarray) -> np.ndarray:
    """Return the discounts of n-grams that are seen 0, 1, 2 and more times: (4,)."""
    ones, twos, threes, fours = (int((scores == count).sum()) for count in (1, 2, 3, 4))
    if min(ones, twos, threes) > 0:
        share = ones / (ones + 2 * twos)
        discounts = (1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes)
        if all(0 < discount <= count for count, discount in enumerate(discounts, start=1)):
            return np.array([0, *discounts])
    return np.array([0, *_FALLBACK])
