"""What a search needs of a model, torch or other.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, V vocabulary, D joiner width.
"""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np

from stateless_transducer.decoding.arrays import Array, is_on_host


class Steps(Protocol):
    """What a search needs of a model once the encoder has run; it gives arrays of the kind that it is given."""

    blank_id: int
    context_size: int

    def predict(self, contexts: Array) -> Array:
        """(N, context_size) -> decoder_out (N, D)."""
        ...

    def join(self, encoder_out: Array, decoder_out: Array) -> Array:
        """(N, D) and (N, D) -> logits (N, V)."""
        ...


class Recognisable(Steps, Protocol):
    """What recognition needs of a model."""

    def encode(self, features: Array, feature_lens: Array) -> tuple[Array, Array]:
        """(N, T_in, F) and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,)."""
        ...


def on_host(model: Steps, encoder_out: Array, encoder_out_lens: Array) -> tuple[Steps, Array, Array]:
    """Torch tensors on the CPU become NumPy arrays, in the same memory, and the model one that takes them.

    A search is many small operations; NumPy starts each in a fraction of the time that torch does. Other arrays stay.
    """
    if isinstance(encoder_out, np.ndarray) or not is_on_host(encoder_out):
        return model, encoder_out, encoder_out_lens
    return _OnHost(model), encoder_out.detach().numpy(), encoder_out_lens.numpy()


class _OnHost:
    """A model of torch's that is asked in NumPy arrays."""

    def __init__(self, model: Steps) -> None:
        self._model, self.blank_id, self.context_size = model, model.blank_id, model.context_size

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        return self._model.predict(sys.modules["torch"].from_numpy(contexts)).numpy()

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        torch = sys.modules["torch"]
        logits = self._model.join(torch.from_numpy(encoder_out), torch.from_numpy(decoder_out))
        return logits.float().numpy()
