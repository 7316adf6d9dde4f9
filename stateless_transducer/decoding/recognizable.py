"""What a search needs of a model, torch or other.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, V vocabulary, D joiner width.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import numpy as np

from stateless_transducer.decoding.arrays import Array, is_array, is_on_host, like, to_numpy
from stateless_transducer.ops.subsampling import Subsampling


class Steps(Protocol):
    """What a search needs of a model once the encoder has run; it gives arrays of the kind that it is given.

    It is asked about N hypotheses at once, whichever utterances and frames they belong to. Rows must not depend on one
    another: a network is to be in evaluation mode. What it gives is not written to.
    """

    blank_id: int
    context_size: int

    def predict(self, contexts: Array) -> Array:
        """(N, context_size), int64, the last tokens, blanks before the first -> decoder_out (N, D)."""
        ...

    def join(self, encoder_out: Array, decoder_out: Array) -> Array:
        """(N, D) and (N, D) -> logits (N, V)."""
        ...


class Recognizable(Steps, Protocol):
    """What recognition needs of a model."""

    subsampling: Subsampling
    """Encoder frames for feature frames."""

    def encode(self, features: Array, feature_lens: Array) -> tuple[Array, Array]:
        """(N, T_in, F) and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,)."""
        ...


def search_inputs(model: Steps, encoder_out: Array, encoder_out_lens: Array) -> tuple[Steps, Array, Array]:
    """Model and frames as a search works with them, checked.

    Torch tensors on the CPU become NumPy arrays, in the same memory where they are float32, and the model one that
    takes them: a search is many small operations, and NumPy starts each in a fraction of the time that torch does.
    Other arrays stay.

    Raises:
        ValueError: shapes or lens cannot be; of the model's answers, when it gives them.
    """
    for name, array, axes in (
        ("encoder_out", encoder_out, "(N, T, D)"),
        ("encoder_out_lens", encoder_out_lens, "(N,)"),
    ):
        if not is_array(array):
            raise ValueError(
                f"`{name}` must be a torch tensor or a NumPy array {axes}, but is a {type(array).__name__}; "
                "torch.as_tensor and numpy.asarray make one."
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
        return _Checked(model), encoder_out, lens
    if not is_on_host(encoder_out):
        return _Checked(model), encoder_out, like(encoder_out_lens, encoder_out)
    return _Checked(_OnHost(model, encoder_out.dtype)), encoder_out.detach().float().numpy(), lens


class _Checked:
    """A model whose answers have the shapes that they must have."""

    def __init__(self, model: Steps) -> None:
        self._model, self.blank_id, self.context_size = model, model.blank_id, model.context_size

    def predict(self, contexts: Array) -> Array:
        decoder_out = self._model.predict(contexts)
        if decoder_out.ndim != 2 or len(decoder_out) != len(contexts):
            wanted = f"contexts {tuple(contexts.shape)} must give decoder_out ({len(contexts)}, D)"
            raise ValueError(f"The model's `predict`: {wanted}, but they give {tuple(decoder_out.shape)}.")
        return decoder_out

    def join(self, encoder_out: Array, decoder_out: Array) -> Array:
        logits = self._model.join(encoder_out, decoder_out)
        if logits.ndim != 2 or len(logits) != len(encoder_out):
            wanted = f"two {tuple(encoder_out.shape)} must give logits ({len(encoder_out)}, V)"
            raise ValueError(f"The model's `join`: {wanted}, but they give {tuple(logits.shape)}.")
        return logits


class _OnHost:
    """A model of torch's that is asked in NumPy arrays of float32, whatever it computes in."""

    def __init__(self, model: Steps, dtype: Any) -> None:
        self._model, self._dtype = model, dtype
        self.blank_id, self.context_size = model.blank_id, model.context_size

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        return self._model.predict(sys.modules["torch"].from_numpy(contexts)).float().numpy()

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        torch = sys.modules["torch"]
        rows = (torch.from_numpy(each).to(self._dtype) for each in (encoder_out, decoder_out))
        return self._model.join(*rows).float().numpy()
