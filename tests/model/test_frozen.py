from __future__ import annotations

import pytest
import torch
from model_sizes import conformer_model

from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import build_model

SIZES = {"num_layers": 2, "attention_dim": 16, "num_heads": 2, "feedforward_dim": 32, "joiner_dim": 24}


@pytest.mark.parametrize(("context_size", "blank_id"), [(1, 0), (2, 0), (3, 6)])
def test_frozen_model_answers_as_the_model(context_size, blank_id, device):
    config = conformer_model(vocab_size=7, context_size=context_size, blank_id=blank_id, **SIZES)
    model = build_model(config).to(device).eval()
    frozen = FrozenTransducer(model)
    features, lens = torch.randn(3, 50, 80, device=device), torch.tensor([50, 7, 31], device=device)
    contexts = torch.randint(0, 7, (9, context_size), device=device)
    contexts[0] = blank_id
    with torch.no_grad():
        wanted, wanted_lens = model.encode(features, lens)
        found, found_lens = frozen.encode(features, lens)
        assert torch.equal(found_lens, wanted_lens) and torch.equal(found, wanted)
        decoder_out, frames = model.predict(contexts), wanted[:, :3].flatten(0, 1)
        torch.testing.assert_close(frozen.predict(contexts), decoder_out)
        torch.testing.assert_close(frozen.join(frames, decoder_out), model.join(frames, decoder_out))


def test_bfloat16_is_close_and_gives_float32(device):
    """Eight bits of fraction: a relative error of 2^-9 in each factor."""
    model = build_model(conformer_model(vocab_size=7, **SIZES)).to(device).eval()
    frozen, exact = FrozenTransducer(model, dtype=torch.bfloat16), FrozenTransducer(model)
    features, lens = torch.randn(2, 50, 80, device=device), torch.tensor([50, 31], device=device)
    narrow, wide = frozen.encode(features, lens)[0], exact.encode(features, lens)[0]
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - wide)[0].abs().max() < 0.05 * wide[0].abs().max()
    contexts = torch.randint(0, 7, (5, 2), device=device)
    logits = [each.join(wide[0, :5], each.predict(contexts)) for each in (frozen, exact)]
    assert logits[0].dtype == torch.float32
    torch.testing.assert_close(*logits, rtol=0, atol=0.02)
