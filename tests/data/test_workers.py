"""Data workers as processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from processes import is_running, wait_until

from stateless_transducer.training.run_lock import run_lock

# one batch takes a quarter of an hour
PROGRAM = """
import os, sys, time
from pathlib import Path
from stateless_transducer.data import batches
from stateless_transducer.training.run_lock import run_lock

class Slow:
    def __getitem__(self, piece):
        print(os.getpid(), flush=True)
        time.sleep(900)

if __name__ == "__main__":
    with run_lock(Path(sys.argv[1]), "transducer train", warn=print):
        list(batches._loader(Slow(), [batches.Piece(0, [])], 1))
"""


def test_busy_data_worker_ends_with_a_killed_parent_and_frees_its_lock(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, str(program), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert wait_until(lambda: not is_running(worker), seconds=10)
    with run_lock(tmp_path, "transducer train", warn=pytest.fail):
        pass
