from __future__ import annotations

import json

import pytest

from stateless_transducer.training.optim import cosine_schedule, noam_schedule


def test_noam_rates_equal_icefalls(golden):
    content = json.loads((golden / "train" / "noam_rates.json").read_text())
    rates = content["rates"] if "rates" in content else content
    checked = 0
    for factor, by_step in rates.items():
        schedule = noam_schedule(factor=float(factor), model_size=512, warm_step=80000)
        for step, rate in by_step.items():
            if int(step) > 0:
                assert schedule(int(step), 0.0) == pytest.approx(rate, rel=1e-12)
                checked += 1
    assert checked > 10


def test_cosine_starts_linearly_and_ends_at_a_hundredth():
    schedule = cosine_schedule(peak=2.0, warm_step=10)
    assert schedule(1, 0.0) == pytest.approx(0.2)
    assert schedule(10, 0.0) == pytest.approx(2.0)
    assert schedule(500, 0.5) == pytest.approx(1.01)
    assert schedule(1000, 1.0) == pytest.approx(0.02) == schedule(1001, 1.01)
