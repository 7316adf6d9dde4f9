"""Memory that training needs, estimated or measured before it starts.

Letters: N utterances, T_in feature frames, U tokens.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.data.plan import BatchLimits, Lengths, chain_counts
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.training.config import OptimConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import BatchTooLargeError, Learner, autocast_dtype, is_out_of_memory
from stateless_transducer.training.objective import Objective, TransducerObjective
from stateless_transducer.training.optim import warm_up_fault
from stateless_transducer.training.progress import peak_bytes
from stateless_transducer.training.task import TransducerTask
from stateless_transducer.wording import counted

_GIB = 2**30
_SHARE_OF_MEMORY = 0.9
"""Beyond this share, fragmentation is likely to end a long run."""
_REACH = 4
"""Largest batch proposed on a CPU, as a multiple of the largest one measured."""
_PATIENCE_S = 20.0
"""A batch that takes longer is the last one measured on a CPU."""


def describe_task(task: TransducerTask, rank: Rank) -> str:
    """Describe a run for ``--dry-run``."""
    config, objective = task.config, task.build_objective()
    loader = task.loader(Rank(0, config.world_size, rank.device))
    lengths, batches = task.data.lengths, loader.plan(0)
    batch_size = np.mean([len(batch) for batch in batches])
    num_all = sum(parameter.numel() for parameter in objective.model.parameters())
    num_trainable = sum(parameter.numel() for parameter in objective.model.parameters() if parameter.requires_grad)
    num_heads = sum(parameter.numel() for parameter in objective.parameters()) - num_all
    heads = f", and {num_heads:,} in heads for training only" if num_heads else ""
    fixed, activations = needed_bytes(task, objective)
    sizes = task.start.model_config
    fault = warm_up_fault(config, len(batches), model_size=objective.width)
    return "\n".join(
        [
            f"model         {num_all:,} parameters, {num_trainable:,} of them trainable{heads}; {sizes.summary}",
            f"data          {counted(len(lengths), 'utterance')}, {lengths.seconds.sum() / 3600:.2f} h, "
            f"{lengths.seconds.min():.1f} to {lengths.seconds.max():.1f} s each",
            f"epoch         {counted(len(batches), 'batch')} of about {batch_size:.0f} utterances, "
            f"{counted(config.world_size, 'process')} together",
            f"training      {counted(config.num_epochs, 'epoch')}, "
            f"{counted(len(batches) * config.num_epochs, 'batch')}, "
            f"{loader.seconds(batches) * config.num_epochs / 3600:.1f} h of speech",
            f"memory        about {(fixed + activations) / _GIB:.1f} GiB a process: {fixed / _GIB:.2f} for weights, "
            f"gradients and optimizer, {activations / _GIB:.2f} for the largest batch",
            f"precision     {autocast_dtype(config.precision, rank.device) or torch.float32} on {rank.device}",
            f"checkpoints   {config.exp_dir}/epoch-0.pt to epoch-{config.num_epochs - 1}.pt, "
            f"{stored_bytes(objective, config.optim) / _GIB:.2f} GiB each",
            *([f"warning       {fault}"] if fault else []),
        ]
    )


def needed_bytes(task: TransducerTask, objective: TransducerObjective) -> tuple[float, float]:
    """Estimate the memory of training: the fixed part, see `fixed_bytes`, and the activations of the largest batch."""
    shapes = _worst(task, task.data.config.max_duration)
    activations = max(activation_bytes(task, objective, *shape) for shape in shapes)
    return fixed_bytes(objective, task.config.optim), activations


def fixed_bytes(objective: Objective, optim: OptimConfig) -> int:
    """Bytes of what a checkpoint stores, and of the gradients."""
    return stored_bytes(objective, optim) + 4 * _num_trainable(objective)


def stored_bytes(objective: Objective, optim: OptimConfig) -> int:
    """Bytes of the weights and their mean, and of two optimizer moments of those that are trained."""
    # the mean since the start is in float64
    copies = 1 + bool(optim.ema_decay) + 2 * bool(optim.average_period)
    num_all = sum(parameter.numel() for parameter in objective.parameters())
    return 4 * (num_all * copies + 2 * _num_trainable(objective))


def _num_trainable(objective: Objective) -> int:
    return sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)


def _worst(task: TransducerTask, max_duration: float) -> list[tuple[int, int, int]]:
    data, config = task.data.config, task.config
    return worst_batches(
        task.data.lengths.longer(2 * data.silence_s),
        BatchLimits(max_duration, data.max_cells),
        config.world_size * config.optim.accumulate_grad,
        data.join_up_to_s,
    )


def worst_batches(
    lengths: Lengths, limits: BatchLimits, parts: int, join_up_to_s: float = 0.0
) -> list[tuple[int, int, int]]:
    """Return (N, T_in, U) of the largest batches that a plan may hold.

    They consist of the longest utterances, of those with the largest lattices, and of joined ones. The limits hold for
    all parts together: after an uneven division, some parts have one utterance more.
    """
    shapes, keys = [], [lengths.seconds, lengths.num_cells, lengths.num_tokens]
    if join_up_to_s:
        # the utterances with the longest chains, and those with the most tokens in a chain
        keys += [values * (join_up_to_s // lengths.seconds) for values in (lengths.seconds, lengths.num_tokens)]
    for key in keys:
        i = int(key.argmax())
        seconds, num_frames, num_tokens = lengths.seconds[i], int(lengths.num_frames[i]), int(lengths.num_tokens[i])
        count = int(limits.max_duration * parts / seconds)
        if limits.max_cells:
            count = min(count, limits.max_cells * parts // max(1, int(lengths.num_cells[i])))
        N = max(1, math.ceil(count / parts))
        for rows in (N, *chain_counts(lengths.of(np.full(N, i)), limits, join_up_to_s)):
            k = math.ceil(N / rows)
            shapes.append((rows, k * num_frames, k * num_tokens))
    return sorted(set(shapes))


def made_up_batch(N: int, T_in: int, U: int, task: TransducerTask) -> Batch:
    """Return a batch of noise of the given size."""
    # the modified loss needs one frame more than tokens
    subsampling = task.start.model_config.encoder.subsampling
    while int(subsampling.lens(torch.tensor(T_in))) <= U:
        T_in += subsampling.min_frames
    features = torch.randn(N, T_in, task.start.model_config.feature_dim) + PADDING_VALUE / 2
    tokens = torch.randint(1, task.start.model_config.vocab_size, (N, U))
    tokens[tokens == task.start.model_config.blank_id] = 0 if task.start.model_config.blank_id else 1
    ids = tuple(f"made-up-{n}" for n in range(N))
    return Batch(
        features,
        torch.full((N,), T_in),
        tokens,
        torch.full((N,), U),
        ids,
        ("",) * N,
        task.start.fbank_config.frame_shift_s,
    )


def activation_bytes(task: TransducerTask, objective: TransducerObjective, N: int, T_in: int, U: int) -> float:
    """Estimate the bytes of activations that a batch stores for its gradient.

    Measured on the CPU for one utterance of two lengths: a part grows with the frames, attention with their square.
    """
    objective = objective.cpu().train()
    subsampling = task.start.model_config.encoder.subsampling
    min_frames = subsampling.min_frames
    lengths = sorted({max(min_frames, T_in // 4), max(2 * min_frames, T_in // 2)})
    sizes = np.array([_saved_bytes(task, objective, frames) for frames in lengths], dtype=float)
    powers = np.array([[frames, frames**2] for frames in lengths], dtype=float)
    linear, square = np.linalg.solve(powers, sizes)
    encoder = N * objective.num_copies * (linear * T_in + square * T_in**2)
    losses = objective.extra_bytes(N, int(subsampling.lens(torch.tensor(T_in))), U)
    dtype = autocast_dtype(task.config.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return encoder * (0.6 if dtype is not None else 1.0) + losses


def _saved_bytes(task: TransducerTask, objective: TransducerObjective, num_frames: int) -> int:
    """Bytes of the tensors, parameters excluded, that the encoder saves for the gradient of one utterance."""
    batch, saved = made_up_batch(1, num_frames, 1, task), {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # the result keeps the saved tensors alive
        result = objective.model.encode(batch.features, batch.feature_lens)
    total = sum(size for address, size in saved.items() if address not in parameters)
    del result
    return total


def find_max_duration(task: TransducerTask, rank: Rank, say: Callable[[str], None]) -> str:
    """Train on the worst batches of growing ``--max-duration``; return the proposal as an option.

    The function trains a separate model on noise. On a GPU, it searches for the largest batch that fits. On a CPU,
    where a lack of memory would end other programs, it measures up to half of the free memory and extrapolates from
    there. The proposal never exceeds the largest batch of the data.
    """
    longest = float(task.data.lengths.seconds.max())
    largest = max(longest, _largest_s(task))
    search = _extrapolate if rank.device.type == "cpu" else _search
    duration = search(task, rank, say, longest, largest)
    if duration >= largest:
        group = "a group of similar length"
        share = f"half of {group}, for `--drop-last`" if task.data.config.drop_last else group
        say(f"The data fill at most {largest:.1f} s: {share} (`--num-buckets` {task.data.config.num_buckets})")
    return f"--max-duration {math.ceil(largest) if duration >= largest else max(1, math.floor(duration))}"


def _largest_s(task: TransducerTask) -> float:
    """Return the seconds of the largest batch of an epoch without ``--max-duration``, padding included."""
    # with drop_last, such an epoch would have no batch
    config = replace(task.data.config, max_duration=sys.float_info.max, drop_last=False)
    unlimited = replace(task, data=replace(task.data, config=config))
    parts = task.config.world_size * task.config.optim.accumulate_grad
    batches = unlimited.loader(Rank(0, task.config.world_size, torch.device("cpu"))).plan(0)
    seconds = task.data.lengths.seconds
    largest = max((len(batch) * float(seconds[batch].max()) / parts for batch in batches), default=0.0)
    # with drop_last, a group must fill more than one batch
    return largest / 2 if task.data.config.drop_last else largest


def _search(task: TransducerTask, rank: Rank, say: Callable[[str], None], longest: float, largest: float) -> float:
    """Return the largest duration that fits into the GPU's memory."""
    capacity = torch.cuda.get_device_properties(rank.device).total_memory * _SHARE_OF_MEMORY
    fits, fails, duration = 0.0, None, longest
    while fits < largest and (fails is None or fails - fits > 0.1 * fails):
        used = _measure(task, rank, duration)
        size = "does not fit" if used is None else f"{used / _GIB:.1f} GiB"
        say(f"--max-duration {duration:.0f}: {size} of {capacity / _GIB:.1f}")
        if used is not None and used <= capacity:
            fits = duration
        else:
            fails = duration
        duration = min(2 * duration, largest) if fails is None else (fits + fails) / 2
        if fails is not None and fails <= longest:
            raise _too_long(longest)
    return fits


