"""A GPU of pretence: tensors that say they are on ``cuda:0`` and compute on the CPU.

On a machine without a GPU it holds the code to a GPU's rules: an operation of tensors on both devices is an error, and
whatever makes the host wait for the device is noted. The numbers are right. It does not show what CUDA's own kernels
do, nor autocast in the model (`is_cuda` is a question of C++'s, which it answers with no), nor how fast anything is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)

_COPIES = ("aten::_to_copy", "aten::copy_")
# CUDA takes places on the CPU for these, and waits
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# CUDA reads two lengths, from this argument on, on the CPU
_LENGTHS = {"aten::_ctc_loss": 2, "aten::_ctc_loss_backward": 3}
_CONCATENATED = ("aten::cat", "aten::stack")
# the size or the Python number that comes out is known when the device has computed it
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive")


class GpuTensor(torch.Tensor):
    """Numbers on the CPU, in a tensor that has none, with the keys of CUDA's autograd."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> GpuTensor:
        outside = torch.empty(0, dtype=numbers.dtype, device="meta")
        outside = outside.as_strided(numbers.shape, numbers.stride(), numbers.storage_offset())
        self = torch.Tensor._make_subclass(cls, outside, numbers.requires_grad, device_for_backend_keys=GPU)
        self.numbers = numbers
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda, is_cpu, is_meta = True, False, False

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a pretended GPU's tensors, which is gone.")

    @property
    def device(self):
        return GPU

    def get_device(self):
        return GPU.index

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def __repr__(self):
        return f"GpuTensor({self.numbers})"

    def __reduce_ex__(self, protocol):
        # what is saved is loaded onto the CPU
        return self.numbers.detach().__reduce_ex__(protocol)


class PretendedGpu(TorchDispatchMode):
    """Computes for `GpuTensor`s, and makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """Operations for which the host waited."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # in inference mode, what is made of other operations comes whole
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        from_gpu, place = any(isinstance(each, GpuTensor) for each in tensors), kwargs.get("device")
        # C++ says "meta" where it asks one of ours for its device
        to_gpu = from_gpu if place is None else torch.device(place).type in ("cuda", "meta")
        if place is not None:
            kwargs["device"] = torch.device("cpu")
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        if not from_gpu and not to_gpu:
            return func(*args, **kwargs)
        name = func._schema.name
        _check_places(name, args, tensors)
        if _has_to_wait(name, args, kwargs, from_gpu=from_gpu, to_gpu=to_gpu):
            self.waits.append(name)
        result = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
        arguments, returns = func._schema.arguments, func._schema.returns
        written = [
            args[i] if i < len(args) else kwargs[argument.name]
            for i, argument in enumerate(arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if written:
            return None if not returns else written[0] if len(returns) == 1 else tuple(written)
        if not to_gpu:
            return result
        # in inference mode, views of other tensors stay such
        is_view = any(each.alias_info is not None for each in returns)
        with torch.inference_mode(
            torch.is_inference_mode_enabled() and not (is_view and not tensors[0].is_inference())
        ):
            return tree_map(_outside, result)


def _inside(value):
    return value.numbers if isinstance(value, GpuTensor) else value


def _outside(value):
    return GpuTensor(value) if isinstance(value, torch.Tensor) else value


def _check_places(name: str, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Raise RuntimeError, as CUDA does, where an operation would take numbers of both devices."""
    if name in _COPIES:
        return
    if name in _INDEXED and isinstance(args[0], GpuTensor):
        tensors = [args[0], *args[2:3]]
    elif name in _LENGTHS:
        tensors = list(args[: _LENGTHS[name]])
    strangers = [each for each in tensors if not isinstance(each, GpuTensor)]
    # a single number may come from anywhere
    if any(each.dim() or name in _CONCATENATED for each in strangers):
        found = ", ".join(f"{each.device}{tuple(each.shape)}" for each in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} has {found}.")


def _has_to_wait(name: str, args: tuple, kwargs: dict, *, from_gpu: bool, to_gpu: bool) -> bool:
    if name == "aten::_to_copy":
        return from_gpu != to_gpu and not (to_gpu and kwargs.get("non_blocking"))
    if name == "aten::copy_":
        return isinstance(args[0], GpuTensor) != isinstance(args[1], GpuTensor)
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    if name in _LENGTHS:
        return any(isinstance(each, GpuTensor) for each in args[_LENGTHS[name] :][:2])
    if name in _INDEXED:
        return any(not isinstance(each, GpuTensor) or each.dtype == torch.bool for each in args[1] if each is not None)
    return from_gpu and name.removeprefix("aten::") in _WAITS


class _Kernel:
    """A kernel of Triton's for `GpuTensor`s, interpreted."""

    def __init__(self, kernel) -> None:
        self._kernel = kernel

    def __getitem__(self, grid):
        def start(*args, **options):
            strangers = [
                each.shape for each in args if isinstance(each, torch.Tensor) and not isinstance(each, GpuTensor)
            ]
            assert not strangers, f"tensors of the CPU are handed to a kernel: {strangers}"
            with torch.utils._python_dispatch._disable_current_modes():
                self._kernel[grid](*map(_inside, args), **options)

        return start


@contextmanager
def pretended_gpu(*, has_kernels: bool = False) -> Iterator[PretendedGpu]:
    """As long as it lasts, there is one GPU, new enough for Triton's kernels or not."""
    facts = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: GPU.index,
        "set_device": lambda device: None,
        "is_bf16_supported": lambda *args, **options: True,
        "get_device_capability": lambda device=None: (8, 0) if has_kernels else (7, 5),
        "device_of": lambda tensor: nullcontext(),
        "max_memory_reserved": lambda device=None: 0,
        "_lazy_init": lambda: None,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in facts.items():
            patch.setattr(torch.cuda, name, value)
        if has_kernels:
            from stateless_transducer.ops import joiner_triton, lattice_triton

            for module in (joiner_triton, lattice_triton):
                for name in [each for each in vars(module) if each.endswith("_kernel")]:
                    patch.setattr(module, name, _Kernel(getattr(module, name)))
        # `module.to` puts new parameters in place of the old, whose kind cannot change
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # what is made of Python's numbers is made on the CPU, and copied
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with PretendedGpu() as device:
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_overwrite_module_params_on_conversion(before)
