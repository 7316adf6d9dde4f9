"""What the user chooses about results and long sound. Free of NumPy and torch: ``--help`` need not load them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Unit

from stateless_transducer.options import check_bounds


@dataclass(frozen=True)
class DetailConfig:
    """What is found out besides the text."""

    align: bool = True
    """Where each token begins and ends, and how sure it is."""
    nbest: Annotated[int, Ge(1)] = 1
    """beam_search, modified_beam_search: hypotheses given for each segment, the best one included."""

    def __post_init__(self) -> None:
        check_bounds(self)


Vad = Literal["auto", "silero", "energy", "none"]


@dataclass(frozen=True)
class SegmentConfig:
    """How long sound is cut."""

    vad: Vad = "auto"
    """What finds speech in long sound; energy: loudness; none: no silence is left out; auto: silero or else energy."""
    max_segment_s: Annotated[float, Interval(ge=2, le=300), Unit("s")] = 20.0
    """Longest sound recognized in one piece, in seconds; sound up to this length is never cut."""

    def __post_init__(self) -> None:
        check_bounds(self)


def check_batch_seconds(batch_seconds: float) -> None:
    """Raises ValueError."""
    if not 0 < batch_seconds < math.inf:
        raise ValueError(f"`batch_seconds` must be above 0 s and finite, but is {batch_seconds:g}.")
