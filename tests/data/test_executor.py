"""Features from a Dask cluster of two processes of this machine, and what goes wrong with one."""

from __future__ import annotations

import os
import socket

import pytest
from lhotse import CutSet
from warm import dask_workers

from stateless_transducer.cli import main
from stateless_transducer.data.config import WorkConfig
from stateless_transducer.data.executor import executor

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install '.[dask]'")


@pytest.fixture(scope="module")
def cluster():
    import dask

    # a worker that dies is not replaced, and its work not tried again
    settings = {"distributed.worker.daemon": False, "distributed.scheduler.allowed-failures": 0}
    with (
        dask.config.set(settings),
        dask_workers(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0"
        ) as made,
    ):
        yield made


def test_dask_computes_what_processes_compute(cluster, prepared, tmp_path):
    flags = ["--data-dir", str(tmp_path), "--dask", cluster.scheduler_address]
    assert main(["prepare", "musan", "--corpus-dir", str(prepared / "musan"), *flags]) == 0
    here, there = (list(CutSet.from_file(d / "fbank" / "musan_cuts.jsonl.gz")) for d in (prepared / "data", tmp_path))
    assert [cut.id for cut in here] == [cut.id for cut in there] and len(here) == 6
    assert all((a.load_features() == b.load_features()).all() for a, b in zip(here, there, strict=True))


def test_work_is_done_by_the_workers(cluster, tmp_path):
    with executor(WorkConfig(dask=cluster.scheduler_address), tmp_path) as execute:
        pids = set(execute(lambda _: os.getpid(), range(4)))
    assert pids and os.getpid() not in pids


def test_error_in_a_worker_is_the_callers(cluster, tmp_path):
    with (
        pytest.raises(NotADirectoryError),
        executor(WorkConfig(dask=cluster.scheduler_address), tmp_path) as execute,
    ):
        list(execute(os.listdir, [__file__]))


def test_folder_that_workers_cannot_see_is_named(cluster, tmp_path):
    with (
        pytest.raises(ValueError, match=r"tcp://.*, tcp://.* cannot read .*/only-here; data and sound must have"),
        executor(WorkConfig(dask=cluster.scheduler_address), tmp_path, tmp_path / "only-here"),
    ):
        pass


def test_worker_that_dies_is_explained(cluster, tmp_path):
    with (
        pytest.raises(ValueError, match=r"the same task ended several workers \(tcp://.* was the last\)"),
        executor(WorkConfig(dask=cluster.scheduler_address), tmp_path) as execute,
    ):
        list(execute(os._exit, [1]))


def test_unreachable_scheduler_is_one_line(prepared, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = [
        "--corpus-dir",
        str(prepared / "musan"),
        "--data-dir",
        str(tmp_path / "data"),
        "--dask",
        f"tcp://127.0.0.1:{port}",
    ]
    assert main(["prepare", "musan", *flags]) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and f"`--dask` tcp://127.0.0.1:{port}: no scheduler answers" in printed[0]


def test_address_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`dask` must look like tcp://HOST:PORT, but is 'myhost'"):
        WorkConfig(dask="myhost")
