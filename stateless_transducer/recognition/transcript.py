"""What a recognizer finds. Times are in seconds from the start of the sound."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word of a segment."""

    word: str
    start: float
    """Where it begins."""
    end: float
    """Where it ends."""
    confidence: float
    """Probability of the word behind those before it: the product of its tokens' confidences."""


@dataclass(frozen=True)
class Alternative:
    """Something else that may have been said."""

    text: str
    score: float
    """Log-probability, as the search that found it counts; comparable within a segment."""


@dataclass(frozen=True)
class Segment:
    """What was said in a stretch of a sound that was recognized in one piece."""

    start: float
    """Where the stretch begins."""
    end: float
    """Where it ends."""
    text: str
    tokens: tuple[str, ...]
    """The pieces of the text."""
    times: tuple[float, ...]
    """When each token was emitted."""
    log_probs: tuple[float, ...]
    """Log-probability of each token on the frame on which it was emitted."""
    starts: tuple[float, ...] = ()
    """Where each token begins; this and the four below only if they were asked for."""
    ends: tuple[float, ...] = ()
    """Where each token ends."""
    confidences: tuple[float, ...] = ()
    """Probability of each token behind those before it, on whichever frame, 0..1."""
    confidence: float | None = None
    """Geometric mean of the tokens' confidences, 0..1; without a token, the probability that nothing is said."""
    words: tuple[Word, ...] = ()
    """The words of the text; of one in Chinese, each character."""
    alternatives: tuple[Alternative, ...] = ()
    """What else may have been said, likeliest first, if it was asked for."""

    def known(self) -> dict[str, Any]:
        """All fields by name as JSON takes them, without the details that were not asked for."""
        fields = asdict(self)
        details = ("starts", "ends", "confidences", "confidence", "words", "alternatives")
        asked = {name: value for name, value in fields.items() if name not in details or value not in ((), None)}
        return _without_nan(asked)


@dataclass(frozen=True)
class Transcript:
    """What was said in a sound."""

    text: str
    duration: float
    """Seconds of audio."""
    segments: tuple[Segment, ...]
    """In order, none overlapping another: one for a short sound; of a longer one, those in which somebody may speak."""
    warnings: tuple[str, ...] = ()
    """What is odd about the sound: damaged, silent, clipped."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Of all segments."""
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def times(self) -> tuple[float, ...]:
        """When each token was emitted."""
        return tuple(time for segment in self.segments for time in segment.times)

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Log-probability of each token."""
        return tuple(log_prob for segment in self.segments for log_prob in segment.log_probs)

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """Where each token begins and ends, if that was asked for."""
        return tuple(span for segment in self.segments for span in zip(segment.starts, segment.ends, strict=True))

    @property
    def words(self) -> tuple[Word, ...]:
        """Of all segments, if their begins and ends were asked for."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def confidences(self) -> tuple[float, ...]:
        """Of each token, if they were asked for."""
        return tuple(confidence for segment in self.segments for confidence in segment.confidences)


def _without_nan(value: Any) -> Any:
    """JSON has no such number, nor infinite ones: null stands for them."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_without_nan(each) for each in value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
