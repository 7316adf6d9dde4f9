"""Detection of the Triton kernels that a device can run: device, version of Triton, C compiler."""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch


def can_use_kernels(device: torch.device) -> bool:
    """Return True on a GPU of compute capability 8.0 (Ampere) or later on which Triton compiles and starts kernels."""
    if device.type != "cuda" or not has_triton() or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return _starts_kernels(device)


@functools.cache
def has_triton() -> bool:
    """Return True if Triton 3.4 or later is installed, the versions that the kernels are tested with (torch 2.8 on)."""
    if importlib.util.find_spec("triton") is None:
        return False
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 4)


@functools.cache
def _starts_kernels(device: torch.device) -> bool:
    """Compile and start the smallest kernel, once per device; warn and return False if that fails."""
    from stateless_transducer.ops.lattice_triton import start_triton

    try:
        start_triton(device)
    # a missing compiler, missing headers and an unwritable cache each raise an error of their own type
    except Exception as err:
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        warnings.warn(
            f"Triton cannot start a kernel ({reason}). The transducer loss runs without its kernels, which is slower. "
            "Triton needs a C compiler and Python's headers (apt install gcc python3-dev).",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
