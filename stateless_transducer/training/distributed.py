"""One process or many: the same function on every rank."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessRaisedException, spawn


@dataclass(frozen=True)
class Rank:
    """Which of the processes this is, and where it computes."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def launch(function: Callable[..., None], *args: Any, world_size: int, master_port: int) -> None:
    """Call ``function(rank, *args)`` once, or in ``world_size`` new processes, or as the rank that torchrun gave."""
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        with_group(int(os.environ["LOCAL_RANK"]), function, args, None)
    elif world_size == 1:
        function(Rank(0, 1, device_of(0)), *args)
    else:
        check_gpus(world_size)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(master_port), "WORLD_SIZE": str(world_size)}
        try:
            processes = spawn(with_group, args=(function, args, address), nprocs=world_size, join=False)
            assert processes is not None
            _wait_for(processes)
        except ProcessRaisedException as err:
            raise _first_cause(err) from err


def _wait_for(processes: ProcessContext) -> None:
    """Until all have ended; a request to stop is handed on to them, a second Ctrl-C ends them."""

    def hand_on(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for pid in processes.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not processes.join():
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_cause(err: Exception) -> Exception:
    """What a process raised, as it would be without processes: a user's error as a ValueError with its message."""
    name, _, message = str(err).strip().splitlines()[-1].partition(": ")
    return ValueError(message) if name.endswith(("ValueError", "OSError", "AudioError", "FoundError")) else err


def with_group(local_rank: int, function: Callable[..., None], args: tuple, address: dict[str, str] | None) -> None:
    """Join the group and call the function; ``address`` is None under torchrun, which has set it."""
    if address is not None:
        os.environ.update({"RANK": str(local_rank), "LOCAL_RANK": str(local_rank), **address})
        # Ctrl-C reaches all processes of a terminal; the one that started us hands it on
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # the cores are shared by the ranks of this machine
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(address["WORLD_SIZE"])))
    device = device_of(local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        function(Rank(dist.get_rank(), dist.get_world_size(), device), *args)
    except BaseException:
        # nccl ends a group when all its processes do; the others wait in some sum, so that this one's error would be
        # told after the ten minutes of nccl's patience, or never
        if device.type == "cuda":
            atexit.register(_exit_at_once)
        else:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _exit_at_once() -> None:
    """Leave the group to the system: its own destructors would wait for the others, too."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def check_gpus(world_size: int) -> None:
    """Refuse more processes than GPUs, where there are any.

    Raises:
        ValueError: too many.
    """
    count = torch.cuda.device_count()
    if 0 < count < world_size:
        raise ValueError(
            f"`--world-size` {world_size} needs as many GPUs, but {count} are visible; see CUDA_VISIBLE_DEVICES."
        )


def device_of(local_rank: int) -> torch.device:
    """The GPU of a rank of this machine, or the CPU.

    Raises:
        ValueError: there are fewer GPUs.
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
    """Sum of a tensor over all ranks; itself where there is one."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
