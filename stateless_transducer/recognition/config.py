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
    """Longest sound recognized in one piece, in seconds; sound up to this length is never cut."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_segment_s <= 300:
            raise ValueError(f"`--max-segment-s` must be in 2..300 s, but is {self.max_segment_s:g}.")


def check_batch_seconds(batch_seconds: float) -> None:
    """Raises ValueError."""
    if not 0 < batch_seconds < math.inf:
        raise ValueError(f"`--batch-seconds` must be above 0 s and finite, but is {batch_seconds:g}.")
