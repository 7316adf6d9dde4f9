"""Executors for bulk work: this process, others of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from stateless_transducer.data.config import WorkConfig
from stateless_transducer.processes import end_with_parent

_TIMEOUT_S = 10
_START_METHOD = "spawn"
"""Start method of processes: a fork of a process with threads may hang."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Executor(Protocol):
    """Callable like `map`."""

    def __call__(self, work: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterator[_Result]:
        """Yield ``work(item)`` for each item, in the order of the items."""
        ...


@contextmanager
def executor(config: WorkConfig, *shared: Path) -> Iterator[Executor]:
    """Open an executor for a block; on an error, pending work is cancelled.

    Args:
        config: number of processes, or address of the cluster. With one process, this one does the work: another one
            would first import torch for seconds.
        shared: existing files and folders that every worker must be able to read.

    Raises:
        ValueError: a process died, or the cluster cannot be reached or used, or it lost its workers.
    """
    if config.dask is not None:
        with _dask(config.dask, shared) as execute:
            yield execute
        return
    if config.num_jobs == 1:
        yield map
        return
    context = multiprocessing.get_context(_START_METHOD)
    pool = ProcessPoolExecutor(config.num_jobs, mp_context=context, initializer=end_with_parent)
    try:
        yield pool.map
    except BrokenProcessPool as err:
        raise ValueError(
            f"One of {config.num_jobs} processes died; if memory was short, lower `num_jobs`. Run the command again "
            "to resume."
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _dask(address: str, shared: Sequence[Path]) -> Iterator[Executor]:
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ValueError("`dask` needs distributed: pip install 'stateless-transducer[dask]'.") from None
    _knock(address)
    with Client(address, timeout=_TIMEOUT_S, set_as_default=False) as client:
        _check_workers(client, address, shared)
        pool = client.get_executor()
        try:
            yield pool.map
        except KilledWorker as err:
            raise ValueError(
                f"`dask` {address}: the same task ended several workers ({err.last_worker.address} was the last). "
                "Check their logs and their memory, then run the command again to resume."
            ) from err
        except CancelledError as err:
            raise ValueError(
                f"`dask` {address}: the connection to the scheduler was lost; run the command again to resume."
            ) from err
        except ModuleNotFoundError as err:
            raise ValueError(
                f"`dask` {address}: a worker has no module {err.name}; install stateless-transducer[train] on it."
            ) from err
        finally:
            pool.shutdown(wait=False)


def _knock(address: str) -> None:
    """Check that something listens at an address; Dask's own check takes longer and prints a traceback."""
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, OverflowError) as err:
        raise ValueError(f"`dask` {address}: no scheduler answers ({err}).") from err


def _check_workers(client, address: str, shared: Sequence[Path]) -> None:
    try:
        client.wait_for_workers(1, timeout=_TIMEOUT_S)
    except TimeoutError as err:
        raise ValueError(
            f"`dask` {address}: the scheduler has no workers; start some with `dask worker {address}`."
        ) from err
    for path in shared:
        answers = client.run(os.path.exists, str(path.resolve()))
        workers = [worker for worker, exists in answers.items() if exists is not True]
        if workers:
            raise ValueError(
                f"`dask` {address}: {', '.join(workers)} cannot read {path.resolve()}; data and sound must have the "
                "same path on all machines."
            )
