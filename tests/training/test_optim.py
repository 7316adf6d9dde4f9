from __future__ import annotations

import json

import pytest

from stateless_transducer.training.config import OptimConfig, TrainConfig
from stateless_transducer.training.optim import cosine_schedule, eden_schedule, noam_schedule, warm_up_fault


def test_noam_rates_equal_icefalls(golden):
    content = json.loads((golden / "train" / "noam_rates.json").read_text())
    rates = content["rates"] if "rates" in content else content
    checked = 0
    for factor, by_step in rates.items():
        schedule = noam_schedule(factor=float(factor), model_size=512, warm_step=80000)
        for step, rate in by_step.items():
            if int(step) > 0:
                assert schedule(int(step), 0, 0.0) == pytest.approx(rate, rel=1e-12)
                checked += 1
    assert checked > 10


def test_cosine_starts_linearly_and_ends_at_a_hundredth():
    schedule = cosine_schedule(peak=2.0, warm_step=10)
    assert schedule(1, 0, 0.0) == pytest.approx(0.2)
    assert schedule(10, 0, 0.0) == pytest.approx(2.0)
    assert schedule(500, 0, 0.5) == pytest.approx(1.01)
    assert schedule(1000, 0, 1.0) == pytest.approx(0.02) == schedule(1001, 0, 1.01)


def test_eden_rates_equal_icefalls(zipformer_golden):
    content = json.loads((zipformer_golden / "train" / "eden.json").read_text())
    checked = 0
    for row in content["rows"]:
        values = dict(zip(content["columns"], row, strict=True))
        if values["warmup_start"] == 0.5 and values["warmup_batches"] == 500:
            schedule = eden_schedule(**{name: values[name] for name in ("base_lr", "lr_batches", "lr_epochs")})
            assert schedule(values["batch"], values["epoch"], 0.3) == pytest.approx(values["lr"], rel=1e-12)
            checked += 1
    assert checked > 100


def _fault(num_batches, **optim):
    config = TrainConfig(num_epochs=20, optim=OptimConfig(**optim))
    return warm_up_fault(config, num_batches, model_size=512)


def test_warm_up_beyond_the_batches_is_told_with_a_way_out():
    said = _fault(15, optimizer="adamw", warm_step=1000)
    assert said.startswith("`--warm-step` 1000 is too long for 300 batches (20 epochs of 15): ")
    # after 0.42 of the batches, a cosine has fallen to 0.63, and the rate has risen to 0.126 of that
    assert "rise above 7.9e-05, and its peak would be 0.001. Pass `--warm-step 30`" in said
    said = _fault(15)
    assert "`--warm-step` 80000 " in said and "Pass `--optimizer adamw --warm-step 30` or `--size auto`" in said


def test_warm_up_that_comes_to_half_of_its_peak_is_left_alone():
    assert _fault(15, optimizer="adamw", warm_step=30) == _fault(4000, warm_step=80000) == ""
    # of the tutorial's noam half is reached with half of the steps; of a cosine, it falls meanwhile
    assert _fault(100, warm_step=4100) and not _fault(100, warm_step=3900)
    assert _fault(100, optimizer="adamw", warm_step=1100) and not _fault(100, optimizer="adamw", warm_step=1000)
    assert not _fault(100, optimizer="adamw", warm_step=1100, decay_epochs=40)
    assert _fault(15, optimizer="scaled-adam") == ""
    # no batch at all is an error of its own
    assert _fault(0) == ""
