"""Runs in processes of their own: killed at any moment, told to stop, shared by several, on one machine and on two."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from processes import children
from small_corpus import write_small_corpus
from warm import Program, interpreter

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.training import distributed
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.run_lock import run_lock
from stateless_transducer.training.validation import TransducerValidation

# nothing random but the order, and no batch of fewer utterances than there are processes
PLAIN = ["--dropout", "0", "--spec-aug-probability", "0", "--drop-last", "true"]

# all that is drawn: dropout and, after an epoch, the chunks of a causal model; statistics that the checkpoint holds
CAUSAL = ["--num-epochs", "3", "--dropout", "0.2", "--feature-norm", "global", "--causal", "true"]
CAUSAL += ["--whole-epochs", "1", "--chunk-size", "8,16,-1", "--left-context-frames", "16,-1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Options of ``transducer train`` for 48 made-up utterances."""
    torch.manual_seed(1)
    return ["train", *write_small_corpus(tmp_path_factory.mktemp("corpus"), count=48), "--max-duration", "6"]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([*corpus, "--exp-dir", str(folder), *CAUSAL]) == 0
    return folder


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def _start(arguments):
    return Program(["-m", "stateless_transducer.cli", *arguments])


def _losses(folder):
    """Step -> loss of the batch; of steps done over, the last ones."""
    rows = map(json.loads, (folder / "log" / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["current_loss"] for row in rows if "current_loss" in row}


def _same_weights(a, b):
    a, b = (load_checkpoint(path).weights for path in (a, b))
    return all(torch.equal(value, b[name]) for name, value in a.items())


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_a_run_killed_at_any_moment_goes_on_bit_equal(corpus, whole, tmp_path):
    """kill -9 after another number of batches each time; --resume goes on from the last checkpoint within the epoch."""
    flags = ["--exp-dir", tmp_path, *CAUSAL, "--save-every", "1", "--resume", "true"]
    num_kills = 0
    for wanted in (2, 6, None):
        process = _start([*corpus, *flags])
        for line in process.stderr:
            if wanted is not None and line.count("tot_loss[") and int(line.split("batch ")[1].split(",")[0]) >= wanted:
                process.kill()
                num_kills += 1
                break
        process.rest()
    assert num_kills == 2 and process.wait() == 0
    assert _losses(tmp_path) == _losses(whole)
    assert _same_weights(tmp_path / "epoch-2.pt", whole / "epoch-2.pt")
    # both have the statistics of the features, which a resumed run does not take again
    cuts = CutSet.from_file(Path(corpus[corpus.index("--manifest-dir") + 1]) / "aishell_cuts_train.jsonl.gz")
    mean = torch.cat([torch.from_numpy(cut.load_features()) for cut in cuts]).mean(0)
    torch.testing.assert_close(load_checkpoint(tmp_path / "epoch-2.pt").weights["normalizer.mean"], mean)
    # half-written files carry another name; the checkpoints of the epoch that are not the last ones are gone
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 3


def test_whole_epochs_need_a_causal_model(corpus, tmp_path, capsys):
    assert main([*corpus, "--exp-dir", str(tmp_path), "--whole-epochs", "2"]) == 1
    assert "`--whole-epochs` 2 needs `--causal true`" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.sweep)])
def test_a_run_told_to_stop_saves_and_says_how_to_go_on(corpus, whole, tmp_path, number):
    flags = ["--exp-dir", tmp_path, *CAUSAL]
    process = _start([*corpus, *flags])
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "batch 1, loss" in line and process.poll() is None:
            process.send_signal(number)
    process.rest()
    assert process.wait() == 0
    assert f"Stopped by {number.name}; resume with `--resume true`" in lines[-1]
    (left,) = tmp_path.glob("checkpoint-*.pt")
    assert load_checkpoint(left).training_state["position"]["batch"] >= 2
    assert main([*corpus, *map(str, flags), "--resume", "true"]) == 0
    assert _same_weights(tmp_path / "epoch-2.pt", whole / "epoch-2.pt")


def _shared(corpus, folder, world_size, duration):
    """Losses of a run without anything random but the order."""
    flags = ["--exp-dir", str(folder), "--num-epochs", "2", *PLAIN]
    flags += ["--world-size", str(world_size), "--max-duration", str(duration)]
    assert main([*corpus, *flags]) == 0
    return _losses(folder)


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    return _shared(corpus, tmp_path_factory.mktemp("alone"), 1, 12)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.sweep)])
def test_processes_with_their_share_of_the_batch_learn_the_same(corpus, alone, tmp_path, world_size, monkeypatch):
    monkeypatch.setattr(distributed, "_START_METHOD", "forkserver")
    found = _shared(corpus, tmp_path, world_size, 12 / world_size)
    # sums in another order; Adam makes rounding larger, step by step
    assert found == pytest.approx(alone, rel=1e-3) and len(found) == 8
    logs = [path.read_text() for path in sorted((tmp_path / "log").glob("log-train-*-[0-3]"))]
    assert len(logs) == world_size
    for pattern in (r"validation: loss=\S+", r"learning rate: [\d.e-]+"):
        assert len({tuple(re.findall(pattern, log)) for log in logs}) == 1


