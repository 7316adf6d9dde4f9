from __future__ import annotations

import platform

import pytest
import torch

from stateless_transducer.model import packed_linear
from stateless_transducer.model.packed_linear import PackedLinear

TOLERANCE = {torch.float32: 3e-4, torch.bfloat16: 0.7}
"""Sums of 512 products of normal numbers, about 23 and up to 100; each is rounded to eight bits in bfloat16."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [7, 600])
def test_product_is_that_of_a_plain_linear_map(dtype, outputs, device):
    """For any number of rows, whether the weight is worth packing or not."""
    weight, bias = torch.randn(outputs, 512, device=device), torch.randn(outputs, device=device)
    linear = PackedLinear(weight.to(dtype), bias.to(dtype))
    for rows in (0, 1, 5, 16, 47, 300):
        x = torch.randn(rows, 512, device=device)
        found = linear(x)
        assert found.dtype == dtype and found.shape == (rows, outputs) and found.device == weight.device
        torch.testing.assert_close(
            found.float(), torch.nn.functional.linear(x, weight, bias), rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine() != "x86_64", reason="torch without oneDNN on x86"
)
def test_large_weight_is_packed():
    assert PackedLinear(torch.randn(600, 512), torch.randn(600))._product is packed_linear._packed_product
    assert PackedLinear(torch.randn(7, 512), torch.randn(7))._product is packed_linear._plain_product


def test_later_changes_of_the_weight_do_not_count():
    for outputs in (7, 600):
        weight, bias, x = torch.randn(outputs, 512), torch.randn(outputs), torch.randn(3, 512)
        linear = PackedLinear(weight, bias)
        before = linear(x)
        weight.zero_()
        bias.zero_()
        assert torch.equal(linear(x), before)


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, None])
def test_without_a_packed_product_a_plain_one_serves(error, monkeypatch):
    """What packs is torch's own affair: it may be missing, refuse, or (None) give something else."""

    def product(x, packed, bias):
        if error is not None:
            raise error
        return torch.nn.functional.linear(x.flip(1), weight, bias)

    weight, bias, x = torch.randn(600, 512), torch.randn(600), torch.randn(3, 512)
    monkeypatch.setattr(packed_linear, "_packed_product", product)
    wanted = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(PackedLinear(weight, bias)(x), wanted, rtol=0, atol=TOLERANCE[torch.float32])
