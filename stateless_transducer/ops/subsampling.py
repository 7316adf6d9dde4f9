"""How encoder frames follow from feature frames. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Lens = TypeVar("Lens", "Tensor", np.ndarray)


@dataclass(frozen=True)
class Subsampling:
    """Encoder frame t begins with feature frame ``factor * t`` and needs ``min_frames`` of them."""

    factor: int
    """Feature frames from one encoder frame to the next."""
    min_frames: int
    """Fewest feature frames that give an encoder frame."""

    def __post_init__(self) -> None:
        for name in ("factor", "min_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)}.")

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
