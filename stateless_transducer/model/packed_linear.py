"""A linear map for few rows at a time and many times over, its weight laid out once as the processor likes it.

Letters: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_WEIGHTS = 2**18
"""Below it, starting a packed product costs more than the layout gains."""
_ROWS = 16
"""For how many rows the layout is chosen; any number may come."""


class PackedLinear:
    """``x @ weight.T + bias`` without gradients.

    On a CPU, a large weight is packed for oneDNN (benchmarks/README.md has what that gains). Elsewhere it is kept
    transposed, as products of few rows are up to 1.8 times as fast with it.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Lay out the weight; later changes of it do not count.

        Args:
            weight: (O, I), float32 or bfloat16.
            bias: (O,), of the same type.
        """
        self.device, self._dtype, self._bias = weight.device, weight.dtype, bias.detach().clone()
        packed = _packed(weight, bias)
        self._product = _plain_product if packed is None else _packed_product
        self._weight = weight.detach().T.clone(memory_format=torch.contiguous_format) if packed is None else packed

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """(R, I) -> (R, O), of the weight's type."""
        return self._product(x.to(self._dtype), self._weight, self._bias)


@torch.inference_mode()
def _packed(weight: Tensor, bias: Tensor) -> Tensor | None:
    """None: not worth it, or not to be had. What torch has for it is its compiler's, and may go away: it is tried."""
    if weight.device.type != "cpu" or weight.numel() < _LEAST_WEIGHTS:
        return None
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        # different numbers, so that none can stand for another
        some = torch.linspace(-1, 1, weight.shape[1], dtype=torch.float32).to(weight.dtype)[None]
        found, wanted = _packed_product(some, packed, bias), torch.nn.functional.linear(some, weight, bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    is_right = (found - wanted).abs() <= 0.02 * (weight.abs().sum(1) + bias.abs())
    return packed if is_right.all() else None


def _plain_product(x: Tensor, transposed: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, transposed)


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
