"""ScaledAdam: icefall's own steps, its state, and steps that must change nothing."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stateless_transducer.training import scaled_adam
from stateless_transducer.training.scaled_adam import ScaledAdam, _Stack


def _resumed(optimizer, parameters):
    """Return an optimizer that continues with the saved state of another."""
    resumed = ScaledAdam(parameters, lr=0.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return resumed


@pytest.mark.parametrize(("run", "chunk"), [("constant", 2**18), ("eden", 1)], ids=["stacked", "one by one"])
def test_steps_and_state_are_icefalls(run, chunk, zipformer_golden, monkeypatch):
    """130 steps with given gradients, resumed on the way; clipping included, and parameters without a gradient."""
    monkeypatch.setattr(scaled_adam, "_CHUNK_NUMEL", chunk)
    folder = zipformer_golden / "train"
    tensors = load_file(folder / "scaled_adam.safetensors")
    content = json.loads((folder / "scaled_adam.json").read_text())
    parameters = {name: nn.Parameter(tensors[f"init.{name}"]) for name, _ in content["parameters"]}
    optimizer = ScaledAdam(parameters.values())
    num_checked = 0
    for log in content["runs"][run]["log"]:
        step = log["step"]
        for name, parameter in parameters.items():
            gradients = tensors.get(f"grad.{name}")
            parameter.grad = None if gradients is None else gradients[step - 1].clone()
        if step in (2, 55):
            optimizer = _resumed(optimizer, parameters.values())
        optimizer.param_groups[0]["lr"] = log["lr"]
        optimizer.step()
        for name, parameter in parameters.items():
            expected = tensors.get(f"{run}.step{step}.{name}")
            if expected is not None:
                torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-5)
                num_checked += 1
    assert num_checked == sum(name.startswith(f"{run}.step") for name in tensors) > 0
    for name, expected in tensors.items():
        if name.startswith(f"{run}.state130."):
            owner, _, key = name.removeprefix(f"{run}.state130.").rpartition(".")
            torch.testing.assert_close(optimizer.state[parameters[owner]][key], expected, rtol=1e-4, atol=1e-6)


def _parameters():
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (4,), (5, 3), (), (4,), (1,)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _step(optimizer, parameters, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
    optimizer.step()


def test_resumed_run_is_bit_equal_and_the_scale_of_the_loss_does_not_matter():
    whole, resumed, scaled = _parameters(), _parameters(), _parameters()
    optimizers = [ScaledAdam(each, lr=0.03) for each in (whole, resumed, scaled)]
    for step in range(120):
        if step in (1, 17, 103):
            optimizers[1] = _resumed(optimizers[1], resumed)
        for optimizer, parameters, scale in zip(optimizers, (whole, resumed, scaled), (1.0, 1.0, 256.0), strict=True):
            _step(optimizer, parameters, step, scale)
    assert all(torch.equal(x, y) for x, y in zip(whole, resumed, strict=True))
    for x, y in zip(whole, scaled, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_size_changes_by_a_tenth_at_most():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    stack = _Stack([weight], {})
    stack.state.update(stack.initial_state())
    for step in range(4):
        stack._update_sizes(weight.detach()[None], step, 1.0, lr=100.0, betas=(0.9, 0.98))
    torch.testing.assert_close(stack.state["delta"][0], -0.1 * (1 - 0.9) * weight.detach())


@pytest.mark.parametrize("spoiled", [0, 3])
def test_gradient_that_is_not_finite_counts_as_zero(spoiled):
    parameters, zeroed = _parameters(), _parameters()
    optimizers = [ScaledAdam(each, lr=0.03) for each in (parameters, zeroed)]
    for step in range(spoiled):
        for optimizer, each in zip(optimizers, (parameters, zeroed), strict=True):
            _step(optimizer, each, step)
    _step(optimizers[0], parameters, spoiled, torch.inf)
    _step(optimizers[1], zeroed, spoiled, 0.0)
    assert all(torch.equal(x, y) for x, y in zip(parameters, zeroed, strict=True))


def test_groups_have_rates_of_their_own():
    parameters = _parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = ScaledAdam([{"params": parameters[:3], "lr": 0.0}, {"params": parameters[3:]}], lr=0.1)
    _step(optimizer, parameters, 0)
    moved = [not torch.equal(x, y) for x, y in zip(parameters, before, strict=True)]
    assert moved == [False] * 3 + [True] * 3
