"""The largest batches that a plan may hold are foreseen."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_sizes import lengths as lengths_of
from pretended_gpu import pretended_gpu
from small_corpus import write_small_corpus

from stateless_transducer.cli import main
from stateless_transducer.data.plan import BatchLimits, plan_epoch
from stateless_transducer.training import memory
from stateless_transducer.training.learner import BatchTooLargeError, Learner
from stateless_transducer.training.memory import worst_batches


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("seconds", [60.0, 12.0, 7.3])
def test_no_process_gets_more_than_is_tried(parts, seconds):
    """Of 60 s with a limit of 200 s, eight processes share 26: two of them get 4, which is 240 s."""
    count, frames = 400, round(seconds * 100)
    lengths = lengths_of(np.full(count, seconds), np.full(count, frames), np.full(count, 30))
    limits = BatchLimits(200.0)
    plan = plan_epoch(lengths, limits, num_buckets=1, parts=parts, random=np.random.default_rng(0))
    largest = max(len(batch[part::parts]) for batch in plan for part in range(parts))
    assert worst_batches(lengths, limits, parts) == [(largest, frames, 30)]


def test_large_lattices_are_among_them():
    seconds = np.array([2.0, 2.0, 10.0])
    lengths = lengths_of(seconds, (seconds * 100).astype(int), np.array([40, 2, 10]))
    found = worst_batches(lengths, BatchLimits(20.0, max_cells=4000), 1)
    # 200 frames are 49 behind the subsampling, 1000 are 249: 49 * 41 and 249 * 11 places
    assert found == [(1, 200, 40), (1, 1000, 10)]


def _find(folder, count):
    flags = [*write_small_corpus(folder, count=count), "--exp-dir", str(folder / "exp")]
    return main(["train", *flags, "--find-max-duration", "true"])


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.cuda.OutOfMemoryError, id="optimizer", marks=pytest.mark.sweep),
        pytest.param(BatchTooLargeError, id="batch"),
    ],
)
def test_largest_duration_is_searched_for_on_a_gpu(error, tmp_path, capsys):
    """Of a GPU that holds 40 s of features; beyond, memory ends in the batch, which the learner names, or behind it."""
    seen = []

    def learn(self, update, **place):
        seen.append(update.batches[0].features.numel())
        if seen[-1] > 40 * 100 * 80:
            raise error("out of memory")

    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", learn)
        for name, value in {
            "get_device_properties": lambda device: SimpleNamespace(total_memory=2**30),
            "max_memory_reserved": lambda device: seen[-1],
            "reset_peak_memory_stats": lambda device: None,
            "empty_cache": lambda: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        assert _find(tmp_path, count=120) == 0
    *tried, proposed = capsys.readouterr().out.strip().splitlines()
    assert any("does not fit" in line for line in tried)
    assert 30 < float(proposed.removeprefix("--max-duration ")) <= 40


def test_another_error_while_measuring_is_reported(tmp_path, capsys, monkeypatch):
    """It was taken for a lack of memory."""

    def learn(self, update, **place):
        raise ValueError("`tokens` must be in 0..7.")

    monkeypatch.setattr(Learner, "learn", learn)
    assert _find(tmp_path, count=4) == 1
    assert "error: `tokens` must be in 0..7." in capsys.readouterr().err


def _on_a_cpu(monkeypatch, *, gib_a_second):
    """Of 10 GiB that may be taken, 0.35 of them before training: what is tried of it."""
    tried = []

    def needed(plan, rank, duration):
        tried.append(duration)
        return 2**30 * (gib_a_second * duration + 0.35)

    monkeypatch.setattr(memory, "_measure", needed)
    monkeypatch.setattr(memory, "peak_bytes", lambda: 0.35 * 2**30)
    monkeypatch.setattr(memory, "free_bytes", lambda: (10 / 0.9 - 0.35) * 2**30)
    return tried


def test_more_than_half_of_a_cpus_memory_is_computed_not_tried(tmp_path, capsys, monkeypatch):
    tried = _on_a_cpu(monkeypatch, gib_a_second=0.2)
    assert _find(tmp_path, count=400) == 0
    *_, proposed = capsys.readouterr().out.strip().splitlines()
    assert 0.2 * max(tried) + 0.35 < 5 < 0.2 * 2 * max(tried) + 0.35
    assert proposed == "--max-duration 48"


def test_proposal_stays_within_reach_of_what_was_tried(tmp_path, capsys, monkeypatch):
    """Two small batches that take no more than the process had taken before say nothing of a large one."""
    tried = _on_a_cpu(monkeypatch, gib_a_second=0.0)
    monkeypatch.setattr(memory, "_PATIENCE_S", 0.0)
    assert _find(tmp_path, count=400) == 0
    *_, said, proposed = capsys.readouterr().out.strip().splitlines()
    assert "at most 4 times" in said
    assert max(tried) == 2.3 and proposed == "--max-duration 9"


@pytest.mark.parametrize("flags", [[], ["--drop-last", "true"]])
def test_no_more_is_proposed_than_the_data_fill(tmp_path, capsys, monkeypatch, flags):
    """24 utterances of 0.6 to 1.15 s are 21 s, in two groups of like length: with more, an epoch is the same."""
    _on_a_cpu(monkeypatch, gib_a_second=0.0)
    train = ["train", *write_small_corpus(tmp_path), "--exp-dir", str(tmp_path / "exp"), *flags]
    assert main([*train, "--find-max-duration", "true"]) == 0
    *_, said, proposed = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"The data fill at most \S+ s: .*a group of similar length.* \(`--num-buckets` 2\)", said)
    assert proposed == f"--max-duration {7 if flags else 13}"
    assert main([*train, *proposed.split(), "--dry-run", "true"]) == 0
    (epoch,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert "epoch         2 batches" in epoch


def test_longest_utterance_alone_may_be_all_that_is_tried(tmp_path, capsys, monkeypatch):
    """Twice as much was tried, whatever the first batch took."""
    tried = _on_a_cpu(monkeypatch, gib_a_second=5.0)
    assert _find(tmp_path, count=400) == 0
    assert tried == [1.15]
    assert capsys.readouterr().out.strip().splitlines()[-1] == "--max-duration 1"