def _extrapolate(task: TransducerTask, rank: Rank, say: Callable[[str], None], longest: float, largest: float) -> float:
    """Double the duration while memory and time permit, and extrapolate from there; return the largest that fits."""
    # what the process has before it trains: the first slope, which counts the model as well, is never too small
    durations, sizes, slope, took_s = [0.0], [peak_bytes()], 0.0, 0.0
    capacity = (free_bytes() + sizes[0]) * _SHARE_OF_MEMORY / rank.world_size
    duration = longest
    while len(durations) == 1 or (
        sizes[-1] + slope * (duration - durations[-1]) < capacity / 2 and (len(durations) == 2 or took_s < _PATIENCE_S)
    ):
        started = time.monotonic()
        used = _measure(task, rank, duration)
        assert used is not None
        took_s = time.monotonic() - started
        say(f"--max-duration {duration:.0f}: {used / _GIB:.2f} GiB")
        slope = (used - sizes[-1]) / (duration - durations[-1])
        durations.append(duration)
        sizes.append(used)
        if duration >= largest and used <= capacity:
            return largest
        duration = 2 * duration if len(durations) == 2 else min(2 * duration, largest)
    # the slope may be 0: small batches may need less than the earlier peak of the process
    limit = durations[-1] + (capacity - sizes[-1]) / max(1.0, slope)
    if limit < longest:
        raise _too_long(longest)
    say(f"{slope / 2**20:.1f} MiB per second of speech, {capacity / _GIB:.1f} GiB per process")
    reach = _REACH * durations[-1]
    if reach < min(limit, largest):
        say(f"Larger batches may fit; the proposal is at most {_REACH} times the largest one measured")
    return min(limit, largest, reach)


