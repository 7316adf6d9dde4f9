"""Time that training takes, measured on a few of its batches before it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch

from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.memory import fixed_bytes
from stateless_transducer.training.objective import Objective
from stateless_transducer.training.sizing import this_machine
from stateless_transducer.training.task import TransducerTask
from stateless_transducer.wording import counted

_NUM_BATCHES = 8
_MOST_S = 10.0
"""Seconds after which no further batch is measured."""
_BATCH_S = 3.0
"""Seconds that a batch may take; larger ones are measured in part."""


def describe_time(task: TransducerTask, rank: Rank) -> str:
    """Train a separate model on a few batches and describe the time of the run, for ``--dry-run``."""
    # compilation and the start of workers would take longer than the batches
    config = replace(task.config, compile=False)
    task = replace(task, config=config, data=replace(task.data, config=replace(task.data.config, num_workers=0)))
    objective = task.build_objective()
    fixed, free = fixed_bytes(objective, config.optim), this_machine().free_bytes
    if fixed > free:
        return (
            f"time          not measured: {fixed / 2**30:.1f} GiB for the model alone, but {free / 2**30:.1f} are free"
        )
    rate, num_batches = _speech_per_second(task, objective, rank)
    loader = task.loader(Rank(0, task.config.world_size, rank.device))
    epoch_s = loader.seconds(loader.plan(0)) / rate
    # processes share the cores of a CPU, but each has a GPU of its own
    epoch_s /= task.config.world_size if rank.device.type == "cuda" else 1
    total_s = epoch_s * task.config.num_epochs
    return (
        f"speed         about {rate:.3g} s of speech per second, measured on {counted(num_batches, 'batch')}\n"
        f"time          about {timedelta(seconds=round(epoch_s))} per epoch, {timedelta(seconds=round(total_s))} in "
        "all, without validation"
    )


def _speech_per_second(task: TransducerTask, objective: Objective, rank: Rank) -> tuple[float, int]:
    """Return the seconds of speech that one process trains per second, and the number of batches measured."""
    config = task.config
    learner = Learner(objective.to(rank.device), replace(config, world_size=1), Rank(0, 1, rank.device))
    plan, parts = task.loader(rank).plan(0), config.world_size * config.optim.accumulate_grad
    # the first update also allocates memory
    single = plan[0][-parts:]
    (_, _), (speech_s, took_s) = _measure(task, rank, learner, [single, single])
    speech_total_s, total_s, num_batches = 0.0, 0.0, 0
    for utterances in plan[:_NUM_BATCHES]:
        longest_s = float(task.data.lengths.seconds[utterances].max())
        size = parts * max(1, int(_BATCH_S * speech_s / took_s / longest_s))
        ((speech_s, took_s),) = _measure(task, rank, learner, [utterances[:size]])
        speech_total_s, total_s, num_batches = speech_total_s + speech_s, total_s + took_s, num_batches + 1
        if total_s > _MOST_S:
            break
    return speech_total_s / total_s, num_batches


def _measure(
    task: TransducerTask, rank: Rank, learner: Learner, plan: Sequence[np.ndarray]
) -> Iterator[tuple[float, float]]:
    """Yield the seconds of speech and of time of each update of this process, loading included."""
    started = time.monotonic()
    for step, update in enumerate(task.loader(rank).updates(0, first=0, plan=plan), start=1):
        learner.learn(update, step=step, epoch=0, done=0.0)
        if rank.device.type == "cuda":
            torch.cuda.synchronize(rank.device)
        yield sum(batch.seconds for batch in update.batches), time.monotonic() - started
        started = time.monotonic()
