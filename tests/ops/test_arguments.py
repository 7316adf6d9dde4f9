"""Every tensor that a door of the losses takes: None, a list or a NumPy array in its place is named."""

from __future__ import annotations

import pytest
import torch

from stateless_transducer.ops.joint_loss import joint_transducer_loss
from stateless_transducer.ops.pruned_loss import (
    prune_joiner_inputs,
    prune_ranges,
    pruned_transducer_loss,
    simple_transducer_loss,
)
from stateless_transducer.ops.transducer_loss import transducer_loss

N, T, U, V, D = 2, 4, 2, 5, 6
LENS = {"encoder_out_lens": torch.tensor([4, 3]), "token_lens": torch.tensor([2, 1])}
TOKENS = {"tokens": torch.tensor([[1, 2], [3, 4]]), **LENS}
OUTS = {"encoder_out": torch.randn(N, T, D), "decoder_out": torch.randn(N, U + 1, D)}
STARTS = {"starts": torch.zeros(N, T, dtype=torch.int64)}
LINEAR = {"encoder_logits": torch.randn(N, T, V), "decoder_logits": torch.randn(N, U + 1, V)}
OCCUPATIONS = {"blank_occupation": torch.rand(N, T, U + 1), "symbol_occupation": torch.rand(N, T, U)}
PADDED = {
    "logits": torch.randn(N, T, U + 1, V),
    "targets": TOKENS["tokens"],
    "logit_lengths": LENS["encoder_out_lens"],
    "target_lengths": LENS["token_lens"],
}
DOORS = [
    (joint_transducer_loss, {**OUTS, **TOKENS, "weight": torch.randn(V, D), "bias": torch.randn(V)}),
    (transducer_loss, PADDED),
    (simple_transducer_loss, {**LINEAR, **TOKENS}),
    (prune_ranges, {**OCCUPATIONS, **LENS, "width": 2}),
    (prune_joiner_inputs, {**OUTS, **STARTS, "width": 2}),
    (pruned_transducer_loss, {"logits": torch.randn(N, T, 2, V), **STARTS, **TOKENS}),
]


@pytest.mark.parametrize("kind", ["ndarray", "list"])
@pytest.mark.parametrize(
    ("door", "given", "name"),
    [
        pytest.param(door, given, name, id=f"{door.__name__}-{name}")
        for door, given in DOORS
        for name, value in given.items()
        if isinstance(value, torch.Tensor)
    ],
)
def test_what_is_no_tensor_is_named(door, given, name, kind):
    door(**given)
    value = given[name].numpy() if kind == "ndarray" else given[name].tolist()
    message = rf"`{name}` must be a tensor of shape \(.*\), but is a {kind}.*torch.as_tensor"
    with pytest.raises(ValueError, match=message):
        door(**{**given, name: value})


def test_number_that_is_no_integer_is_named():
    """A blank of 0.0 was taken for tokens of another dtype."""
    band = STARTS["starts"], 2.5
    joint, ranges, inputs = (dict(DOORS)[door] for door in (joint_transducer_loss, prune_ranges, prune_joiner_inputs))
    for door, given, name in (
        (joint_transducer_loss, {**joint, "blank": 0.0}, "blank"),
        (joint_transducer_loss, {**joint, "band": band}, r"band\[1\]"),
        (prune_ranges, {**ranges, "width": 2.5}, "width"),
        (prune_joiner_inputs, {**inputs, "width": 2.5}, "width"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}` must be an integer, but is \d\.\d"):
            door(**given)
