"""What the user chooses about long sound. Free of NumPy and torch, so that ``--help`` need not load them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
