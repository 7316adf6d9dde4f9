"""Begin and end of each token in the sound, from the frame of its emission and the loudness of the sound.

A transducer emits a token on some frame within it, and does not say where the token begins and ends. The border of two
tokens is the softest frame between their emissions; silence at the ends of a token does not belong to it.

Letters: T_in feature frames, F mel bins, U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_DECIBEL = np.log(10) / 10
_LOUDEST_TO_SILENCE = 60 * _DECIBEL
"""A frame so much softer than the loudest one of its token does not belong to the token."""
_SHARE_OF_RANGE = 0.15
"""In noise, speech rises above the softest frames by at least this share of the range."""
_SMOOTHED_FRAMES = 3
_MOST_FRAMES = 150
"""Frames from the emission of a token to its begin or end, at most."""


def token_spans(features: np.ndarray, moments: Sequence[int], shortest: int) -> list[tuple[int, int]]:
    """First feature frame of each token, and the one after its last.

    Args:
        features: (T_in, F), log mel energies.
        moments: U feature frames on which the tokens were emitted, in order.
        shortest: feature frames that a token lasts at least, if the next token begins late enough: an encoder frame.

    Returns:
        U pairs, in order, none empty; tokens emitted on one frame share it.
    """
    if not len(moments):
        return []
    loudness = _smoothed(np.logaddexp.reduce(features, axis=1))
    borders = _borders(loudness, [min(max(int(moment), 0), len(features) - 1) for moment in moments])
    floor = float(np.percentile(loudness, 10))
    spans = [_trimmed(loudness, start, end, floor) for start, end in zip(borders[:-1], borders[1:], strict=True)]
    room = [start for start, _ in spans[1:]] + [len(features)]
    return [(start, max(end, min(start + shortest, most))) for (start, end), most in zip(spans, room, strict=True)]


def separate_spans(spans: Sequence[tuple[int, int]], *, first: int, last: int, shortest: int) -> list[tuple[int, int]]:
    """Spans that do not overlap, each of at least ``shortest``, as near to the given ones as that allows.

    Args:
        spans: U pairs of begin and end, in the order of their begins, in whole milliseconds or other units.
        first: Begin of the segment.
        last: End of the segment.
        shortest: Least length of a span. Where the segment has no room for that, its length is shared evenly.
    """
    if len(spans) * shortest > last - first:
        borders = [first + (last - first) * i // len(spans) for i in range(len(spans) + 1)]
        return list(pairwise(borders))
    separate: list[tuple[int, int]] = []
    now = first
    for i, (start, end) in enumerate(spans):
        # of two spans that overlap, the earlier one ends where the later one begins
        end = min(end, spans[i + 1][0]) if i + 1 < len(spans) else end
        start = max(start, now)
        now = max(end, start + shortest)
        separate.append((start, now))
    limit = last
    for i, (start, end) in reversed(list(enumerate(separate))):
        end = min(end, limit)
        limit = min(start, end - shortest)
        separate[i] = (limit, end)
    return separate


def _smoothed(loudness: np.ndarray) -> np.ndarray:
    width = min(_SMOOTHED_FRAMES, len(loudness))
    padded = np.pad(loudness, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def _borders(loudness: np.ndarray, moments: list[int]) -> list[int]:
    """U + 1 frames: the first token begins at the first, the last one ends at the last."""
    borders = [max(0, moments[0] - _MOST_FRAMES)]
    for before, after in zip(moments[:-1], moments[1:], strict=True):
        start = max(borders[-1], before)
        borders.append(start + int(loudness[start : max(after, start) + 1].argmin()))
    borders.append(min(len(loudness), moments[-1] + _MOST_FRAMES))
    return borders


def _trimmed(loudness: np.ndarray, start: int, end: int, floor: float) -> tuple[int, int]:
    """The span without the silence at both ends."""
    span = loudness[start : max(end, start + 1)]
    loudest = float(span.max())
    least = max(loudest - _LOUDEST_TO_SILENCE, floor + _SHARE_OF_RANGE * (loudest - floor))
    (loud,) = (span >= min(least, loudest)).nonzero()
    return start + int(loud[0]), start + int(loud[-1]) + 1
