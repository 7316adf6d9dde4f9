from __future__ import annotations

import pytest
import torch

from stateless_transducer.ops.swoosh import swoosh_l, swoosh_r


@pytest.mark.parametrize(("function", "shift", "offset"), [(swoosh_l, 4, 0.035), (swoosh_r, 1, 0.313261687)])
def test_swoosh_equals_its_formula_with_and_without_gradient(function, shift, offset, device):
    x = torch.linspace(-40, 40, 321, dtype=torch.float64, device=device, requires_grad=True)
    expected = torch.logaddexp(torch.zeros_like(x), x - shift) - 0.08 * x - offset
    torch.testing.assert_close(function(x), expected)
    torch.testing.assert_close(function(x.detach()), expected.detach())
    # not at the point from which softplus is the identity
    torch.autograd.gradcheck(function, (x[3::16].detach().requires_grad_(),))
    assert swoosh_r(torch.zeros(1)).abs() < 1e-7
