"""The delay penalty of all losses, against a sum over every path."""

from __future__ import annotations

import pytest
import torch
from oracle import nll_by_enumeration

from stateless_transducer.ops.joint_loss import joint_transducer_loss
from stateless_transducer.ops.pruned_loss import pruned_transducer_loss, simple_transducer_loss

TOPOLOGIES = {
    "standard": {},
    "modified": {"max_symbols_per_frame": 1},
    "modified_open": {"max_symbols_per_frame": 1, "last_arc_is_blank": False},
}
LENS, TOKEN_LENS, V, PENALTY = [4, 2, 4], [2, 1, 3], 5, 0.7


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    return request.param


@pytest.fixture
def options(topology, device):
    """Arguments that all losses take."""
    return {
        "encoder_out_lens": torch.tensor(LENS, device=device),
        "tokens": torch.randint(1, V, (3, 3), device=device),
        "token_lens": torch.tensor(TOKEN_LENS, device=device),
        "delay_penalty": PENALTY,
        **TOPOLOGIES[topology],
    }


def _floats(device, *shape):
    return torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)


def _assert_equals_enumeration(nll, logits, options, topology, leaves):
    log_probs = logits.log_softmax(-1)
    truth = torch.stack(
        [
            nll_by_enumeration(
                log_probs[n, :t, : u + 1], options["tokens"][n, :u].tolist(), topology, delay_penalty=PENALTY
            )
            for n, (t, u) in enumerate(zip(LENS, TOKEN_LENS, strict=True))
        ]
    )
    torch.testing.assert_close(nll, truth, rtol=1e-12, atol=1e-12)
    for ours, true in zip(
        *(torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (nll, truth)), strict=True
    ):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked", "triton"])
def test_joint_loss_equals_enumeration_of_paths(impl, topology, options, device):
    if impl == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    encoder_out, decoder_out, weight = (_floats(device, *shape) for shape in ((3, 4, 6), (3, 4, 6), (V, 6)))
    logits = torch.tanh(encoder_out[:, :, None] + decoder_out[:, None]) @ weight.T
    whole_band = torch.zeros(3, 4, dtype=torch.int64, device=device), 4
    for band in (None, whole_band):
        nll = joint_transducer_loss(
            encoder_out, decoder_out=decoder_out, weight=weight, band=band, impl=impl, skip_below=0.0, **options
        )
        _assert_equals_enumeration(nll, logits, options, topology, (encoder_out, decoder_out, weight))


def test_simple_and_pruned_loss_equal_enumeration_of_paths(topology, options, device):
    leaves = _floats(device, 3, 4, V), _floats(device, 3, 4, V)
    logits = leaves[0][:, :, None] + leaves[1][:, None]
    simple = simple_transducer_loss(leaves[0], decoder_logits=leaves[1], **options)
    pruned = pruned_transducer_loss(logits, torch.zeros(3, 4, dtype=torch.int64, device=device), **options)
    for nll in (simple.nll, pruned):
        _assert_equals_enumeration(nll, logits, options, topology, leaves)
    # symbols are earlier on the paths that count
    before = simple_transducer_loss(leaves[0], decoder_logits=leaves[1], **{**options, "delay_penalty": 0.0})
    t = torch.arange(4, device=device)[:, None]
    assert (simple.symbol_occupation * t).sum() < (before.symbol_occupation * t).sum()


@pytest.mark.parametrize("penalty", [-0.1, float("inf"), float("nan")])
def test_bad_penalty_is_named(penalty, device):
    lens, tokens, out = torch.tensor([2]), torch.tensor([[1]]), _floats(device, 1, 2, 3)
    with pytest.raises(ValueError, match=f"`delay_penalty` must be at least 0 and finite, but is {penalty}"):
        joint_transducer_loss(out, lens, out, tokens, torch.tensor([1]), _floats(device, 4, 3), delay_penalty=penalty)
