"""Endpoint detection of streams by sherpa-onnx's three rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Unit

from stateless_transducer.options import check_bounds

Seconds = Annotated[float, Gt(0), Unit("s")]


@dataclass(frozen=True)
class EndpointRules:
    """Endpoint rules: an utterance ends when one of three rules holds. Frames that give tokens are speech.

    Example:
        >>> rules = EndpointRules(rule2_min_trailing_silence=0.8)
        >>> rules.are_met(num_frames=300, num_silent_frames=90, frame_shift_s=0.01)
        True
    """

    rule1_min_trailing_silence: Seconds = 2.4
    """Seconds of silence that end an utterance, with or without speech in it."""
    rule2_min_trailing_silence: Seconds = 1.2
    """Seconds of silence after speech that end an utterance."""
    rule3_min_utterance_length: Seconds = 20.0
    """Seconds after which an utterance ends in any case."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def are_met(self, num_frames: int, num_silent_frames: int, frame_shift_s: float) -> bool:
        """Whether an utterance ends here.

        Args:
            num_frames: Feature frames of the utterance so far.
            num_silent_frames: Feature frames since the last token.
            frame_shift_s: Seconds from one feature frame to the next.
        """
        # float32 as in sherpa-onnx, where 120 frames are slightly less than 1.2 s
        length, silence = (np.float32(count) * np.float32(frame_shift_s) for count in (num_frames, num_silent_frames))
        return bool(
            silence >= np.float32(self.rule1_min_trailing_silence)
            or (length > silence >= np.float32(self.rule2_min_trailing_silence))
            or length >= np.float32(self.rule3_min_utterance_length)
        )
