"""Array operations of the searches, for NumPy arrays and torch tensors alike.

The array API standard (`array_api_compat`) covers most of them; this file has the rest. It never imports torch:
a caller that passes tensors has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any
"""A NumPy array or a torch tensor. No protocol, since models that take one kind alone must match `TransducerModel`."""

_SMALL_K = 8

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def is_array(value: object) -> bool:
    """Return True for a NumPy array or a torch tensor."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def namespace(array: Array) -> Any:
    """Return the array API standard's functions for arrays of this kind."""
    return array_api_compat.numpy if isinstance(array, np.ndarray) else array_api_compat.array_namespace(array)


def is_on_host(array: Array) -> bool:
    """Return True if the values of an array can be read without waiting for a device."""
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def device_of(array: Array) -> Any:
    """Return the device of an array, as the standard's functions that create arrays take it."""
    return None if isinstance(array, np.ndarray) else array.device


def to_numpy(array: Array) -> np.ndarray:
    """Convert to a NumPy array."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def like(values: Any, array: Array) -> Array:
    """Convert values on the host to the kind and device of another array."""
    if isinstance(array, np.ndarray):
        return np.asarray(values)
    torch = sys.modules["torch"]
    return torch.as_tensor(values, device=array.device)


def top(x: Array, k: int) -> tuple[Array, Array]:
    """Return values and places of the k largest of each row, largest first: (R, V) to (R, k) each.

    If fewer than k are above -inf, the remaining values are -inf, and their places arbitrary.
    """
    if not isinstance(x, np.ndarray):
        return x.topk(k)
    if k > _SMALL_K:
        places = np.argpartition(x, x.shape[1] - k, axis=1)[:, -k:] if k < x.shape[1] else np.arange(k)[None]
        values = np.take_along_axis(x, np.broadcast_to(places, (len(x), k)), axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        places = np.take_along_axis(np.broadcast_to(places, values.shape), order, axis=1)
        return np.take_along_axis(values, order, axis=1), places
    # for few places, repeated argmax is three times as fast as a partition
    rest, rows = x.copy(), np.arange(len(x))
    values, places = np.empty((len(x), k), x.dtype), np.empty((len(x), k), np.int64)
    for i in range(k):
        places[:, i] = rest.argmax(1)
        values[:, i] = rest[rows, places[:, i]]
        rest[rows, places[:, i]] = -np.inf
    return values, places


def gather(x: Array, places: Array) -> Array:
    """Return ``x[r, places[r, i]]``: (R, K, ...) and (R, I) to (R, I, ...)."""
    xp = namespace(x)
    return x[xp.arange(x.shape[0], device=device_of(x))[:, None], places]


def log_sum_exp(x: Array) -> Array:
    """Return the log-sum-exp over the last axis: -inf if all are -inf, not finite if one is +inf or NaN."""
    if not isinstance(x, np.ndarray):
        return x.logsumexp(-1)
    largest = x.max(-1, keepdims=True)
    largest[largest == -np.inf] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = x - largest
        return np.log(np.exp(shifted, out=shifted).sum(-1)) + largest[..., 0]


def in_float32(x: Array) -> Array:
    """Convert to float32 at least."""
    if isinstance(x, np.ndarray):
        return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    return x if x.element_size() >= 4 else x.float()


def without_gradients(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a function without torch's gradients, if torch is loaded.

    Inference mode is not used: tensors that a caller's model caches in it could not be used in training afterwards.
    """

    @wraps(function)
    def quiet(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with _no_gradients():
            return function(*args, **kwargs)

    return quiet


def _no_gradients() -> AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return torch.no_grad() if torch is not None else nullcontext()
