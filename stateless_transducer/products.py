"""Choice of the library that multiplies float32 matrices on the CPU: torch's default or oneDNN.

On an AMD EPYC with AVX-512, oneDNN was 2.2 to 2.4 times as fast as torch's default, MKL. torch calls oneDNN only where
it may multiply in TF32 or bfloat16. A processor without instructions for these formats multiplies in float32 all the
same, which a self-test verifies.

The self-test takes about 0.3 s. Its result is stored in the user's cache for each processor and version of torch, so
that a resumed training has the same products. The environment variable `VARIABLE` fixes the choice.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from stateless_transducer.files import cache_folder, write_text

VARIABLE = "TRANSDUCER_PRODUCTS"
"""Environment variable: ``auto`` measures, the other names of `CHOICES` fix the choice."""
CHOICES = ("auto", "default", "onednn")

_DEFAULT = "default"
_PRECISIONS = {_DEFAULT: "ieee", "onednn": "bf16"}
"""Precision to allow in products, by choice: what torch checks before it calls oneDNN."""
SHAPES = ((160, 512, 2048), (330, 96, 384))
"""Rows, inputs and outputs of the products to time: a layer of the full model, and one of the demo's model."""
_ROUNDS = 7
_LEAST_GAIN = 1.2
"""Gain at one of the shapes from which oneDNN is chosen; less could be noise, and would differ from run to run."""
_MOST_LOSS = 0.95
"""Gain that every shape must have."""
_MOST_ERROR = 4.0
"""Largest error of oneDNN relative to the default's. Orders of summation differ by 2 to 3, bfloat16 by 10,000."""


@dataclass(frozen=True)
class Products:
    """Measured products."""

    choice: str
    """``default`` or ``onednn``."""
    reason: str
    """Reason for the choice, for people."""
    gains: tuple[float, ...] = ()
    """Speed of oneDNN relative to the default, by shape; empty if nothing was measured."""
    errors: tuple[float, ...] = ()
    """Largest error of the default and of oneDNN against float64, relative to the largest value; or empty."""


def use_fastest_products() -> Products:
    """Let torch multiply float32 matrices on the CPU with the faster library, for the whole process.

    Products on a GPU and other precisions are not affected. Nothing is changed if the caller has chosen a precision
    with ``torch.backends.mkldnn.matmul.fp32_precision`` or ``torch.set_float32_matmul_precision``.

    Raises:
        ValueError: `VARIABLE` has an unknown value.
    """
    products = choose_products()
    if products.choice != _DEFAULT and _is_untouched():
        _set_precision(_PRECISIONS[products.choice])
    return products


def choose_products() -> Products:
    """Return the choice of the environment, of the cache, or of a new self-test.

    Raises:
        ValueError: `VARIABLE` has an unknown value.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"`{VARIABLE}` must be one of {', '.join(CHOICES)}, but is {choice!r}.")
    if not _has_switch():
        return Products(_DEFAULT, "this build of torch has no choice")
    return _measured() if choice == "auto" else Products(choice, f"{VARIABLE} is {choice}")


@functools.cache
def _measured() -> Products:
    """Return the result of the self-test, from the cache of the user if it is there."""
    path, key = cache_folder() / "products.json", f"{processor()}, {_capability()}, torch {torch.__version__}"
    stored: dict[str, dict] = {}
    # a damaged or unreadable cache is measured anew
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
        facts = stored[key]
        # a later version may know other choices
        if facts["choice"] in _PRECISIONS:
            gains, errors = (tuple(map(float, facts[name])) for name in ("gains", "errors"))
            return Products(facts["choice"], str(facts["reason"]), gains, errors)
    products = measure_products()
    with suppress(OSError):
        write_text(path, json.dumps({**stored, key: asdict(products)}, indent=2) + "\n")
    return products


def measure_products() -> Products:
    """Compare speed and error of the default and of oneDNN, on one thread, in turn."""
    num_threads, generator = torch.get_num_threads(), torch.Generator().manual_seed(0)
    torch.set_num_threads(1)
    try:
        errors = _errors(generator)
        if errors is None:
            return Products(_DEFAULT, "oneDNN offers no other products on this processor")
        if errors[1] > _MOST_ERROR * errors[0]:
            return Products(_DEFAULT, "oneDNN's products are not exact to float32 on this processor", (), errors)
        gains = tuple(_gain(*shape, generator) for shape in SHAPES)
    finally:
        torch.set_num_threads(num_threads)
    if max(gains) >= _LEAST_GAIN and min(gains) >= _MOST_LOSS:
        return Products("onednn", "oneDNN's products are faster and exact to float32", gains, errors)
    return Products(_DEFAULT, "oneDNN's products are not faster at all sizes", gains, errors)


def _errors(generator: torch.Generator) -> tuple[float, float] | None:
    """Return the errors of the default and of oneDNN; None if both give the same bits, so that there is one library."""
    R, I, O = 64, 2048, 64  # noqa: E741
    x, weight = torch.randn(R, I, generator=generator), torch.randn(O, I, generator=generator)
    exact = x.double() @ weight.double().T
    results: list[Tensor] = []
    for precision in _PRECISIONS.values():
        with _precision(precision):
            results.append(x @ weight.T)
    if torch.equal(*results):
        return None
    default, other = (((result - exact).abs().max() / exact.abs().max()).item() for result in results)
    return default, other


def _gain(num_rows: int, num_inputs: int, num_outputs: int, generator: torch.Generator) -> float:
    """Return the speed of oneDNN relative to the default in the three products of a training step."""
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    seconds: dict[str, list[float]] = {precision: [] for precision in _PRECISIONS.values()}
    for number in range(_ROUNDS):
        # oneDNN prepares each new shape, and training has new ones all the time
        x = torch.randn(num_rows + number, num_inputs, generator=generator)
        gradient = torch.randn(num_rows + number, num_outputs, generator=generator)
        for precision, times in seconds.items():
            with _precision(precision):
                started = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                torch.mm(gradient, weight)
                torch.mm(gradient.T, x)
                times.append(time.perf_counter() - started)
    # the fastest round: others may have been interrupted on a busy machine
    default, other = map(min, seconds.values())
    return default / other


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore
    _set_precision(precision)
    try:
        yield
    finally:
        _set_precision(before)


def _set_precision(precision: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = precision  # pyright: ignore


def _has_switch() -> bool:
    """Return whether torch has oneDNN, and a precision for its products alone (from torch 2.9 on)."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.backends.mkldnn, "matmul")


def _is_untouched() -> bool:
    return torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")  # pyright: ignore


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def processor() -> str:
    """Return the name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
