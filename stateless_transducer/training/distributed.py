"""Run a function on one rank or on many."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from stateless_transducer.processes import CarriedError, end_with_parent, signals_blocked
from stateless_transducer.threads import num_cores
from stateless_transducer.training.stopping import StopRequest

_START_METHOD = "spawn"
"""Start method of ranks: a fork could use neither a GPU nor threads of its parent."""
_POLL_S = 0.1
_GRACE_S = 5.0
"""Time for ranks to end after another one has failed."""
_CONSEQUENCE_S = 1.0
"""Delay of unexpected errors. They may be caused by another rank's failure, which the launcher must see first."""


@dataclass(frozen=True)
class Rank:
    """One of the processes of a run, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports to the user."""
        return self.rank == 0


def launch(function: Callable[..., None], *args: Any, world_size: int, master_port: int = 0) -> None:
    """Call ``function(rank, *args)`` once, in ``world_size`` new processes, or as the rank that torchrun assigned.

    New processes end with this one. A SIGTERM or SIGINT reaches them as SIGTERM, for which ``function`` enters a
    `StopRequest`; a second SIGINT ends them.

    Args:
        function: function at the top level of a module, so that new processes can import it.
        *args: picklable arguments of the function after the rank.
        world_size: number of processes.
        master_port: port on which new processes meet; 0: a free one.

    Raises:
        ValueError: there are fewer GPUs than processes, or the port is in use.
        ChildProcessError: a rank was killed; the message names rank and signal.
        Exception: raised by ``function`` on any of the ranks; the other ranks are ended.
    """
    if _is_under_torchrun():
        _run_under_torchrun(function, args)
    elif world_size == 1:
        function(Rank(0, 1, device_of(0)), *args)
    else:
        check_gpus(world_size)
        _run_ranks(function, args, world_size, master_port)


def is_first_process() -> bool:
    """Whether this is the first process of the run, that is, not a higher rank under torchrun."""
    return not _is_under_torchrun() or os.environ.get("RANK", "0") == "0"


def _is_under_torchrun() -> bool:
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def _run_under_torchrun(function: Callable[..., None], args: tuple) -> None:
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        # torchrun reports the error that `record` writes to a file
        record(_run_in_group)(function, args)
    except BaseException:
        atexit.register(_exit_at_once)
        raise


def _run_ranks(function: Callable[..., None], args: tuple, world_size: int, master_port: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        max_restarts=0,
        run_id=f"transducer-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{master_port}",
        rdzv_configs={"is_host": True},
        local_addr="127.0.0.1",
        start_method=_START_METHOD,
        # exceptions arrive through a queue
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    errors = _Errors()
    other_children = multiprocessing.active_children()
    # in the main thread, the launcher would install signal handlers, and kill the ranks after 30 seconds
    with _without_elastic_log(), StopRequest(is_announced=True) as stop, ThreadPoolExecutor(1) as pool:
        launched = pool.submit(_launch, elastic_launch(config, _run_rank), function, args, errors.queue)
        try:
            _supervise(launched, stop, errors, other_children, world_size)
            launched.result()
        except KeyboardInterrupt:
            _kill(launched, other_children)
            raise
        except RendezvousConnectionError as err:
            raise ValueError(
                f"`master_port` {master_port} is in use. Leave the option out to get a free port, or choose another."
            ) from err
        except ChildFailedError as err:
            number, failure = err.get_first_failure()
            error = errors.of(number)
            if error is not None:
                raise error from error.__cause__
            raise ChildProcessError(_fate(f"Process {number} of {world_size}", failure.pid, failure.exitcode)) from err


class _Errors:
    """Exceptions of the ranks, as they arrive."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[int, CarriedError]] = multiprocessing.get_context(_START_METHOD).SimpleQueue()
        self._arrived: dict[int, CarriedError] = {}

    def of(self, rank: int) -> Exception | None:
        """Return the exception that a rank raised, or None."""
        self.arrive()
        return self._arrived[rank].unpack() if rank in self._arrived else None

    def arrive(self) -> bool:
        """Read the exceptions that have arrived; return whether there is one."""
        while not self.queue.empty():
            rank, error = self.queue.get()
            self._arrived[rank] = error
        return bool(self._arrived)


def _launch(launch_ranks: Callable[..., Any], *args: Any) -> None:
    # the ranks inherit the mask: signals that arrive while they start wait for their handlers
    with signals_blocked((signal.SIGTERM, signal.SIGINT)):
        launch_ranks(*args)


def _supervise(
    launched: Future, stop: StopRequest, errors: _Errors, other_children: list[BaseProcess], world_size: int
) -> None:
    """Wait for the ranks, forward a request to stop, and end the remaining ranks after one has failed."""
    stopped: set[int | None] = set()
    kill_at = float("inf")
    while not wait([launched], timeout=_POLL_S).done:
        # listing children collects exit codes that the launcher needs, so list them only until all ranks are signalled
        if stop.name is not None and len(stopped) < world_size:
            for child in _ranks(other_children):
                if child.pid not in stopped:
                    stopped.add(child.pid)
                    child.terminate()
        if errors.arrive():
            kill_at = min(kill_at, time.monotonic() + _GRACE_S)
        # sooner than the launcher, which waits 30 seconds
        if time.monotonic() > kill_at:
            _kill(launched, other_children)


def _kill(launched: Future, other_children: list[BaseProcess]) -> None:
    """Kill all ranks, including those that are still starting."""
    while True:
        for child in _ranks(other_children):
            child.kill()
        if wait([launched], timeout=_POLL_S).done:
            return


def _ranks(other_children: list[BaseProcess]) -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child not in other_children]


@contextmanager
def _without_elastic_log() -> Iterator[None]:
    """Silence the launcher's log: its failures become exceptions here."""
    loggers = [logging.getLogger(f"torch.distributed.{name}") for name in ("elastic", "launcher")]
    null = logging.NullHandler()
    propagates = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(null)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, propagates, strict=True):
            logger.propagate = propagate
            logger.removeHandler(null)


