"""Checks and conversion of the arguments that all searches share.

Letters: N utterances, T encoder frames, V vocabulary, D joiner width.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from stateless_transducer.decoding.arrays import Array, is_array, is_on_host, like, to_numpy
from stateless_transducer.decoding.protocols import TransducerSteps


def search_inputs(
    model: TransducerSteps, encoder_out: Array, encoder_out_lens: Array
) -> tuple[TransducerSteps, Array, Array]:
    """Check model and encoder output, and convert them to the arrays that the search works on.

    Torch tensors on the CPU become NumPy arrays, without a copy if they are float32, and the model is wrapped to take
    NumPy arrays. A search consists of many small operations, which NumPy starts in a fraction of torch's time. Other
    arrays stay as they are.

    Raises:
        ValueError: a type, shape or length is invalid. The returned model raises it for invalid logits or decoder
            outputs.
    """
    for name, array, axes in (
        ("encoder_out", encoder_out, "(N, T, D)"),
        ("encoder_out_lens", encoder_out_lens, "(N,)"),
    ):
        if not is_array(array):
            raise ValueError(
                f"`{name}` must be a torch tensor or a NumPy array {axes}, but is a {type(array).__name__}. "
                "Convert it with torch.as_tensor or numpy.asarray."
            )
    shape, lens = tuple(encoder_out.shape), to_numpy(encoder_out_lens)
    if len(shape) != 3:
        raise ValueError(f"`encoder_out` must be (N, T, D), but is {shape}.")
    N, T, _ = shape
    if lens.shape != (N,) or lens.dtype.kind not in "iu":
        raise ValueError(
            f"`encoder_out_lens` must be {N} integers, one for each row of `encoder_out` {shape}, "
            f"but is {lens.shape} of {lens.dtype}."
        )
    outside = lens[(lens < 0) | (lens > T)]
    if len(outside):
        raise ValueError(f"`encoder_out_lens` must be in 0..{T}, but holds {outside[0]}.")
    if isinstance(encoder_out, np.ndarray):
        return _CheckedSteps(model), encoder_out, lens
    if not is_on_host(encoder_out):
        return _CheckedSteps(model), encoder_out, like(encoder_out_lens, encoder_out)
    return _CheckedSteps(_NumpySteps(model, encoder_out.dtype)), encoder_out.detach().float().numpy(), lens


class _CheckedSteps:
    """A model whose outputs are checked for their shapes."""

    def __init__(self, model: TransducerSteps) -> None:
        self._model, self.blank_id, self.context_size = model, model.blank_id, model.context_size

    def predict(self, contexts: Array) -> Array:
        decoder_out = self._model.predict(contexts)
        if decoder_out.ndim != 2 or len(decoder_out) != len(contexts):
            raise ValueError(
                f"The model's `predict` must return decoder_out ({len(contexts)}, D) for contexts "
                f"{tuple(contexts.shape)}, but returned {tuple(decoder_out.shape)}."
            )
        return decoder_out

    def join(self, encoder_out: Array, decoder_out: Array) -> Array:
        logits = self._model.join(encoder_out, decoder_out)
        if logits.ndim != 2 or len(logits) != len(encoder_out):
            raise ValueError(
                f"The model's `join` must return logits ({len(encoder_out)}, V) for two arrays "
                f"{tuple(encoder_out.shape)}, but returned {tuple(logits.shape)}."
            )
        return logits


class _NumpySteps:
    """A torch model that takes and returns NumPy arrays of float32, whatever dtype it computes in."""

    def __init__(self, model: TransducerSteps, dtype: Any) -> None:
        self._model, self._dtype = model, dtype
        self.blank_id, self.context_size = model.blank_id, model.context_size

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        return self._model.predict(sys.modules["torch"].from_numpy(contexts)).float().numpy()

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        torch = sys.modules["torch"]
        tensors = (torch.from_numpy(array).to(self._dtype) for array in (encoder_out, decoder_out))
        return self._model.join(*tensors).float().numpy()
