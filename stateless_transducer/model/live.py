"""Layout of a causal transducer for live sound: chunk by chunk, for any number of streams at once.

Letters: N streams, T_in feature frames of a chunk, F mel bins, T encoder frames of a chunk, V vocabulary,
D joiner width, C tokens of context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stateless_transducer.features import FbankConfig
from stateless_transducer.model.chunks import chunks_of_ms, usual_ms
from stateless_transducer.model.encoder import CausalEncoder, join_states, num_streams, row_of_state
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.ops.subsampling import Subsampling


class LiveState(NamedTuple):
    """State of the encoder for one stream: a row of the state of the streams that were encoded together."""

    batch: tuple[Any, ...]
    row: int


def live_encoder(model: Transducer, *, chunk_ms: int | None, left_ms: int | None) -> CausalEncoder:
    """Return the encoder of a model, with the chunks of live sound.

    Args:
        model: transducer whose encoder is set to the chunks.
        chunk_ms: milliseconds of a chunk; None: of those that the model is trained on, the nearest to 320.
        left_ms: milliseconds before a chunk that it sees; None: likewise the nearest to 2560.

    Raises:
        ValueError: the model needs whole utterances, or its frame rates do not divide a duration.
    """
    encoder = model.encoder
    if not isinstance(encoder, CausalEncoder) or not encoder.is_causal:
        raise ValueError(
            "The model needs whole utterances. Train one for live sound with `transducer train --causal true`."
        )
    usual_chunk_ms, usual_left_ms = usual_ms(encoder.chunk_choices)
    chunk_ms = usual_chunk_ms if chunk_ms is None else chunk_ms
    left_ms = usual_left_ms if left_ms is None else left_ms
    encoder.use_chunks(*chunks_of_ms(chunk_ms, left_ms, factor=encoder.chunk_factor))
    return encoder


class LiveTransducer:
    """Transducer for streams, with the outputs of the causal `Transducer` that it is made from.

    A state stays part of its batch: streams that are encoded together again, in the same order, copy nothing.
    """

    def __init__(
        self,
        model: Transducer,
        fbank_config: FbankConfig,
        *,
        chunk_ms: int | None = None,
        left_ms: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Lay out a model on its device, and take it over: the chunks of its encoder are set.

        Args:
            model: transducer in evaluation mode.
            fbank_config: front end of the model.
            chunk_ms: milliseconds of a chunk, see `live_encoder`.
            left_ms: milliseconds before a chunk that it sees, see `live_encoder`.
            dtype: dtype of matrix products, float32 or bfloat16.

        Raises:
            ValueError: see `live_encoder`.
        """
        encoder = live_encoder(model, chunk_ms=chunk_ms, left_ms=left_ms)
        self._normalize, self._encoder, self._project = model.normalizer, encoder, model.joiner.encoder_proj
        self._steps, self._device, self._dtype = FrozenTransducer(model, dtype=dtype), model.device, dtype
        self.blank_id: int = model.blank_id
        self.context_size: int = model.context_size
        self.vocab_size: int = model.vocab_size
        self.fbank_config: FbankConfig = fbank_config
        self.subsampling: Subsampling = model.subsampling
        self.chunk_frames: int = encoder.chunk_frames
        """T_in, feature frames per chunk."""
        self.chunk_shift: int = encoder.chunk_shift
        """Feature frames from the beginning of a chunk to that of the next one."""

    def initial_state(self) -> LiveState:
        """Return the state of a new stream."""
        return LiveState(self._encoder.initial_state(1), 0)

    @torch.inference_mode()
    def encode_chunk(self, features: np.ndarray, states: Sequence[LiveState]) -> tuple[Tensor, list[LiveState]]:
        """Encode the next chunk of each stream.

        Args:
            features: (N, T_in, F), float32.
            states: N states; not modified.

        Returns:
            encoder_out (N, T, D), float32, and the N next states.
        """
        is_narrow = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype) if is_narrow else contextlib.nullcontext():
            normalized = self._normalize(torch.from_numpy(features).to(self._device))
            frames, batch = self._encoder.encode_chunk(normalized, _joined(states))
            encoder_out = self._project(frames)
        return encoder_out.float(), [LiveState(batch, row) for row in range(len(states))]

    def predict(self, contexts: Tensor) -> Tensor:
        """Map contexts (N, C) to decoder outputs (N, D)."""
        return self._steps.predict(contexts)

    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder and decoder outputs, (N, D) each, to logits (N, V), float32."""
        return self._steps.join(encoder_out, decoder_out)


def _joined(states: Sequence[LiveState]) -> tuple[Any, ...]:
    """Return the state of all streams, without a copy if it is that of a batch."""
    first = states[0].batch
    is_one_batch = all(state.batch is first for state in states)
    if is_one_batch and [state.row for state in states] == list(range(num_streams(first))):
        return first
    return join_states([row_of_state(state.batch, state.row) for state in states])