def free_bytes() -> float:
    """Return the available memory: the system's, or that of the control group (a container) if it is less."""
    # Windows has no such call: as many bytes as a small laptop has
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 8e9
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    names = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, used in names:
        # without a limit, version 2 writes "max", and version 1 a number beyond any memory
        with suppress(OSError, ValueError):
            free = min(free, float((group / limit).read_text()) - float((group / used).read_text()))
    return max(0.0, free)


def _too_long(longest: float) -> ValueError:
    return ValueError(f"One utterance of {longest:.1f} s, the longest, does not fit; lower `max_utterance_s`.")


def _measure(task: TransducerTask, rank: Rank, duration: float) -> float | None:
    """Return the peak bytes of two updates with the worst batches; None if they do not fit."""
    config = replace(task.config, world_size=1)
    learner = Learner(task.build_objective().to(rank.device), config, Rank(0, 1, rank.device))
    is_gpu = rank.device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(rank.device)
    try:
        for shape in _worst(task, duration):
            batch = made_up_batch(*shape, task)
            update = Update([batch], batch.seconds, int(batch.token_lens.sum()))
            for step in (1, 2):
                learner.learn(update, step=step, epoch=0, done=0.0)
    except BatchTooLargeError:
        return None
    except RuntimeError as err:
        # in the optimizer, which allocates its moments at the first step
        if not is_out_of_memory(err):
            raise
        return None
    finally:
        del learner
        gc.collect()
        if is_gpu:
            torch.cuda.empty_cache()
    if is_gpu:
        return float(torch.cuda.max_memory_reserved(rank.device))
    return peak_bytes()
