"""What the user chooses about results and long sound. Free of NumPy and torch: ``--help`` need not load them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DetailConfig:
    """What is found out besides the text."""

    align: bool = True
    """Where each token begins and ends, and how sure it is."""
    nbest: int = 1
    """beam_search, modified_beam_search: hypotheses given for each segment, the best one included."""

    def __post_init__(self) -> None:
        if self.nbest < 1:
            raise ValueError(f"`--nbest` must be at least 1, but is {self.nbest}.")


Vad = Literal["auto", "silero", "energy", "none"]


@dataclass(frozen=True)
class SegmentConfig:
    """How long sound is cut."""

    vad: Vad = "auto"
    """What finds speech in long sound; energy: loudness; none: no silence is left out; auto: silero or else energy."""
    max_segment_s: float = 20.0
    """Longest sound recognised in one piece, in seconds; sound up to this length is never cut."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_segment_s <= 300:
            raise ValueError(f"`--max-segment-s` must be in 2..300 s, but is {self.max_segment_s:g}.")


def check_batch_seconds(batch_seconds: float) -> None:
    """Raises ValueError."""
    if not 0 < batch_seconds < math.inf:
        raise ValueError(f"`--batch-seconds` must be above 0 s and finite, but is {batch_seconds:g}.")


@dataclass(frozen=True)
class BatchConfig:
    """How those who use a server at the same time share the model."""

    batch_seconds: float = 100.0
    """Seconds of audio worked on at once; more needs more memory."""
    max_wait_ms: float = 5.0
    """Milliseconds that sound waits for other people's when the model has nothing to do."""

    def __post_init__(self) -> None:
        check_batch_seconds(self.batch_seconds)
        if not 0 <= self.max_wait_ms <= 1000:
            raise ValueError(f"`--max-wait-ms` must be in 0..1000, but is {self.max_wait_ms:g}.")
