"""Adjustments of logits, and the order of a batch, shared by all searches.

Letters: N utterances, T encoder frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from annotated_types import Gt

from stateless_transducer.decoding.arrays import Array, in_float32, like, to_numpy
from stateless_transducer.options import check_bounds

Row = TypeVar("Row")


@dataclass(frozen=True)
class LogitOptions:
    """Adjustments of the model's distribution before a search sees it.

    Example:
        >>> LogitOptions(blank_penalty=1.0).adjust(np.zeros((1, 3), np.float32), blank_id=0)
        array([[-1.,  0.,  0.]], dtype=float32)
    """

    blank_penalty: float = 0.0
    """Subtracted from the blank's logit; higher values give fewer deletions and more insertions."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divisor of the logits; above 1 flattens the distribution."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def adjust(self, logits: Array, blank_id: int) -> Array:
        """Return the adjusted logits, (..., V), in float32 at least."""
        logits = in_float32(logits)
        if self.temperature == 1 and not self.blank_penalty:
            return logits
        # a new array, since the given one belongs to the model
        logits = logits / self.temperature
        if self.blank_penalty:
            logits[..., blank_id] -= self.blank_penalty
        return logits


PLAIN = LogitOptions()
"""No adjustment."""


def check_beam_size(beam_size: int) -> None:
    """Raises ValueError."""
    if beam_size < 1:
        raise ValueError(f"`beam_size` must be at least 1, but is {beam_size}.")


@dataclass(frozen=True)
class Schedule:
    """A batch sorted by length, longest first, so that on each frame the utterances still running are a prefix."""

    order: Array
    """(N,), int64: utterance of each sorted row."""
    running: list[int]
    """Number of running rows on each of the T frames."""
    lens: np.ndarray
    """(N,), int64, sorted."""

    @classmethod
    def of(cls, encoder_out_lens: Array) -> Schedule:
        """Sort a batch; waits for the device, before the first frame."""
        lens = to_numpy(encoder_out_lens).astype(np.int64)
        order = np.argsort(-lens, kind="stable")
        longest = int(lens.max()) if len(lens) else 0
        ended = np.bincount(lens, minlength=longest + 1)[:longest].cumsum()
        return cls(like(order, encoder_out_lens), (len(lens) - ended).tolist(), lens[order])

    def unsort(self, rows: Sequence[Row]) -> list[Row]:
        """Return sorted rows in the caller's order."""
        by_place = dict(zip(self.order.tolist(), rows, strict=True))
        return [by_place[place] for place in range(len(rows))]
