"""Interfaces of the encoders: of whole utterances, and of live sound.

CONTRIBUTING.md lists the files that a new encoder touches. Letters: N utterances or streams, T_in feature frames, F mel
bins, T encoder frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from stateless_transducer.model.chunks import FEATURE_FRAMES, WHOLE, ChunkChoices, Chunks
from stateless_transducer.ops.subsampling import Subsampling


class Encoder(nn.Module, ABC):
    """Encoder from features to encoder output. Subclasses set the attributes and override `stages` and `forward`."""

    output_dim: int
    """Width of the encoder output, D."""
    width: int
    """Width of the layers, on which noam's learning rate depends."""
    subsampling: Subsampling
    """Subsampling from feature frames to encoder frames."""
    recompute_stages: bool = False
    """Whether training recomputes the activations inside the stages for the gradient instead of storing them."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """Parts of the encoder from its input to its output.

        The first stage maps features to the width of the encoder. Training can freeze, compile and recompute stages,
        and set a learning rate per stage. Parameters outside of all stages belong to the top of the encoder.
        """

    @abstractmethod
    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features.

        Args:
            features: (N, T_in, F), padded with anything finite; T_in is at least ``subsampling.min_frames``.
            feature_lens: (N,).

        Returns:
            encoder_out (N, T, D), with undefined padding frames, and encoder_out_lens (N,), equal to
            ``subsampling.lens(feature_lens)``: 0 for an utterance that is too short for a frame.
        """


State = TypeVar("State", bound=tuple[Any, ...])
"""State of an encoder for N streams: named tuples of tensors, all of which have the streams on axis 0."""


class CausalEncoder(Encoder):
    """Encoder that can see an utterance in chunks, and so encode live sound with the same numbers.

    `forward` hides from a frame what its chunk does not see. `encode_chunk` gives the same frames chunk by chunk, from
    the features of a chunk and a state. Training draws the chunks of each batch; evaluation uses those of `use_chunks`.
    Subclasses set the attributes, override the abstract methods, and call `batch_chunks` in `forward`.
    """

    is_causal: bool
    """Whether the encoder is trained on chunks; if not, it sees whole utterances only."""
    chunk_choices: ChunkChoices
    """Chunks that it is trained on."""
    chunk_factor: int
    """Frames of 20 ms that chunk sizes must be a multiple of."""
    look_ahead: int
    """Feature frames after a chunk that its last encoder frame sees."""
    draws_chunks: bool = True
    """Whether training draws chunks; if not, it sees whole utterances."""
    _evaluation_chunks: Chunks | None = None

    def batch_chunks(self) -> Chunks:
        """Return the chunks of this batch: drawn anew in training, those of `use_chunks` otherwise."""
        if not self.is_causal:
            return WHOLE
        if not self.training:
            return self.evaluation_chunks
        return self.chunk_choices.draw() if self.draws_chunks else WHOLE

    @property
    def evaluation_chunks(self) -> Chunks:
        """Chunks of evaluation: those of `use_chunks`, and before it is called, the widest of training."""
        return self._evaluation_chunks or (self.chunk_choices.widest if self.is_causal else WHOLE)

    def use_chunks(self, size: int, left_frames: int) -> None:
        """Set the chunks of evaluation.

        Args:
            size: frames of 20 ms; -1: whole utterances.
            left_frames: frames of 20 ms before a chunk that it sees; -1: all.

        Raises:
            ValueError: the encoder is not causal, or a number does not fit its frame rates.
        """
        for name, value in (("chunk_size", size), ("left_context_frames", left_frames)):
            if value == -1:
                continue
            if not self.is_causal:
                raise ValueError(f"`{name}` must be -1, but is {value}: the model is not causal.")
            if value < 1 or value % self.chunk_factor:
                raise ValueError(f"`{name}` must be a multiple of {self.chunk_factor}, or -1, but is {value}.")
        self._evaluation_chunks = Chunks(size, left_frames)

    def live_chunks(self) -> Chunks:
        """Return the chunks of evaluation, for live sound.

        Raises:
            ValueError: they have no limits, and live sound has no whole.
        """
        chunks = self.evaluation_chunks
        for name, value in (("chunk_size", chunks.size), ("left_context_frames", chunks.left_frames)):
            if value < 0:
                raise ValueError(f"`{name}` must be above 0 to encode live sound, but is {value}; see `use_chunks`.")
        return chunks

    @property
    def chunk_shift(self) -> int:
        """Feature frames from the beginning of a chunk to that of the next one."""
        return FEATURE_FRAMES * self.evaluation_chunks.size

    @property
    def chunk_frames(self) -> int:
        """Feature frames that `encode_chunk` takes, T_in; the last ``look_ahead`` of them belong to the next chunk."""
        return self.chunk_shift + self.look_ahead

    @abstractmethod
    def initial_state(self, num_streams: int) -> tuple[Any, ...]:
        """Return the state of N new streams, on the device of the parameters.

        Raises:
            ValueError: see `live_chunks`.
        """

    @abstractmethod
    def encode_chunk(self, features: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Encode the next chunk of N streams, which may have begun at different times.

        Args:
            features: (N, T_in, F), see `chunk_frames`.
            state: of the streams, from `initial_state` or the last chunk; not modified.

        Returns:
            encoder_out (N, chunk_shift / subsampling.factor, D), and the next state.
        """


def join_states(states: Sequence[State]) -> State:
    """Join the states of streams to that of all of them."""
    return _mapped(torch.cat, states)


def row_of_state(state: State, row: int) -> State:
    """Return the state of one of N streams, which shares their memory."""
    return _mapped(lambda parts: parts[0][row : row + 1], [state])


def split_state(state: State) -> list[State]:
    """Split the state of N streams into N of one stream, which share its memory."""
    return [row_of_state(state, row) for row in range(num_streams(state))]


def num_streams(state: Any) -> int:
    """Return the number of streams of a state, N."""
    return len(state) if isinstance(state, Tensor) else num_streams(state[0])


def _mapped(function: Callable[[list[Tensor]], Tensor], states: Sequence[Any]) -> Any:
    """Apply a function to the tensors in the same place of all states."""
    if isinstance(states[0], Tensor):
        return function(list(states))
    parts = [_mapped(function, column) for column in zip(*states, strict=True)]
    # named tuples take their fields as arguments, plain ones take a list
    kind = cast("Callable[..., Any]", type(states[0]))
    return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)
