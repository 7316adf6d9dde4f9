"""How much memory training takes, before it starts: estimated, or tried out.

Letters: N utterances, T_in feature frames, U tokens.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.data.plan import BatchLimits, Lengths, chain_counts
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner, autocast_dtype, is_out_of_memory
from stateless_transducer.training.objective import Objective, TransducerObjective
from stateless_transducer.training.optim import warm_up_fault
from stateless_transducer.training.progress import peak_bytes
from stateless_transducer.training.task import TransducerTask

_GIB = 2**30
_SHARE_OF_MEMORY = 0.9
"""Beyond it, memory in pieces too small to use is likely to end a long run."""
_REACH = 4
"""So much larger than the largest batch that was tried is the largest that is proposed, on a CPU."""
_PATIENCE_S = 20.0
"""A batch that takes longer is the last one that is tried on a CPU."""


def describe_task(task: TransducerTask, rank: Rank) -> str:
    """What ``--dry-run`` prints."""
    config, objective = task.config, task.build_objective()
    loader = task.loader(Rank(0, config.world_size, rank.device))
    lengths, batches = task.data.lengths, loader.plan(0)
    num_all = sum(parameter.numel() for parameter in objective.model.parameters())
    num_learning = sum(parameter.numel() for parameter in objective.model.parameters() if parameter.requires_grad)
    num_heads = sum(parameter.numel() for parameter in objective.parameters()) - num_all
    heads = f", and {num_heads:,} in heads that training alone needs" if num_heads else ""
    fixed = fixed_bytes(objective, has_mean=config.optim.ema_decay > 0)
    worst = _worst(task, task.data.config.max_duration)
    activations = max(activation_bytes(task, objective, *shape) for shape in worst)
    sizes = task.start.model_config
    fault = warm_up_fault(config, len(batches), model_size=objective.width)
    return "\n".join(
        [
            f"model         {num_all:,} parameters, {num_learning:,} of them learn{heads}; {sizes.summary}",
            f"data          {len(lengths)} utterances, {lengths.seconds.sum() / 3600:.2f} h, "
            f"{lengths.seconds.min():.1f} to {lengths.seconds.max():.1f} s each",
            f"epoch         {len(batches)} batches of about {np.mean([len(own) for own in batches]):.0f} utterances, "
            f"{config.world_size} processes together",
            f"training      {config.num_epochs} epochs, {len(batches) * config.num_epochs} batches, "
            f"{loader.seconds(batches) * config.num_epochs / 3600:.1f} h of speech",
            f"memory        about {(fixed + activations) / _GIB:.1f} GiB a process: {fixed / _GIB:.2f} for weights, "
            f"gradients and optimizer, {activations / _GIB:.2f} for the largest batch",
            f"precision     {autocast_dtype(config.precision, rank.device) or torch.float32} on {rank.device}",
            f"checkpoints   {config.exp_dir}/epoch-0.pt to epoch-{config.num_epochs - 1}.pt, "
            f"{fixed * 3 / 4 / _GIB:.2f} GiB each",
            *([f"warning       {fault}"] if fault else []),
        ]
    )


def fixed_bytes(objective: Objective, *, has_mean: bool) -> int:
    """Weights; of those that learn gradients and two moments of the optimizer, too."""
    parameters = list(objective.parameters())
    learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return 4 * (sum(parameter.numel() for parameter in parameters) * (2 if has_mean else 1) + 3 * learning)


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
    """(N, T_in, U) of the largest batches that a plan may hold: of the longest utterances, of the largest lattices, and
    of those that are joined.

    The limits are kept by all parts together: of what does not divide evenly, some get an utterance more.
    """
    found, keys = [], [lengths.seconds, lengths.num_cells, lengths.num_tokens]
    if join_up_to_s:
        # whose chains are the longest, and say most
        keys += [each * (join_up_to_s // lengths.seconds) for each in (lengths.seconds, lengths.num_tokens)]
    for key in keys:
        i = int(key.argmax())
        seconds, num_frames, num_tokens = lengths.seconds[i], int(lengths.num_frames[i]), int(lengths.num_tokens[i])
        together = int(limits.max_duration * parts / seconds)
        if limits.max_cells:
            together = min(together, limits.max_cells * parts // max(1, int(lengths.num_cells[i])))
        N = max(1, math.ceil(together / parts))
        for rows in (N, *chain_counts(lengths.of(np.full(N, i)), limits, join_up_to_s)):
            k = math.ceil(N / rows)
            found.append((rows, k * num_frames, k * num_tokens))
    return sorted(set(found))


def made_up_batch(N: int, T_in: int, U: int, task: TransducerTask) -> Batch:
    """A batch of noise of the given size."""
    # the modified loss needs a frame for each token, and one more
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
    """What the encoder keeps for the gradient of a batch.

    Counted for one utterance of two lengths, on the CPU: a part grows with the frames, attention with their square.
    """
    objective = objective.cpu().train()
    subsampling = task.start.model_config.encoder.subsampling
    least = subsampling.min_frames
    lengths = sorted({max(least, T_in // 4), max(2 * least, T_in // 2)})
    counted = np.array([_kept_bytes(task, objective, frames) for frames in lengths], dtype=float)
    powers = np.array([[frames, frames**2] for frames in lengths], dtype=float)
    linear, square = np.linalg.solve(powers, counted)
    encoder = N * (linear * T_in + square * T_in**2)
    losses = objective.extra_bytes(N, int(subsampling.lens(torch.tensor(T_in))), U)
    dtype = autocast_dtype(task.config.precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return encoder * (0.6 if dtype is not None else 1.0) + losses


def _kept_bytes(task: TransducerTask, objective: TransducerObjective, num_frames: int) -> int:
    batch, kept = made_up_batch(1, num_frames, 1, task), {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # what is kept stays as long as the result
        result = objective.model.encode(batch.features, batch.feature_lens)
    total = sum(size for place, size in kept.items() if place not in own)
    del result
    return total


def find_max_duration(task: TransducerTask, rank: Rank, say: Callable[[str], None]) -> str:
    """Try the worst batches of larger and larger ``--max-duration``; the proposal as a line.

    A model of its own is trained on noise, so no weights are touched. On a GPU the largest that fits is searched for;
    on a CPU, where too much memory would end other programs, what is larger than half of it is computed, within reach
    of what was tried. Nothing is proposed beyond the largest batch that the data make.
    """
    longest = float(task.data.lengths.seconds.max())
    largest = max(longest, _largest_s(task))
    search = _extrapolated if rank.device.type == "cpu" else _searched
    found = search(task, rank, say, longest, largest)
    if found >= largest:
        whole = "a group of like length"
        share = f"half of {whole}, for `--drop-last`" if task.data.config.drop_last else whole
        say(f"{largest:.1f} s are as much as these data fill: {share} (`--num-buckets` {task.data.config.num_buckets})")
    return f"--max-duration {math.ceil(largest) if found >= largest else max(1, math.floor(found))}"


def _largest_s(task: TransducerTask) -> float:
    """Seconds of the largest batch of an epoch if ``--max-duration`` did not end it, padding counted."""
    # with the last ones left out, there would be none
    config = replace(task.data.config, max_duration=sys.float_info.max, drop_last=False)
    endless = replace(task, data=replace(task.data, config=config))
    parts = task.config.world_size * task.config.optim.accumulate_grad
    batches = endless.loader(Rank(0, task.config.world_size, torch.device("cpu"))).plan(0)
    largest = max((len(own) * float(task.data.lengths.seconds[own].max()) / parts for own in batches), default=0.0)
    # a group must fill more than one batch if its last one is left out
    return largest / 2 if task.data.config.drop_last else largest


def _searched(task: TransducerTask, rank: Rank, say: Callable[[str], None], longest: float, largest: float) -> float:
    """The largest that fits into the GPU's memory."""
    capacity = torch.cuda.get_device_properties(rank.device).total_memory * _SHARE_OF_MEMORY
    fits, fails, duration = 0.0, None, longest
    while fits < largest and (fails is None or fails - fits > 0.1 * fails):
        needed = _needed(task, rank, duration)
        shown = "does not fit" if needed is None else f"{needed / _GIB:.1f} GiB"
        say(f"--max-duration {duration:.0f}: {shown} of {capacity / _GIB:.1f}")
        if needed is not None and needed <= capacity:
            fits = duration
        else:
            fails = duration
        duration = min(2 * duration, largest) if fails is None else (fits + fails) / 2
        if fails is not None and fails <= longest:
            raise ValueError("Not even one of the longest utterances fits; lower `max_utterance_s`.")
    return fits


