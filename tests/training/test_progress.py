"""What a training run shows and writes for its user."""

from __future__ import annotations

import json
import math

import pytest
import torch

from stateless_transducer.data.manifests import manifest_path
from stateless_transducer.evaluation.report import _loss_picture
from stateless_transducer.training.progress import TrainingDisplay, describe_run


@pytest.mark.parametrize(
    ("splits", "tail"),
    [
        (("dev", "test"), "--prefix mine"),
        (("dev",), "--prefix mine --test-sets dev"),
        ((), "--prefix mine --test-sets NAME, once a test set is prepared"),
    ],
)
def test_readme_names_a_test_set_that_is_prepared(tmp_path, splits, tail):
    # a name that a shell would split
    fbank, exp_dir = tmp_path / "fbank", tmp_path / "my exp"
    fbank.mkdir()
    exp_dir.mkdir()
    for split in splits:
        manifest_path(fbank, "mine", "cuts", split).touch()
    config = {"data": {"manifest_dir": fbank, "prefix": "mine"}, "train": {"resume": False}, "dev_split": "dev"}
    describe_run(exp_dir, config, "transducer train")
    (line,) = (line for line in (exp_dir / "README").read_text().splitlines() if "transducer decode" in line)
    assert line.endswith(f"transducer decode --exp-dir '{exp_dir}' --manifest-dir {fbank} {tail}")


def test_bar_shows_no_loss_before_the_first_batch(tmp_path):
    (tmp_path / "log").mkdir()
    with TrainingDisplay(
        tmp_path, total_seconds=10.0, done_seconds=0.0, tensorboard=False, device=torch.device("cpu")
    ) as display:
        display.advance(0.0, where="epoch 0", loss=math.nan)
        assert display._bar.tasks[0].fields["numbers"].startswith("loss - a frame")
        display.advance(1.0, where="epoch 0", loss=0.25)
        assert display._bar.tasks[0].fields["numbers"].startswith("loss 0.250 a frame")


def test_metrics_are_json_of_any_number(tmp_path):
    """Other programs read no NaN."""
    (tmp_path / "log").mkdir()
    with TrainingDisplay(
        tmp_path, total_seconds=1.0, done_seconds=0.0, tensorboard=False, device=torch.device("cpu")
    ) as display:
        display.record(3, epoch=0, current_loss=math.nan, tot_loss=0.5, grad_norm=math.inf)
    text = (tmp_path / "log" / "metrics.jsonl").read_text()
    expected = {"step": 3, "epoch": 0, "current_loss": None, "tot_loss": 0.5, "grad_norm": None}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert "Loss curves; last values: training 0.5" in _loss_picture([expected, {**expected, "tot_loss": None}])
