"""One run per experiment folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stateless_transducer.training import run_lock as run_lock_module
from stateless_transducer.training.run_lock import run_lock

HOLDER = """
import sys, time
from pathlib import Path
from stateless_transducer.training.run_lock import run_lock
with run_lock(Path(sys.argv[1]), "transducer train --seed 1", warn=print):
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_run_is_refused_with_the_name_of_the_first(holder, tmp_path):
    with pytest.raises(ValueError, match=rf"`exp_dir` .*process {holder.pid} on .*\(transducer train --seed 1\)"):
        with run_lock(tmp_path, "transducer train", warn=pytest.fail):
            pass


def test_lock_of_a_killed_run_is_free(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run.lock").exists()
    for _ in range(2):
        with run_lock(tmp_path, "transducer train", warn=pytest.fail):
            assert "transducer train" in (tmp_path / "run.lock").read_text()
        assert not (tmp_path / "run.lock").exists()


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_lock_module.fcntl, "flock", refuse)
    warnings = []
    with run_lock(tmp_path, "transducer train", warn=warnings.append):
        pass
    assert len(warnings) == 1 and "Operation not supported" in warnings[0]
