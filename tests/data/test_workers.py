"""Data workers, and the processes of an executor, end with their parent."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import is_running, wait_until
from warm import Program

from stateless_transducer.data.batches import _received
from stateless_transducer.data.config import WorkConfig
from stateless_transducer.data.executor import executor
from stateless_transducer.training.run_lock import run_lock

# one batch takes a quarter of an hour
PROGRAM = """
import os, sys, time
from pathlib import Path
from stateless_transducer.data import batches
from stateless_transducer.training.run_lock import run_lock

class Slow:
    def __getitem__(self, piece):
        print(os.getpid(), file=sys.stderr)
        time.sleep(900)

if __name__ == "__main__":
    with run_lock(Path(sys.argv[1]), "transducer train", warn=print):
        list(batches._loader(Slow(), [batches.Piece(0, [])], 1))
"""


IDLE = """
import os, sys, time
from stateless_transducer.data.config import WorkConfig
from stateless_transducer.data.executor import executor

def pid(_):
    return os.getpid()

if __name__ == "__main__":
    with executor(WorkConfig(num_jobs=2)) as execute:
        print(*execute(pid, [0]), file=sys.stderr)
        time.sleep(900)
"""


def _worker_of_killed(path: Path, *arguments: str) -> int:
    """Run a program until it prints the pid of a worker, kill it with SIGKILL, and return the pid."""
    program = Program([str(path), *arguments])
    with program.stderr:
        worker = int(program.stderr.readline())
    program.kill()
    program.wait()
    return worker


def test_busy_data_worker_ends_with_a_killed_parent_and_frees_its_lock(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    worker = _worker_of_killed(tmp_path / "program.py", str(tmp_path))
    assert wait_until(lambda: not is_running(worker), seconds=10)
    with run_lock(tmp_path, "transducer train", warn=pytest.fail):
        pass


def test_idle_process_of_an_executor_ends_with_a_killed_parent(tmp_path):
    (tmp_path / "program.py").write_text(IDLE)
    worker = _worker_of_killed(tmp_path / "program.py")
    assert wait_until(lambda: not is_running(worker), seconds=10)


def test_one_job_needs_no_further_process():
    with executor(WorkConfig(num_jobs=1)) as execute:
        assert list(execute(lambda number: (os.getpid(), number), (2, 1))) == [(os.getpid(), 2), (os.getpid(), 1)]


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named():
    # the sentinel of a process is a pipe, which its end closes
    ended, alive = multiprocessing.Pipe(duplex=False), multiprocessing.Pipe(duplex=False)
    ended[1].close()

    class Batches(Iterator):
        _workers = (SimpleNamespace(sentinel=ended[0], pid=11), SimpleNamespace(sentinel=alive[0], pid=22))

        def __next__(self):
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid\(s\) 11\)"):
        next(_received(Batches()))
