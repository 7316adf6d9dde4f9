"""Numbers of encoder frames for numbers of feature frames. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from annotated_types import Interval

from stateless_transducer.options import check_bounds

if TYPE_CHECKING:
    from torch import Tensor

Lens = TypeVar("Lens", "Tensor", np.ndarray)


@dataclass(frozen=True)
class Subsampling:
    """Encoder frame t begins with feature frame ``factor * t`` and needs ``min_frames`` of them."""

    factor: Annotated[int, Interval(ge=1, le=1000)]
    """Feature frames from one encoder frame to the next."""
    min_frames: Annotated[int, Interval(ge=1, le=1000)]
    """Fewest feature frames that give an encoder frame."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def lens(self, feature_lens: Lens) -> Lens:
        """Return the number of encoder frames for each number of feature frames.

        Args:
            feature_lens: (N,), integer, a torch tensor or a NumPy array.
        """
        # a sum above zero from the second frame on: an exported graph rounds quotients below zero up
        return ((feature_lens - self.min_frames + self.factor) // self.factor).clip(0)

    def center(self, frame: int) -> int:
        """Return the feature frame in the middle of those that an encoder frame needs."""
        return self.factor * frame + self.min_frames // 2
