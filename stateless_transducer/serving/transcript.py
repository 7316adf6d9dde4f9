"""What a recogniser finds. Times are in seconds from the start of the sound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """What was said in a stretch of a sound that was recognised in one piece."""

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
    """Log-probability of each token."""


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
