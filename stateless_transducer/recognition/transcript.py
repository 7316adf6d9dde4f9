"""Results of recognition. Times are in seconds from the start of the sound."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast


@dataclass(frozen=True)
class Word:
    """A word of a segment.

    Example:
        >>> transcript = Recognizer.from_pretrained("model.pt").transcribe("a.wav")
        >>> [word.word for word in transcript.words if word.confidence > 0.5]
        ['今', '天', '很', '好']
    """

    word: str
    start: float
    """Begin of the word."""
    end: float
    """End of the word."""
    confidence: float
    """Probability of the word given those before it: the product of its tokens' confidences."""


@dataclass(frozen=True)
class Alternative:
    """A hypothesis of lower rank.

    Example:
        >>> details = DetailConfig(nbest=3)
        >>> recognizer = Recognizer.from_pretrained("model.pt", SearchConfig("modified_beam_search"), details=details)
        >>> (segment,) = recognizer.transcribe("a.wav").segments
        >>> len(segment.alternatives), segment.alternatives[0].score < 0
        (2, True)
    """

    text: str
    score: float
    """Log-probability as the search counts it; comparable within a segment."""


@dataclass(frozen=True)
class Segment:
    """Text of a stretch of sound that was recognized in one piece.

    Example:
        >>> for segment in Recognizer.from_pretrained("model.pt").stream_transcribe("a.wav"):
        ...     print(segment.start, segment.text, segment.tokens)
        0.0 今天很好 ('今', '天', '很', '好')
    """

    start: float
    """Begin of the stretch."""
    end: float
    """End of the stretch."""
    text: str
    tokens: tuple[str, ...]
    """The pieces of the text."""
    times: tuple[float, ...]
    """Time of the frame on which each token was emitted."""
    log_probs: tuple[float, ...]
    """Log-probability of each token on the frame on which it was emitted."""
    starts: tuple[float, ...] = ()
    """Begin of each token; this and the four fields below are empty unless requested."""
    ends: tuple[float, ...] = ()
    """End of each token."""
    confidences: tuple[float, ...] = ()
    """Probability of each token given those before it, on any frame, 0..1."""
    confidence: float | None = None
    """Geometric mean of the tokens' confidences, 0..1; without a token, the probability of silence."""
    words: tuple[Word, ...] = ()
    """Words of the text; in Chinese, its characters."""
    alternatives: tuple[Alternative, ...] = ()
    """Hypotheses of lower rank, best first, if requested."""
    num_stable_tokens: int | None = None
    """Number of first tokens that later sound cannot change; None: the segment has ended, and nothing can."""

    def known(self) -> dict[str, Any]:
        """All fields by name as JSON takes them, without details that were not requested."""
        fields = asdict(self)
        details = ("starts", "ends", "confidences", "confidence", "words", "alternatives", "num_stable_tokens")
        requested = {name: value for name, value in fields.items() if name not in details or value not in ((), None)}
        return _without_nan(requested)


@dataclass(frozen=True)
class Transcript:
    """Text of a sound.

    Example:
        >>> transcript = Recognizer.from_pretrained("model.pt").transcribe("a.wav")
        >>> transcript.text, len(transcript.spans)
        ('今天很好', 4)
    """

    text: str
    duration: float
    """Seconds of audio."""
    segments: tuple[Segment, ...]
    """Segments in order, without overlap: one for a short sound; for a longer one, the stretches with speech."""
    warnings: tuple[str, ...] = ()
    """Oddities of the sound: damaged, silent, clipped."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all segments."""
        return tuple(token for segment in self.segments for token in segment.tokens)

    @property
    def times(self) -> tuple[float, ...]:
        """Time of the frame on which each token was emitted."""
        return tuple(time for segment in self.segments for time in segment.times)

    @property
    def log_probs(self) -> tuple[float, ...]:
        """Log-probability of each token."""
        return tuple(log_prob for segment in self.segments for log_prob in segment.log_probs)

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """Begin and end of each token, if requested."""
        return tuple(span for segment in self.segments for span in zip(segment.starts, segment.ends, strict=True))

    @property
    def words(self) -> tuple[Word, ...]:
        """Words of all segments, if begins and ends were requested."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def confidences(self) -> tuple[float, ...]:
        """Confidence of each token, if requested."""
        return tuple(confidence for segment in self.segments for confidence in segment.confidences)


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, tuple):
        return tuple(_without_nan(item) for item in cast("tuple[Any, ...]", value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
