"""Groups of processes: errors, deaths and requests to stop reach the process that started them, and the reverse."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import is_running, wait_until
from warm import Program

from stateless_transducer.training import distributed
from stateless_transducer.training.distributed import Rank, launch
from stateless_transducer.training.stopping import StopRequest


class DamagedError(ValueError):
    """As errors of sound files: of its own class, and not made from its message."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


USUAL_START_METHOD = distributed._START_METHOD


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # as usual, ranks import torch anew: one of the tests of signals lets them
    monkeypatch.setattr(distributed, "_START_METHOD", "forkserver")


def _fail_on_rank_1(rank: Rank) -> None:
    if rank.rank == 1:
        raise DamagedError("a.wav", "truncated:\nsecond line")
    dist.barrier()


def test_error_of_a_rank_arrives_whole():
    with pytest.raises(ValueError, match=r"\Aa\.wav: truncated:\nsecond line\Z"):
        launch(_fail_on_rank_1, world_size=2)


def _die_on_rank_1(rank: Rank) -> None:
    if rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_killed_rank_is_named_with_its_signal():
    with pytest.raises(ChildProcessError, match=r"Process 1 of 2 \(pid \d+\) .*SIGKILL.*`max_duration`"):
        launch(_die_on_rank_1, world_size=2)


def _hang_on_rank_0(rank: Rank, path: str) -> None:
    dist.barrier()
    if rank.rank == 1:
        Path(path).touch()
        raise OSError("no space left")
    time.sleep(1000)


def test_rank_that_hangs_is_ended_when_another_one_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "_GRACE_S", 0.5)
    path = tmp_path / "failed"
    with pytest.raises(OSError, match=r"\Ano space left\Z"):
        launch(_hang_on_rank_0, str(path), world_size=2)
    # the launcher itself waits for 30 seconds
    assert time.time() - path.stat().st_mtime < 20


def test_port_in_use_is_refused_by_name():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"`master_port` {port} is in use"):
            launch(_fail_on_rank_1, world_size=2, master_port=port)


def _write_until_stopped(rank: Rank, folder: str, stops: bool) -> None:
    path = Path(folder) / f"rank-{rank.rank}"
    with StopRequest() as stop:
        dist.barrier()
        while not (stops and stop.name):
            # renamed: a reader must not meet an empty file
            temporary = path.with_suffix(".new")
            temporary.write_text(str(os.getpid()))
            temporary.replace(path)
            time.sleep(0.01)
    path.with_suffix(".stopped").touch()


PROGRAM = """
import sys
import test_distributed as ranks

ranks.distributed._START_METHOD = sys.argv[3]
# each rank imports this file
if __name__ == "__main__":
    ranks.launch(ranks._write_until_stopped, sys.argv[1], sys.argv[2] == "stops", world_size=2)
"""


def _start_ranks(folder: Path, what: str, start_method: str = "fork") -> tuple[Program, list[int]]:
    """A process that launches two ranks, and their process ids once both work."""
    (folder / "program.py").write_text(PROGRAM)
    program = Program([str(folder / "program.py"), str(folder), what, start_method])
    paths = [folder / "rank-0", folder / "rank-1"]
    if not wait_until(lambda: all(path.exists() and path.read_text() for path in paths), seconds=120):
        program.kill()
        pytest.fail(program.rest())
    return program, [int(path.read_text()) for path in paths]


def test_ranks_end_with_a_killed_parent(tmp_path):
    program, ranks = _start_ranks(tmp_path, "goes on")
    program.kill()
    program.rest()
    assert wait_until(lambda: not any(map(is_running, ranks)), seconds=10)


@pytest.mark.parametrize("start_method", ["fork", pytest.param(USUAL_START_METHOD, marks=pytest.mark.sweep)])
def test_first_interrupt_stops_all_ranks_in_good_order(tmp_path, start_method):
    program, _ = _start_ranks(tmp_path, "stops", start_method)
    program.send_signal(signal.SIGINT)
    assert "Ctrl-C again" in program.stderr.readline()
    errors = program.rest()
    assert program.wait() == 0, errors
    assert len(list(tmp_path.glob("*.stopped"))) == 2


def test_second_interrupt_ends_all_ranks_at_once(tmp_path):
    program, ranks = _start_ranks(tmp_path, "goes on")
    program.send_signal(signal.SIGINT)
    assert program.stderr.readline()
    assert all(map(is_running, ranks))
    program.send_signal(signal.SIGINT)
    assert program.wait(20) in (130, -signal.SIGINT), program.rest()
    program.rest()
    assert wait_until(lambda: not any(map(is_running, ranks)), seconds=10)


def test_error_under_torchrun_does_not_wait_for_the_other_ranks(monkeypatch):
    """Destructors of nccl's group wait for all its processes."""
    events = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "device_of", lambda local_rank: torch.device("cuda:0"))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: events.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: events.append("destroyed"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(atexit, "register", lambda function: events.append(function.__name__))

    def fail(rank):
        raise ValueError("CUDA out of memory in a batch")

    with pytest.raises(ValueError, match="out of memory"):
        launch(fail, world_size=1)
    assert events == ["nccl", "_exit_at_once"]


def test_more_processes_than_gpus_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert distributed.device_of(1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"Process 2 .*LOCAL_RANK.* but 2 are visible; lower torchrun's"):
        distributed.device_of(2)


@pytest.mark.parametrize(("chosen", "expected"), [(None, [3]), ("4", [])])
def test_ranks_share_the_cores_that_they_may_use(monkeypatch, chosen, expected):
    """Those of the affinity, which may be fewer than the machine has; OMP_NUM_THREADS wins."""
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    distributed._share_cores()
    assert counts == expected