def _extrapolated(
    task: TransducerTask, rank: Rank, say: Callable[[str], None], longest: float, largest: float
) -> float:
    """Twice as large each time, until the next one might take half of the memory, or its time; from there computed."""
    capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_MEMORY / rank.world_size
    tried, used, slope, took_s = [], [], 0.0, 0.0
    duration = longest
    while len(tried) < 2 or (used[-1] + slope * (duration - tried[-1]) < capacity / 2 and took_s < _PATIENCE_S):
        started = time.monotonic()
        needed = _needed(task, rank, duration)
        assert needed is not None
        took_s = time.monotonic() - started
        say(f"--max-duration {duration:.0f}: {needed / _GIB:.2f} GiB")
        if tried:
            slope = (needed - used[-1]) / (duration - tried[-1])
        tried.append(duration)
        used.append(needed)
        if duration >= largest and needed <= capacity:
            return largest
        duration = 2 * duration if len(tried) < 2 else min(2 * duration, largest)
    # what small batches take may be less than what the process had taken before
    found = tried[-1] + (capacity - used[-1]) / max(1.0, slope)
    if found < longest:
        raise ValueError("Not even one of the longest utterances fits; lower `max_utterance_s`.")
    say(f"{slope / 2**20:.1f} MiB a second of speech, {capacity / _GIB:.1f} GiB a process")
    within_reach = _REACH * tried[-1]
    if within_reach < min(found, largest):
        say(f"larger ones may fit; no more than {_REACH} times what was tried is proposed")
    return min(found, largest, within_reach)


def _needed(task: TransducerTask, rank: Rank, duration: float) -> float | None:
    """Most bytes that two updates with the worst batches take; None: more than there is."""
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
    except ValueError:
        return None
    except RuntimeError as err:
        # in the optimizer, which asks for its moments at the first step
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
