"""Protocols of the models that a search takes, torch or other.

Letters: N utterances or hypotheses, T_in feature frames, F mel bins, T encoder frames, V vocabulary, D joiner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stateless_transducer.decoding.arrays import Array
from stateless_transducer.features import FbankConfig
from stateless_transducer.ops.subsampling import Subsampling


class TransducerSteps(Protocol):
    """Decoder and joiner of a transducer: the model as a search sees it after the encoder has run.

    Both methods return arrays of the kind that they are given, NumPy or torch. A call holds N hypotheses of any
    utterances on any frames, so rows must not depend on one another: put networks into evaluation mode. The search
    does not write to the arrays that it gets.

    Example:
        >>> class Unigram:
        ...     blank_id, context_size = 0, 1
        ...
        ...     def predict(self, contexts):
        ...         return np.zeros((len(contexts), 3), np.float32)
        ...
        ...     def join(self, encoder_out, decoder_out):
        ...         return encoder_out + decoder_out
        >>> model: TransducerSteps = Unigram()
        >>> encoder_out = np.array([[[0, 2, 1], [2, 0, 1], [0, 1, 2]]], np.float32)
        >>> greedy_search(model, encoder_out, np.array([3]))[0].tokens
        (1, 2)
    """

    blank_id: int
    """Id of the blank."""
    context_size: int
    """Number of tokens that the decoder sees."""

    def predict(self, contexts: Array) -> Array:
        """Run the decoder: contexts (N, context_size), int64, to decoder_out (N, D).

        A context is the last tokens of a hypothesis, with blanks before the first.
        """
        ...

    def join(self, encoder_out: Array, decoder_out: Array) -> Array:
        """Run the joiner: (N, D) and (N, D) to logits (N, V)."""
        ...


class TransducerModel(TransducerSteps, Protocol):
    """A whole transducer: encoder, decoder and joiner.

    Example:
        >>> model: TransducerModel = load_checkpoint("model.pt").model()
        >>> encoder_out, lens = model.encode(torch.zeros(1, 100, 80), torch.tensor([100]))
        >>> encoder_out.shape
        torch.Size([1, 24, 32])
    """

    subsampling: Subsampling
    """Numbers of encoder frames for numbers of feature frames."""

    def encode(self, features: Array, feature_lens: Array) -> tuple[Array, Array]:
        """Run the encoder: (N, T_in, F) and (N,) to encoder_out (N, T, D) and encoder_out_lens (N,)."""
        ...


class StreamingTransducer(TransducerSteps, Protocol):
    """A transducer that encodes live sound chunk by chunk. It never changes, so threads and streams may share it."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens, blank included."""
        ...

    @property
    def fbank_config(self) -> FbankConfig:
        """Front end of the encoder."""
        ...

    @property
    def subsampling(self) -> Subsampling:
        """Feature frames of an encoder frame."""
        ...

    @property
    def chunk_frames(self) -> int:
        """Feature frames of a chunk with its look-ahead, T_in."""
        ...

    @property
    def chunk_shift(self) -> int:
        """Feature frames from the beginning of a chunk to that of the next one."""
        ...

    def initial_state(self) -> Any:
        """Return the encoder's state of a new stream."""
        ...

    def encode_chunk(self, features: np.ndarray, states: Sequence[Any]) -> tuple[Array, list[Any]]:
        """Encode the next chunk of N streams, which may have begun at different times.

        Args:
            features: (N, T_in, F), float32.
            states: N states, one per stream; not modified.

        Returns:
            encoder_out (N, T, D), and the N next states.
        """
        ...
