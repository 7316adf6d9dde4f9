"""Chunks in which a causal encoder sees an utterance: how training draws them, and who sees whom.

Lengths are in frames of 20 ms, whatever the encoder's own frame rate is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FRAME_MS = 20
"""Milliseconds of a frame."""
FEATURE_FRAMES = 2
"""Feature frames of a frame of 20 ms."""
CHUNK_MS, LEFT_MS = 320, 2560
"""Usual chunk and left context of live sound."""


class Chunks(NamedTuple):
    """Chunks of an utterance: each frame sees its chunk and a limited number of frames before it."""

    size: int
    """Frames of a chunk; -1: the whole utterance is one."""
    left_frames: int
    """Frames before a chunk that it sees, rounded down to chunks, at least one; -1: all."""

    @property
    def cached_frames(self) -> int:
        """Frames before a chunk that it sees, which a stream keeps; for chunks with both limits."""
        return max(self.left_frames // self.size, 1) * self.size

    def divided(self, factor: int) -> Chunks:
        """Return the same chunks in longer frames, of ``factor`` frames each."""
        return Chunks(*(number if number < 0 else number // factor for number in self))


WHOLE = Chunks(-1, -1)
"""One chunk: every frame sees every other one."""


class ChunkChoices(NamedTuple):
    """Chunks that an encoder is trained on."""

    sizes: tuple[int, ...]
    left_frames: tuple[int, ...]

    @property
    def widest(self) -> Chunks:
        """Chunks with which the encoder sees most."""
        # -1 is no limit
        size, left_frames = (max(numbers, key=lambda number: number % 2**62) for numbers in self)
        return Chunks(size, left_frames)

    def draw(self) -> Chunks:
        """Draw chunks from torch's generator, which training seeds for each update."""
        size = _drawn(self.sizes)
        return WHOLE if size == -1 else Chunks(size, _drawn(self.left_frames))


def _drawn(numbers: Sequence[int]) -> int:
    return numbers[int(torch.randint(len(numbers), (), device="cpu"))]


def chunk_mask(num_frames: int, chunks: Chunks, device: torch.device) -> Tensor:
    """Return (T, T), bool: True where the frame of the row sees the frame of the column.

    Args:
        num_frames: T.
        chunks: in the frames of the mask; not `WHOLE`.
        device: device of the result.
    """
    number = torch.arange(num_frames, device=device) // chunks.size
    distance = number[:, None] - number
    sees = distance >= 0
    return sees if chunks.left_frames < 0 else sees & (distance * chunks.size <= chunks.cached_frames)


def usual_ms(choices: ChunkChoices) -> tuple[int, int]:
    """Return the chunk and the left context of live sound, in milliseconds, that are nearest to the usual ones.

    Args:
        choices: chunks that the encoder is trained on. Where they have no limit, the usual numbers are returned.
    """
    chunk_ms, left_ms = (
        min((FRAME_MS * number for number in numbers if number > 0), key=lambda ms: abs(ms - usual), default=usual)
        for numbers, usual in zip(choices, (CHUNK_MS, LEFT_MS), strict=True)
    )
    return chunk_ms, left_ms


def chunks_of_ms(chunk_ms: int, left_ms: int, *, factor: int) -> Chunks:
    """Return the chunks of live sound, which have both limits.

    Args:
        chunk_ms: milliseconds of a chunk.
        left_ms: milliseconds before a chunk that it sees.
        factor: frames of 20 ms that both must be a multiple of, see `CausalEncoder.chunk_factor`.

    Raises:
        ValueError: a number is no multiple of the frames.
    """
    unit = FRAME_MS * factor
    for name, value in (("chunk_ms", chunk_ms), ("left_ms", left_ms)):
        if value < 1 or value % unit:
            nearest = max(1, round(value / unit)) * unit
            raise ValueError(f"`{name}` must be a multiple of {unit} ms, but is {value}. Pass {nearest}.")
    return Chunks(chunk_ms // FRAME_MS, left_ms // FRAME_MS)
