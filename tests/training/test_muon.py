"""Muon: torch's own steps for matrices and for the rest, a state that resumes, matrices of any shape."""

from __future__ import annotations

import copy

import pytest
import torch
from model_sizes import conformer_model
from torch import nn

from stateless_transducer.model.transducer import build_model
from stateless_transducer.training.config import FineTuneConfig, OptimConfig, TrainConfig
from stateless_transducer.training.muon import Muon, linear_weights, orthogonalized
from stateless_transducer.training.objective import TransducerObjective
from stateless_transducer.training.optim import build_optimizer, load_optimizer

SHAPES = [(12, 5), (5, 12), (12, 5), (6, 6, 1), (6, 6, 1, 1)]


def _parameters(shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _muon(matrices, others=()):
    groups = [{"params": list(matrices), "are_matrices": True}]
    return Muon([*groups, {"params": list(others)}] if others else groups, lr=0.02, weight_decay=0.1)


def _step(optimizer, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
def test_matrices_move_as_torchs_do():
    """torch's works in bfloat16, matrix by matrix."""
    ours, theirs = _parameters(), [nn.Parameter(p.detach().flatten(1)) for p in _parameters()]
    before = [p.detach().clone() for p in ours]
    optimizers = (
        _muon(ours),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for seed in range(4):
        for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
            _step(optimizer, parameters, seed)
    for x, y, start in zip(ours, theirs, before, strict=True):
        moved = (x - start).norm()
        assert moved > 0.01 and (x.flatten(1) - y).norm() < 0.02 * moved


def test_other_parameters_move_as_adamws():
    ours, theirs, matrices = _parameters([(4,), (3, 2, 5), ()]), _parameters([(4,), (3, 2, 5), ()]), _parameters()
    optimizers = _muon(matrices, ours), torch.optim.AdamW(theirs, lr=0.02, betas=(0.9, 0.98), weight_decay=0.1)
    for seed in range(3):
        for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
            _step(optimizer, parameters, seed)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_resumed_steps_are_bit_equal_and_a_matrix_without_a_gradient_stays():
    whole, resumed = _parameters([*SHAPES, (3,)]), _parameters([*SHAPES, (3,)])
    optimizers = [_muon(each[:-1], each[-1:]) for each in (whole, resumed)]
    for seed in range(6):
        if seed in (1, 4):
            state = copy.deepcopy(optimizers[1].state_dict())
            optimizers[1] = _muon(resumed[:-1], resumed[-1:])
            optimizers[1].load_state_dict(state)
        for optimizer, each in zip(optimizers, (whole, resumed), strict=True):
            _step(optimizer, each, seed)
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))
    before = whole[0].detach().clone()
    whole[0].grad = None
    optimizers[0].step()
    assert torch.equal(whole[0], before) and not torch.equal(whole[2], resumed[2])


def test_singular_values_become_about_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 8), (2, 40, 7), (2, 7, 40)):
        matrices = torch.randn(shape, generator=generator) * 1e-6
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        values = torch.linalg.svdvals(orthogonalized(matrices))
        assert 0.5 < values.min() and values.max() < 1.3
        assert torch.linalg.matrix_norm(orthogonalized(matrices) - u @ v, ord=2).max() < 0.5
    assert not orthogonalized(torch.zeros(1, 3, 4)).any()
    # gradients have singular values of all sizes
    steep = torch.linalg.qr(torch.randn(1, 30, 30, generator=generator))[0] * torch.logspace(0, -9, 30)[:, None]
    torch.testing.assert_close(orthogonalized(steep), orthogonalized(steep.double()).float(), rtol=0, atol=1e-3)


def test_linear_weights_are_those_of_linear_layers_and_pointwise_convolutions():
    pointwise = [nn.Linear(3, 4), nn.Conv1d(3, 6, 1), nn.Conv2d(3, 6, 1)]
    others = [nn.Conv1d(3, 3, 5), nn.Conv2d(3, 3, (3, 1)), nn.Conv1d(3, 3, 1, groups=3), nn.Embedding(3, 4)]
    assert linear_weights([*pointwise, *others]) == {layer.weight for layer in pointwise}


def test_state_of_a_model_is_loaded_or_refused():
    sizes = conformer_model(
        vocab_size=9, num_layers=1, attention_dim=16, num_heads=2, feedforward_dim=16, joiner_dim=16
    )
    objective = TransducerObjective(build_model(sizes), TrainConfig())
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    first, second = (
        build_optimizer(objective, OptimConfig(optimizer="muon"), FineTuneConfig(layer_lr_decay=0.5))[0] for _ in "ab"
    )
    first.step()
    state = first.state_dict()
    load_optimizer(second, state)
    assert sum("mean_grad" in values for values in second.state_dict()["state"].values()) > 5
    number = next(number for number, values in state["state"].items() if "mean_grad" in values)
    state["state"][number] = {"mean_grad": torch.zeros(3)}
    with pytest.raises(ValueError, match=f"parameter {number} needs mean_grad"):
        load_optimizer(second, state)
