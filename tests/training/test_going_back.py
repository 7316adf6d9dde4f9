"""Checkpoints of a run that goes back, or that is asked to go on with other data."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import torch
from small_corpus import write_small_corpus

from stateless_transducer import checkpoint
from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.training.progress import TrainingDisplay


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Options of ``transducer train`` for 24 made-up utterances."""
    torch.manual_seed(1)
    return ["train", *write_small_corpus(tmp_path_factory.mktemp("corpus")), "--max-duration", "6"]


def _step(path):
    return load_checkpoint(path).provenance["step"]


def test_going_back_moves_what_was_written_later_out_of_the_way(corpus, tmp_path, capsys):
    flags = ["--exp-dir", str(tmp_path), "--num-epochs", "3", "--save-every", "1"]
    assert main([*corpus, *flags, "--peak-lr", "1e-2"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    first = load_checkpoint(tmp_path / "epoch-0.pt")
    step_of_first = first.provenance["step"]
    # another rate, so that the second run is another one; stopped after an epoch
    flags = ["--exp-dir", str(tmp_path), "--save-every", "1", "--keep-last", "2", "--peak-lr", "1e-3"]
    assert main([*corpus, *flags, "--num-epochs", "2", "--start-epoch", "1"]) == 0
    assert f"Moved the checkpoints written after {tmp_path}/epoch-0.pt to {tmp_path}/abandoned-1" in (
        capsys.readouterr().err
    )
    aside = tmp_path / "abandoned-1"
    # the new run has two epochs, and does not come to the third one's place
    later = {name for name in before if name not in ("epoch-0.pt", "epoch-2.pt")}
    assert {path.name for path in aside.iterdir()} == later
    assert all((aside / name).read_bytes() == before[name] for name in later)
    assert {path.name for path in tmp_path.glob("epoch-*.pt")} == {"epoch-0.pt", "epoch-1.pt", "epoch-2.pt"}
    assert not torch.equal(*(_bias(folder / "epoch-1.pt") for folder in (tmp_path, aside)))
    # the newest of the second run are kept, and not those of the first run with higher numbers
    steps = sorted(_step(path) for path in tmp_path.glob("checkpoint-*.pt"))
    last = _step(tmp_path / "epoch-1.pt")
    assert steps == [last - 2, last - 1] and step_of_first < steps[0]
    # whatever was best of what is left
    valid = {n: load_checkpoint(tmp_path / f"epoch-{n}.pt").provenance["valid_loss"] for n in (0, 1)}
    best = load_checkpoint(tmp_path / "best-valid-loss.pt").provenance
    assert best["valid_loss"] == min(valid.values()) and best["epoch"] == min(valid, key=valid.__getitem__)
    # and --resume goes on with the second run
    assert main([*corpus, *flags, "--num-epochs", "2", "--resume", "true"]) == 0
    assert f"Loading checkpoint from {tmp_path}/epoch-1.pt" in capsys.readouterr().err


@pytest.mark.sweep
def test_another_precision_goes_on_where_the_first_was(corpus, tmp_path):
    flags = ["--exp-dir", str(tmp_path), "--resume", "true"]
    for epochs, precision in (("1", "fp32"), ("2", "fp16"), ("3", "bf16")):
        assert main([*corpus, *flags, "--num-epochs", epochs, "--precision", precision]) == 0
    scales = [load_checkpoint(tmp_path / f"epoch-{n}.pt").training_state["scaler"].get("scale") for n in range(3)]
    assert scales[0] is None and scales[1] >= 1 and scales[2] is None


def test_resuming_reads_each_checkpoint_once(corpus, tmp_path, monkeypatch):
    """Of the newest ones of both kinds, one is resumed; with one rank, no file is read a second time for that."""
    flags = ["--exp-dir", str(tmp_path), "--save-every", "1", "--keep-last", "1"]
    assert main([*corpus, *flags, "--num-epochs", "1"]) == 0
    names = {path.name for path in tmp_path.glob("*.pt") if not path.name.startswith("best-")}
    read_archive, paths = checkpoint.read_archive, []

    def read(path, *args):
        paths.append(path)
        return read_archive(path, *args)

    monkeypatch.setattr(checkpoint, "read_archive", read)
    assert main([*corpus, *flags, "--num-epochs", "2", "--resume", "true"]) == 0
    monkeypatch.undo()
    assert len(names) == 2 and sorted(path.name for path in paths) == sorted(names)
    assert _step(tmp_path / "epoch-1.pt") > _step(tmp_path / "epoch-0.pt")


def _bias(path):
    return load_checkpoint(path).weights["joiner.output_linear.bias"]


def test_going_back_to_the_best_epoch_keeps_it_the_best(corpus, tmp_path):
    """After an epoch that is worse than the one before, the best one is still known."""
    flags = ["--exp-dir", str(tmp_path), "--num-epochs", "2"]
    assert main([*corpus, *flags, "--peak-lr", "1e-2"]) == 0
    assert main([*corpus, *flags, "--start-epoch", "1", "--peak-lr", "1e3", "--max-bad-batches", "1000"]) == 0
    epochs = [load_checkpoint(tmp_path / f"epoch-{n}.pt").provenance for n in (0, 1)]
    assert epochs[0]["valid_loss"] < epochs[1]["valid_loss"]
    assert load_checkpoint(tmp_path / "best-valid-loss.pt").provenance["epoch"] == 0


@pytest.mark.sweep
def test_the_best_epoch_stays_the_best_without_its_own_file(corpus, tmp_path):
    flags = ["--exp-dir", str(tmp_path), "--num-epochs"]
    assert main([*corpus, *flags, "1"]) == 0
    assert main([*corpus, *flags, "3", "--resume", "true", "--peak-lr", "1e3", "--max-bad-batches", "1000"]) == 0
    best = (tmp_path / "best-valid-loss.pt").read_bytes()
    assert load_checkpoint(tmp_path / "best-valid-loss.pt").provenance["epoch"] == 0
    (tmp_path / "epoch-0.pt").unlink()
    assert main([*corpus, *flags, "3", "--start-epoch", "2", "--peak-lr", "1e3", "--max-bad-batches", "1000"]) == 0
    assert (tmp_path / "best-valid-loss.pt").read_bytes() == best


@pytest.fixture(scope="module")
def halfway(corpus, tmp_path_factory):
    """A checkpoint from the middle of an epoch, and no other one."""
    folder = tmp_path_factory.mktemp("halfway")
    assert main([*corpus, "--exp-dir", str(folder), "--num-epochs", "1", "--save-every", "2"]) == 0
    for path in folder.glob("*.pt"):
        if path.name != "checkpoint-2.pt":
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max-duration", "3"], "`--max-duration` was 6.0 and is 3.0"),
        (["--seed", "5"], "`--seed` was 42 and is 5"),
        (["--accumulate-grad", "2"], "`processes times --accumulate-grad` was 1 and is 2"),
        # a checkpoint from before this option knows nothing of it
        (["--silence-s", "0.5"], "`--silence-s` was 0 and is 0.5"),
        (["--max-utterance-s", "1"], r"`utterances to learn from` was 24 \(\w+\) and is 18 \(\w+\)"),
    ],
)
def test_the_middle_of_an_epoch_does_not_go_on_with_other_batches(corpus, halfway, capsys, change, message):
    flags = ["--exp-dir", str(halfway), "--num-epochs", "1", "--resume", "true"]
    names = set(os.listdir(halfway))
    assert main([*corpus, *flags, *change]) == 1
    printed = capsys.readouterr().err.splitlines()[-1]
    assert "from the middle of epoch 0, which cannot resume with other batches" in printed
    assert re.search(message, printed) and printed.endswith("or pass another `--exp-dir`.")
    assert set(os.listdir(halfway)) == names


