"""Sizes of a Zipformer that a file of icefall does not show."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class IcefallSizes:
    """Sizes that a pretrained.pt of icefall's Zipformer does not show: a number for each stack, or one for all."""

    num_heads: tuple[int, ...] = ()
    """Attention heads of each stack, such as 4,4,4,8,4,4."""
    chunk_size: tuple[int, ...] = ()
    """Lengths of chunks that a causal model was trained with, such as 16,32,64,-1."""
    left_context_frames: tuple[int, ...] = ()
    """Frames before a chunk that a causal model was trained with, such as 64,128,256,-1."""
    encoder_unmasked_dim: tuple[int, ...] = ()
    """Channels of each stack that training never masks; only fine-tuning uses them."""

    @property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """The sizes that were set."""
        sizes = {size.name: getattr(self, size.name) for size in fields(self)}
        return {name: value for name, value in sizes.items() if value}
