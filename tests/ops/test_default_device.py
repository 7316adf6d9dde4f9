"""The losses work where tensors lie, whatever torch's default device is."""

from __future__ import annotations

import pytest
import torch

from stateless_transducer.ops.joint_loss import joint_transducer_loss
from stateless_transducer.ops.transducer_loss import transducer_loss


@pytest.mark.parametrize("max_symbols_per_frame", [None, 1])
def test_another_default_device_changes_nothing(max_symbols_per_frame):
    encoder_out, decoder_out = torch.randn(2, 7, 8), torch.randn(2, 4, 8)
    weight, bias = torch.randn(5, 8), torch.randn(5)
    lens, token_lens, tokens = torch.tensor([7, 5]), torch.tensor([3, 2]), torch.randint(1, 5, (2, 3))
    logits = torch.tanh(encoder_out[:, :, None] + decoder_out[:, None]) @ weight.T + bias
    packed = torch.cat([logits[n, :T, : U + 1].flatten(0, 1) for n, (T, U) in enumerate([(7, 3), (5, 2)])])
    given = (encoder_out.requires_grad_(), lens, decoder_out, tokens, token_lens, weight, bias)
    is_one = max_symbols_per_frame == 1
    wanted = joint_transducer_loss(*given, max_symbols_per_frame=max_symbols_per_frame).sum()
    with torch.device("meta"):
        joint = joint_transducer_loss(*given, max_symbols_per_frame=max_symbols_per_frame).sum()
        joint.backward()
        for each in (logits, packed):
            alone = transducer_loss(each, tokens, lens, token_lens, reduction="sum", one_sym_per_frame=is_one)
            assert alone.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert joint.item() == wanted.item() and encoder_out.grad is not None
