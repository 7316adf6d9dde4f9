"""Settings of results and of long sound. Without NumPy and torch, so that ``--help`` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Unit

from stateless_transducer.options import ADVANCED, check_bounds


@dataclass(frozen=True)
class DetailConfig:
    """Details of the result.

    Example:
        >>> recognizer = Recognizer.from_pretrained("model.pt", details=DetailConfig(align=False))
        >>> recognizer.transcribe("a.wav").words
        ()
    """

    align: bool = True
    """Compute start, end and confidence of each token."""
    nbest: Annotated[int, Ge(1)] = 1
    """beam_search, modified_beam_search: hypotheses to return per segment, the best one included."""

    def __post_init__(self) -> None:
        check_bounds(self)


Vad = Literal["auto", "silero", "energy", "none"]


@dataclass(frozen=True)
class SegmentConfig:
    """Segmentation of long sound.

    Example:
        >>> segments = SegmentConfig(vad="energy", max_segment_s=10)
        >>> Recognizer.from_pretrained("model.pt", segments=segments).transcribe("a.wav").text
        '今天很好'
    """

    vad: Vad = "auto"
    """Speech detector for long sound. auto: silero if installed, else energy. energy: by loudness. none: keep
    silence."""
    max_segment_s: Annotated[float, Interval(ge=2, le=300), Unit("s"), ADVANCED] = 20.0
    """Longest segment to recognize at once, in seconds; shorter sound is never cut."""

    def __post_init__(self) -> None:
        check_bounds(self)


def check_batch_seconds(batch_seconds: float) -> None:
    """Raise ValueError unless the duration of a batch is positive and finite."""
    if not 0 < batch_seconds < math.inf:
        raise ValueError(f"`batch_seconds` must be above 0 s and finite, but is {batch_seconds:g}.")
