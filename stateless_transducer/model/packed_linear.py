"""Linear map for repeated products of few rows, with a weight laid out once for the processor.

Letters: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_WEIGHTS = 2**18
"""Smallest weight to pack: below it, starting a packed product costs more than the layout gains."""
_ROWS = 16
"""Number of rows for which the layout is optimized; any number works."""


class PackedLinear:
    """Linear map ``x @ weight.T + bias`` without gradients.

    On a CPU, a large weight is packed for oneDNN (benchmarks/README.md has the gain). Elsewhere it is stored
    transposed, which makes products of few rows up to 1.8 times as fast.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Lay out the weight; later changes of the weight have no effect.

        Args:
            weight: (O, I), float32 or bfloat16.
            bias: (O,), of the same dtype.
        """
        self.device: torch.device = weight.device
        self._dtype, self._bias = weight.dtype, bias.detach().clone()
        packed = _packed(weight, bias)
        self._product = _plain_product if packed is None else _packed_product
        self._weight = weight.detach().T.clone(memory_format=torch.contiguous_format) if packed is None else packed

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O), in the dtype of the weight."""
        return self._product(x.to(self._dtype), self._weight, self._bias)


@torch.inference_mode()
def _packed(weight: Tensor, bias: Tensor) -> Tensor | None:
    """Pack a weight for oneDNN; None if it is small or packing is unavailable.

    The operators belong to torch's compiler and may disappear, so a trial product checks them.
    """
    if weight.device.type != "cpu" or weight.numel() < _LEAST_WEIGHTS:
        return None
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        # all inputs differ, so that swapped ones are detected
        x = torch.linspace(-1, 1, weight.shape[1], dtype=torch.float32).to(weight.dtype)[None]
        actual, expected = _packed_product(x, packed, bias), torch.nn.functional.linear(x, weight, bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    is_right = (actual - expected).abs() <= 0.02 * (weight.abs().sum(1) + bias.abs())
    return packed if is_right.all() else None


def _plain_product(x: Tensor, transposed: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, transposed)


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