@pytest.mark.sweep
def test_two_machines_learn_the_same(corpus, alone, tmp_path):
    """torchrun on two addresses of the loopback network, one process each."""
    port, processes = _free_port(), []
    flags = ["--exp-dir", tmp_path, "--num-epochs", "2", *PLAIN]
    for rank in range(2):
        command = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += ["--local-addr", f"127.0.0.{rank + 1}", "-m", "stateless_transducer.cli"]
        command += map(str, [*corpus, *flags, "--max-duration", "6"])
        processes.append(Program(command, environment={**os.environ, "PYTHON_EXEC": str(interpreter())}))
    errors = [process.rest() for process in processes]
    assert [process.wait() for process in processes] == [0, 0], errors
    assert _losses(tmp_path) == pytest.approx(alone, rel=1e-3)


def _until_first_batch(process):
    """Lines of the log up to the first batch; the corpus is too small to end before the next ones."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "batch 1, loss" in line:
            break
    return lines


WITH_WORKERS = ["--num-epochs", "500", "--num-workers", "2"]


def test_stop_of_the_process_group_saves_though_it_reaches_data_workers(corpus, tmp_path):
    """``timeout``, schedulers and systemd send SIGTERM to all processes at once."""
    process = _start([*corpus, *WITH_WORKERS, "--exp-dir", tmp_path])
    lines = _until_first_batch(process)
    os.killpg(process.pid, signal.SIGTERM)
    lines += process.rest().splitlines(keepends=True)
    assert process.wait() == 0, lines
    assert any("Stopped by SIGTERM" in line for line in lines) and not any("Traceback" in line for line in lines)
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 1


def test_killed_data_worker_is_one_line_that_names_it(corpus, tmp_path):
    process = _start([*corpus, *WITH_WORKERS, "--exp-dir", tmp_path])
    lines = _until_first_batch(process)
    # those of one epoch may end before they are killed
    while process.poll() is None:
        for worker in children(process.pid):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    lines += process.rest().splitlines(keepends=True)
    assert process.wait() == 1 and not any("Traceback" in line for line in lines), lines
    assert re.search(r"error: .*worker.*pid.*\d.*--num-workers", lines[-1])


def test_damaged_features_are_named_with_and_without_workers(tmp_path, capsys):
    options = write_small_corpus(tmp_path, count=4)
    damaged = next(tmp_path.rglob("train01.npy"))
    damaged.write_bytes(damaged.read_bytes()[:3000])
    errors = []
    for workers in ("0", "2"):
        assert main(["train", *options, "--exp-dir", str(tmp_path / "exp"), "--num-workers", workers]) == 1
        errors.append(capsys.readouterr().err.splitlines()[-1])
    assert errors[0] == errors[1]
    assert re.search(r"error: The stored features of train01 .* cannot be read: .*prepare", errors[0])


def test_second_run_in_a_folder_is_refused(corpus, tmp_path, capsys):
    with run_lock(tmp_path, "transducer train --seed 1", warn=pytest.fail):
        assert main([*corpus, "--exp-dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert re.search(rf"`--exp-dir` {tmp_path} .*process {os.getpid()} on .*--seed 1", printed)
    assert main([*corpus, "--exp-dir", str(tmp_path), "--num-epochs", "1"]) == 0


def test_stop_reaches_all_processes(corpus, tmp_path):
    flags = ["--exp-dir", tmp_path, "--num-epochs", "500", "--world-size", "2"]
    process = _start([*corpus, *flags])
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "batch 1, loss" in line and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            break
    lines += process.rest().splitlines(keepends=True)
    assert process.wait() == 0, lines
    assert any("Stopped by SIGTERM" in line for line in lines)
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 1


@pytest.mark.sweep
def test_resuming_a_run_that_never_began_starts_it(corpus, tmp_path):
    assert main([*corpus, "--exp-dir", str(tmp_path), "--num-epochs", "1", "--resume", "true"]) == 0
    assert main([*corpus, "--exp-dir", str(tmp_path), "--num-epochs", "1", "--resume", "true"]) == 0
    assert (tmp_path / "epoch-0.pt").exists()


def test_a_stop_is_saved_before_any_validation(corpus, whole, tmp_path, monkeypatch):
    """Also after the last batch of an epoch, whose validation follows when the run is resumed."""
    num_batches = load_checkpoint(whole / "epoch-0.pt").provenance["step"]
    stops, validations = {num_batches, num_batches + 1}, []
    learn, validate = Learner.learn, TransducerValidation.loss

    def learn_and_stop(self, update, *, step, **place):
        return replace(learn(self, update, step=step, **place), is_told_to_stop=step in stops)

    def validate_noted(self, autocast):
        validations.append(sorted(path.name for path in tmp_path.glob("*.pt")))
        return validate(self, autocast)

    monkeypatch.setattr(Learner, "learn", learn_and_stop)
    monkeypatch.setattr(TransducerValidation, "loss", validate_noted)
    flags = ["--exp-dir", str(tmp_path), *CAUSAL, "--valid-interval", str(num_batches + 1)]
    assert main([*corpus, *flags]) == 0
    assert not validations and sorted(path.name for path in tmp_path.glob("*.pt")) == [f"checkpoint-{num_batches}.pt"]
    assert main([*corpus, *flags, "--resume", "true"]) == 0
    assert validations == [[f"checkpoint-{num_batches}.pt"]]
    assert (tmp_path / f"checkpoint-{num_batches + 1}.pt").exists()
    assert main([*corpus, *flags, "--resume", "true"]) == 0
    assert _same_weights(tmp_path / "epoch-2.pt", whole / "epoch-2.pt")
