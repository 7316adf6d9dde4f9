"""What the searches need of arrays, the same for NumPy arrays and for torch tensors.

The array API standard (`array_api_compat`) has most of it under one name; here is the rest. Torch is never imported
here: who hands in tensors has it.
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
"""A NumPy array or a torch tensor."""

_SMALL_K = 8

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def is_array(value: object) -> bool:
    """Whether it is one of the two."""
    torch = sys.modules.get("torch")
    return isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor))


def namespace(array: Array) -> Any:
    """The standard's functions for arrays of this kind."""
    return array_api_compat.numpy if isinstance(array, np.ndarray) else array_api_compat.array_namespace(array)


def is_on_host(array: Array) -> bool:
    """Whether looking at the values of an array costs nothing; elsewhere it waits for the device."""
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def device_of(array: Array) -> Any:
    """For the standard's functions that make arrays."""
    return None if isinstance(array, np.ndarray) else array.device


def to_numpy(array: Array) -> np.ndarray:
    """The same on the host."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def like(values: Any, array: Array) -> Array:
    """Values on the host as an array of the kind, and on the device, of another."""
    if isinstance(array, np.ndarray):
        return np.asarray(values)
    torch = sys.modules["torch"]
    return torch.as_tensor(values, device=array.device)


def top(x: Array, k: int) -> tuple[Array, Array]:
    """(R, V) -> values and places of the k largest of each row, largest first, (R, k) each.

    Where fewer than k are above -inf, the values of the rest are -inf, and their places any.
    """
    if not isinstance(x, np.ndarray):
        return x.topk(k)
    if k > _SMALL_K:
        places = np.argpartition(x, x.shape[1] - k, axis=1)[:, -k:] if k < x.shape[1] else np.arange(k)[None]
        values = np.take_along_axis(x, np.broadcast_to(places, (len(x), k)), axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        places = np.take_along_axis(np.broadcast_to(places, values.shape), order, axis=1)
        return np.take_along_axis(values, order, axis=1), places
    # a few times the largest is three times as fast as a partition
    rest, rows = x.copy(), np.arange(len(x))
    values, places = np.empty((len(x), k), x.dtype), np.empty((len(x), k), np.int64)
    for i in range(k):
        places[:, i] = rest.argmax(1)
        values[:, i] = rest[rows, places[:, i]]
        rest[rows, places[:, i]] = -np.inf
    return values, places


def gather(x: Array, places: Array) -> Array:
    """``x[r, places[r, i]]``: (R, K, ...) and (R, I) -> (R, I, ...)."""
    xp = namespace(x)
    return x[xp.arange(x.shape[0], device=device_of(x))[:, None], places]


def log_sum_exp(x: Array) -> Array:
    """Over the last axis; -inf where all are, no finite number where one is +inf or NaN."""
    if not isinstance(x, np.ndarray):
        return x.logsumexp(-1)
    largest = x.max(-1, keepdims=True)
    largest[largest == -np.inf] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = x - largest
        return np.log(np.exp(shifted, out=shifted).sum(-1)) + largest[..., 0]


def in_float32(x: Array) -> Array:
    """The same in float32 at least."""
    if isinstance(x, np.ndarray):
        return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    return x if x.element_size() >= 4 else x.float()


def without_gradients(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a function without torch's gradients, where torch is in use at all.

    Not in inference mode: what somebody's model makes on the way and keeps could not be trained with afterwards.
    """

    @wraps(function)
    def quiet(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with _no_gradients():
            return function(*args, **kwargs)

    return quiet


def _no_gradients() -> AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return torch.no_grad() if torch is not None else nullcontext()