@pytest.mark.sweep
def test_the_end_of_an_epoch_goes_on_with_other_batches(corpus, tmp_path):
    flags = ["--exp-dir", str(tmp_path), "--num-epochs"]
    assert main([*corpus, *flags, "1"]) == 0
    assert main([*corpus, *flags, "2", "--resume", "true", "--max-duration", "3"]) == 0
    assert _step(tmp_path / "epoch-1.pt") > 2 * _step(tmp_path / "epoch-0.pt")


@pytest.mark.sweep
def test_a_rate_that_falls_over_more_epochs_is_that_of_a_longer_run(corpus, tmp_path):
    flags = ["--warm-step", "1", "--peak-lr", "1e-3"]
    for name, more in {"whole": ["2"], "part": ["1", "--decay-epochs", "2"], "short": ["1"]}.items():
        assert main([*corpus, "--exp-dir", str(tmp_path / name), *flags, "--num-epochs", *more]) == 0
    whole, part, short = (_bias(tmp_path / name / "epoch-0.pt") for name in ("whole", "part", "short"))
    assert torch.equal(whole, part) and not torch.equal(whole, short)


def test_damaged_newest_checkpoint_names_the_older_one(corpus, tmp_path, capsys):
    flags = [*corpus, "--exp-dir", str(tmp_path), "--save-every", "2", "--resume", "true"]
    assert main([*flags, "--num-epochs", "2"]) == 0
    step = _step(tmp_path / "epoch-1.pt")
    capsys.readouterr()

    def damage(name):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-999])

    damage("epoch-1.pt")
    # written within epoch 1
    (newest,) = sorted(tmp_path.glob("checkpoint-*.pt"), key=_step)[-1:]
    assert main([*flags, "--num-epochs", "3"]) == 1
    printed = capsys.readouterr().err
    assert "epoch-1.pt is not a checkpoint, or is truncated" in printed and f"undamaged one is {newest}" in printed
    (tmp_path / "epoch-1.pt").rename(tmp_path / "old.pt")
    assert main([*flags, "--num-epochs", "2"]) == 0
    assert f"Loading checkpoint from {newest}" in capsys.readouterr().err
    assert _step(tmp_path / "epoch-1.pt") == step
    # damage of what the newest one replaces is of no concern
    damage(newest.name)
    damage("epoch-0.pt")
    assert main([*flags, "--num-epochs", "2"]) == 0
    assert f"Loading checkpoint from {tmp_path}/epoch-1.pt" in capsys.readouterr().err


