"""Regularization: icefall's own gradients, schedules, and what a resumed run must find again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stateless_transducer.model import regularize
from stateless_transducer.model.regularize import (
    Balancer,
    Schedule,
    Whiten,
    chance,
    limit_values,
    load_whitening_state,
    penalize_large,
    set_batch_count,
    whitening_state,
)


@pytest.fixture(scope="module")
def parts(zipformer_golden):
    train = zipformer_golden / "train"
    return load_file(train / "parts.safetensors"), json.loads((train / "parts.json").read_text())


def _grad(function, tensors, name):
    """Return the gradient through a function, and that of icefall."""
    x = tensors[f"{name}.x"].requires_grad_()
    y = function(x)
    assert torch.equal(y, x)
    y.backward(tensors[f"{name}.y_grad"])
    return x.grad, tensors[f"{name}.x_grad"]


def test_gradients_are_icefalls(parts):
    """To the golden set's own tolerance; the corrections are all that differs from the gradient that came in."""
    tensors, options = parts

    def check(name, function):
        torch.testing.assert_close(*_grad(function, tensors, name), rtol=1e-4, atol=1e-6)

    for n in range(5):
        check(f"balancer.b{n}", Balancer(**options[f"balancer.b{n}"], prob=1.0))
    for n in range(3):
        expected = options[f"whiten.w{n}"]
        module = Whiten(
            num_groups=expected["num_groups"],
            limit=expected["whitening_limit"],
            grad_scale=expected["grad_scale"],
            probs=(1.0, 1.0),
        )
        check(f"whiten.w{n}", module)
        assert whitening_state(module) == {"": expected["active"]}
    penalize = options["penalize"]
    check("penalize", lambda x: penalize_large(x, limit=penalize["limit"], penalty=penalize["penalty"], prob=1.0))
    limits = options["limit_param_value"]
    check("limit_param_value", lambda x: limit_values(x, limits["min"], limits["max"], prob=1.0))


def _whitened_by_autograd(x, grad, *, groups, scale):
    x = x.detach().requires_grad_()
    values = x.flatten(0, -2).unflatten(1, (groups, -1)).transpose(0, 1)
    values = values - values.mean(1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(values.mT @ values)
    metric = (eigenvalues**2).mean() / eigenvalues.mean() ** 2
    (penalty,) = torch.autograd.grad(metric, x)
    return metric.item(), grad + scale * grad.norm() / penalty.norm() * penalty


def test_whitening_follows_the_gradient_of_its_metric():
    """The golden gradients are all below the limit: here is one above it, differentiated by autograd in float64."""
    for groups in (1, 3):
        x = torch.randn(7, 5, 12) * torch.linspace(0.1, 2, 12) + 3
        x, grad = x.requires_grad_(), torch.randn(7, 5, 12)
        metric, expected = _whitened_by_autograd(x.double(), grad.double(), groups=groups, scale=0.1)
        module = Whiten(num_groups=groups, limit=metric * 0.999, grad_scale=0.1, probs=(1.0, 1.0))
        module(x).backward(grad)
        torch.testing.assert_close(x.grad, expected.float())
        assert whitening_state(module) == {"": True}
        x.grad, module.limit = None, metric * 1.001
        module(x).backward(grad)
        assert torch.equal(x.grad, grad) and whitening_state(module) == {"": False}


def test_balancer_leaves_what_is_within_its_limits_and_survives_constant_channels():
    x = torch.randn(500, 4, requires_grad=True)
    grad = torch.randn(500, 4)
    balancer = Balancer(min_positive=0.3, max_positive=0.7, min_abs=0.5, max_abs=1.0, prob=1.0)
    balancer(x).backward(grad)
    assert torch.equal(x.grad, grad)
    for value in (0.0, 5.0, -5.0):
        x = torch.full((9, 4), value, requires_grad=True)
        balancer(x).backward(torch.ones(9, 4))
        assert x.grad.isfinite().all() and (x.grad - 1).abs().max() <= 0.04 * 1.001


def test_nothing_acts_in_evaluation():
    x = torch.randn(20, 6, requires_grad=True)
    grad = torch.randn(20, 6)
    modules = nn.Sequential(Balancer(max_abs=0.1, prob=1.0), Whiten(limit=0.5, grad_scale=1.0, probs=(1, 1))).eval()
    modules(x).backward(grad)
    assert torch.equal(x.grad, grad) and whitening_state(modules)


def test_schedules_are_icefalls(zipformer_golden):
    """At all counts of the golden set; by default where no count is set, and in evaluation mode."""
    train = zipformer_golden / "train"
    settings = json.loads((train / "train_settings.json").read_text())["M"]
    checked = 0
    for count, values in json.loads((train / "schedules_at_batch.json").read_text()).items():
        for path, expected in values.items():
            name, _, attribute = path.rpartition(".")
            points = settings.get(name, {}).get(attribute)
            if not isinstance(points, dict):
                continue
            schedule = nn.Sequential(Schedule(*map(tuple, points["schedule"]), default=points["default"]))
            assert float(schedule[0]) == points["default"]
            set_batch_count(schedule, 0.0 if count == "eval" else float(count))
            schedule.train(count != "eval")
            assert float(schedule[0]) == pytest.approx(expected, rel=1e-12, abs=1e-15), path
            checked += 1
    assert checked > 50


def test_chance_follows_the_generator():
    torch.manual_seed(3)
    draws = [chance(0.3) for _ in range(2000)]
    assert 500 < sum(draws) < 700
    torch.manual_seed(3)
    assert [chance(0.3) for _ in range(2000)] == draws
    assert not any(chance(0.0) for _ in range(9)) and all(chance(1.0) for _ in range(9))


def test_corrections_of_values_act_with_icefalls_probabilities(monkeypatch):
    probabilities = []
    monkeypatch.setattr(regularize, "chance", probabilities.append)
    x = torch.zeros(2, requires_grad=True)
    assert penalize_large(x, limit=25.0, penalty=1e-4) is x and limit_values(x, -1.0, 1.0) is x
    assert probabilities == [0.1, 0.6]


def test_whitening_resumes_with_the_state_that_was_saved():
    """Its probability depends on the last metric, so a run that forgot it would draw others."""

    def run(modules, steps):
        readings = []
        for step in steps:
            torch.manual_seed(step)
            x = torch.randn(30, 6) * torch.tensor([4.0, 1, 1, 1, 1, 1])
            modules(x.requires_grad_()).sum().backward()
            readings.append((x.grad, whitening_state(modules)))
        return readings

    def build():
        return nn.Sequential(Whiten(limit=2.0, grad_scale=0.1), Whiten(limit=9.0, grad_scale=0.1))

    whole = run(build(), range(60))
    first = build()
    run(first, range(30))
    second = build()
    load_whitening_state(second, whitening_state(first))
    assert whole[29][1] == {"0": True, "1": False}
    for found, expected in zip(run(second, range(30, 60)), whole[30:], strict=True):
        assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