def _fate(name: str, pid: int, exitcode: int) -> str:
    """Describe how a process ended that reported no error."""
    if exitcode >= 0:
        return f"{name} (pid {pid}) ended with status {exitcode} and no message."
    try:
        signal_name = signal.Signals(-exitcode).name
    except ValueError:
        signal_name = f"signal {-exitcode}"
    advice = ""
    if signal_name == "SIGKILL":
        advice = " The system does that when memory runs out: lower `max_duration`, `num_workers` or `world_size`."
    return (
        f"{name} (pid {pid}) was killed by {signal_name}.{advice} `resume=True` continues from the newest checkpoint."
    )


def _run_rank(function: Callable[..., None], args: tuple, queue: SimpleQueue) -> None:
    """Run a function as one of the processes of `launch`."""
    end_with_parent()
    # Ctrl-C reaches all processes of a terminal; the parent forwards it as SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM is blocked until the function enters a `StopRequest`, and without effect after it has left that
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    _share_cores()
    try:
        _run_in_group(function, args)
    except Exception as err:
        queue.put((int(os.environ["RANK"]), CarriedError.of(err)))
        if not isinstance(err, (ValueError, OSError)):
            time.sleep(_CONSEQUENCE_S)
        _exit_at_once()


def _share_cores() -> None:
    """Take this rank's share of the cores, unless the user has set the number of threads."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // int(os.environ["WORLD_SIZE"])))


def _run_in_group(function: Callable[..., None], args: tuple) -> None:
    device = device_of(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    function(Rank(dist.get_rank(), dist.get_world_size(), device), *args)
    # skipped after an error: nccl would wait for the other ranks, which wait for this one
    dist.destroy_process_group()


def _exit_at_once() -> None:
    """End this process without destructors: those of nccl wait for the other ranks."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def check_gpus(world_size: int) -> None:
    """Check that there is a GPU per process, on a machine with GPUs.

    Raises:
        ValueError: there are fewer GPUs than processes.
    """
    count = torch.cuda.device_count()
    if 0 < count < world_size:
        raise ValueError(
            f"`world_size` {world_size} needs as many GPUs, but {count} are visible; see CUDA_VISIBLE_DEVICES."
        )


def device_of(local_rank: int) -> torch.device:
    """Return the GPU of a rank of this machine, or the CPU.

    Raises:
        ValueError: there are fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"Process {local_rank} of this machine (LOCAL_RANK) needs a GPU of its own, but {count} are visible; lower "
            "torchrun's `--nproc-per-node`, and see CUDA_VISIBLE_DEVICES."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
