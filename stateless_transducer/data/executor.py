"""Who does bulk work: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from stateless_transducer.data.config import WorkConfig

_TIMEOUT_S = 10


@contextmanager
def executor(config: WorkConfig, *shared: Path) -> Iterator[Executor]:
    """An executor for the length of the block; on an error, what has not begun is dropped.

    Args:
        config: says which.
        shared: files and folders that are there, and that every worker must see.

    Raises:
        ValueError: a process died; the cluster cannot be reached or used, or lost a worker for good.
    """
    if config.dask is not None:
        with _dask(config.dask, shared) as pool:
            yield pool
        return
    # spawned: a fork of a process with threads may hang
    pool = ProcessPoolExecutor(config.num_jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool as err:
        raise ValueError(
            f"One of {config.num_jobs} processes died; if memory was short, lower `--num-jobs`. Run it again to go on."
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _dask(address: str, shared: Sequence[Path]) -> Iterator[Executor]:
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ValueError("`--dask` needs distributed: pip install 'stateless-transducer[dask]'.") from None
    _knock(address)
    with Client(address, timeout=_TIMEOUT_S, set_as_default=False) as client:
        _check_workers(client, address, shared)
        pool = client.get_executor()
        try:
            yield pool
        except KilledWorker as err:
            raise ValueError(
                f"`--dask` {address}: the same work ended several workers ({err.last_worker.address} was the last); "
                "look at their logs and their memory. Run it again to go on."
            ) from err
        except CancelledError as err:
            raise ValueError(f"`--dask` {address}: the connection to the scheduler was lost; run again.") from err
        except ModuleNotFoundError as err:
            raise ValueError(
                f"`--dask` {address}: a worker has no module {err.name}; install stateless-transducer[train] there."
            ) from err
        finally:
            pool.shutdown(wait=False)


def _knock(address: str) -> None:
    """Whether anybody listens there; Dask's own answer takes longer and leaves a traceback behind."""
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, OverflowError) as err:
        raise ValueError(f"`--dask` {address}: no scheduler answers there ({err}).") from err


def _check_workers(client, address: str, shared: Sequence[Path]) -> None:
    try:
        client.wait_for_workers(1, timeout=_TIMEOUT_S)
    except TimeoutError as err:
        raise ValueError(
            f"`--dask` {address}: the scheduler has no workers; start some with `dask worker {address}`."
        ) from err
    for path in shared:
        sees = client.run(os.path.exists, str(path.resolve()))
        blind = [worker for worker, answer in sees.items() if answer is not True]
        if blind:
            raise ValueError(
                f"`--dask` {address}: {', '.join(blind)} cannot see {path.resolve()}; data and sound must be where all "
                "machines find them under the same name."
            )