def test_a_resumed_run_measures_its_own_speech(corpus, halfway, tmp_path, monkeypatch):
    """The speed had the speech of the batches before, too."""
    shutil.copytree(halfway, tmp_path / "exp")
    displays, leave = [], TrainingDisplay.__exit__

    def leave_noted(display, *error):
        displays.append(display)
        leave(display, *error)

    monkeypatch.setattr(TrainingDisplay, "__exit__", leave_noted)
    flags = ["--exp-dir", str(tmp_path / "exp"), "--num-epochs", "1", "--resume", "true"]
    assert main([*corpus, *flags]) == 0
    (display,) = displays
    (task,) = display._bar.tasks
    assert task.completed == pytest.approx(task.total)
    assert 0 < display._seconds < 0.9 * task.total


def test_a_mean_of_the_weights_keeps_its_period_and_knows_where_it_began(corpus, halfway, tmp_path, capsys):
    """With another period, or off and on again, the mean over a part of the run was an extrapolation."""
    shutil.copytree(halfway, tmp_path / "exp")
    flags = [*corpus, "--exp-dir", str(tmp_path / "exp"), "--resume", "true", "--average-period"]
    assert main([*flags, "2", "--num-epochs", "2"]) == 0
    average = ["average", "--exp-dir", str(tmp_path / "exp"), "--use-averaged-model", "true", "--epoch", "1"]
    assert main([*average, "--avg", "1", "--output", str(tmp_path / "model.pt")]) == 0
    capsys.readouterr()
    assert main([*average, "--avg", "2", "--output", str(tmp_path / "model.pt")]) == 1
    assert re.search("began after batch 2, .* Lower `--avg`", capsys.readouterr().err)
    assert main([*flags, "3", "--num-epochs", "3"]) == 1
    assert "`--average-period` was 2 before; a resumed run cannot change it to 3" in capsys.readouterr().err
