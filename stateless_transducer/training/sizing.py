"""Choice of a model's size, its batches and its schedule from the data and the machine, for ``--size``.

The rules come from the recipes in ``egs/`` and docs/experiments.md: small corpora need many small batches, a CTC loss
while the model finds the alignment, and a model that the machine trains within a day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stateless_transducer.checkpoint import skeleton
from stateless_transducer.model.sizes import ENCODER_SIZES, SizeName, named_sizes
from stateless_transducer.threads import num_cores
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.memory import free_bytes, needed_bytes
from stateless_transducer.training.task import TransducerTask
from stateless_transducer.wording import counted

Settings = Mapping[str, Any]
"""Values of options by the names of their fields."""
Build = Callable[[Settings], TransducerTask]
"""Builds the task with settings; options that the user has set win over them."""

_FROM_HOURS: Mapping[SizeName, float] = {"tiny": 0.0, "small": 15.0, "medium": 150.0, "large": 900.0}
"""Hours of speech per epoch, copies at other speeds included, from which a size is worth its time."""
_PEAK_LR: Mapping[SizeName, float] = {"tiny": 2.5e-3, "small": 1.5e-3, "medium": 1e-3, "large": 7e-4}
_NUM_EPOCHS, _MOST_EPOCHS = 20, 100
_LEAST_SPEECH_S = 50_000.0
"""Seconds of speech over all epochs that a new model needs before it emits tokens; small corpora get more epochs."""
_NUM_UPDATES = 10_000
"""Updates that training should have: with small corpora, more updates count for more than larger batches."""
_LEAST_BATCH_S, _LARGEST_BATCH_S = 16.0, 200.0
"""Bounds of a batch of all processes together, in seconds of speech."""
_MOST_WARM_STEPS = 2000
_SHORT_RUN: Settings = {"num_frame_masks": 0, "features_mask_size": 20, "spec_aug_time_warp_factor": 0}
"""SpecAugment of a tiny model: masks over time harm a short run."""
_CORE_RATE = 60e6
"""Seconds of speech times parameters that one core trains per second."""
_PATIENCE_H = 24.0
"""Longest training on a CPU that is chosen automatically."""
_SHARE_OF_FREE = 0.8
_ANY_LENGTH: Settings = {"min_utterance_s": 0.0, "max_utterance_s": 1e9}


@dataclass(frozen=True)
class Machine:
    """Device that trains, and its free memory."""

    device: str
    """Name for the user."""
    num_cores: int
    """Cores of a CPU; 0: the device is a GPU."""
    free_bytes: float

    @property
    def summary(self) -> str:
        """One phrase, such as "a CPU with 2 cores, 3.1 GiB free"."""
        return f"{self.device}, {self.free_bytes / 2**30:.1f} GiB free"


def this_machine() -> Machine:
    """Return the first GPU, or the CPU with the memory that is available to this process."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        return Machine(torch.cuda.get_device_name(0), 0, float(free))
    return Machine(f"a CPU with {counted(num_cores(), 'core')}", num_cores(), free_bytes())


@dataclass(frozen=True)
class Choice:
    """Size of a model, and the options that go with it."""

    size: SizeName
    settings: Settings
    reason: str
    """Size, data, machine and what decided, in one line."""


def choose(name: str, kind: str, build: Build, given: Settings, machine: Machine) -> Choice:
    """Choose a size for data and machine, and the options that go with it.

    Args:
        name: "auto", or the size to take.
        kind: kind of the encoder.
        build: builds the task with settings.
        given: options that the user has set.
        machine: device and memory.

    Raises:
        ValueError: the encoder does not offer the size, the corpus has nothing to train on, or the memory is too
            small for the batches that the user has set, or for any.
    """
    sizes = ENCODER_SIZES.get(kind, {})
    if not sizes:
        raise ValueError(f"`size` is {name}, but `encoder={kind}` offers no sizes. Remove `size`.")
    if name not in ("auto", *sizes):
        raise ValueError(f"`size` must be one of auto, {', '.join(sizes)} with `encoder={kind}`, but is {name}.")
    lengths = build(_ANY_LENGTH).data.lengths
    seconds, longest_s = float(lengths.seconds.sum()), float(lengths.seconds.max())
    schedule, notes = _schedule(seconds, longest_s, given, machine), list[str]()

    def choice(size: SizeName, settings: Settings) -> Choice:
        task = build(settings)
        parts = [
            f"{size}, {_num_parameters(task) / 1e6:.1f} M parameters",
            f"{_spell(seconds)} of speech per epoch",
        ]
        reason = "; ".join([*parts, machine.summary, *notes])
        return Choice(size, {**settings, "warm_step": _warm_steps(task)}, reason)

    names: list[SizeName] = [
        size for size in sizes if name == size or name == "auto" and _FROM_HOURS[size] <= seconds / 3600
    ]
    smallest = names[0] if names else next(iter(sizes))
    for size in reversed(names[1:]):
        settings = {**schedule, **_of_size(size, kind)}
        hours = _hours_on_cpu(build(settings), machine)
        if hours > _PATIENCE_H:
            notes.append(f"{size} would train for about {hours:.0f} h")
            continue
        fitting = _fitting(settings, build, machine)
        if fitting is not None:
            return choice(size, fitting)
        notes.append(f"{size} needs more memory")
    settings = {**schedule, **_of_size(smallest, kind)}
    fitting = _fitting(settings, build, machine)
    if fitting is None:
        fitting = _shortened(smallest, settings, build, given, machine)
        notes.append(f"utterances above {fitting['max_utterance_s']:g} s do not fit into the memory")
    return choice(smallest, fitting)


def _spell(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _schedule(seconds: float, longest_s: float, given: Settings, machine: Machine) -> Settings:
    """Return epochs and batches for the seconds of an epoch."""
    num_epochs = min(_MOST_EPOCHS, max(_NUM_EPOCHS, math.ceil(_LEAST_SPEECH_S / seconds)))
    num_epochs = int(given.get("num_epochs", num_epochs))
    parts = int(given.get("world_size", 1)) * int(given.get("accumulate_grad", 1))
    batch_s = min(_LARGEST_BATCH_S, max(_LEAST_BATCH_S, seconds * num_epochs / _NUM_UPDATES)) / parts
    return {
        "num_epochs": num_epochs,
        "max_duration": float(math.ceil(batch_s)),
        "min_utterance_s": 0.0,
        "max_utterance_s": float(math.ceil(longest_s)),
        "optimizer": "adamw",
        "ctc_loss_scale": 0.5,
        "ctc_epochs": math.ceil(num_epochs / 2),
        # a causal model begins before the level of the utterance is known: it learns many levels
        **({"feature_norm": "global", "gain_range_db": 10.0} if given.get("causal") else {"feature_norm": "level"}),
        # stored features load faster than a CPU trains
        **({"num_workers": 0} if machine.num_cores else {}),
    }


def _of_size(size: SizeName, kind: str) -> Settings:
    """Return the sizes of a model, and the options that suit its size."""
    augmentation = _SHORT_RUN if size == "tiny" else {}
    return {**named_sizes(kind, size), "peak_lr": _PEAK_LR[size], **augmentation}


def _num_parameters(task: TransducerTask) -> int:
    return sum(parameter.numel() for parameter in skeleton(task.start.model_config).parameters())


def _hours_on_cpu(task: TransducerTask, machine: Machine) -> float:
    """Estimate the hours of training on a CPU; 0 for a GPU."""
    if not machine.num_cores:
        return 0.0
    speech_h = float(task.data.lengths.seconds.sum()) * task.config.num_epochs / 3600
    return speech_h * _num_parameters(task) / (_CORE_RATE * machine.num_cores)


def _needed_bytes(task: TransducerTask) -> float:
    return sum(needed_bytes(task, task.build_objective()))


def _fitting(settings: Settings, build: Build, machine: Machine) -> Settings | None:
    """Return the settings with the largest batches that fit into the memory, at most those asked for; None if none."""
    duration, longest_s = settings["max_duration"], settings["max_utterance_s"]
    while True:
        fitting = {**settings, "max_duration": float(math.ceil(duration))}
        if _fits(fitting, build, machine):
            return fitting
        if duration <= longest_s:
            # smaller batches would not make the longest utterance shorter
            return None
        duration = max(duration / 2, longest_s)


def _shortened(size: SizeName, settings: Settings, build: Build, given: Settings, machine: Machine) -> Settings:
    """Return the settings with utterances as long as fit into the memory, and batches no longer than these.

    Raises:
        ValueError: no utterance fits, or the user has set one of these lengths.
    """
    reason = f"with `size` {size} does not fit into {_SHARE_OF_FREE:.0%} of the free memory ({machine.summary})"
    for name in ("max_duration", "max_utterance_s"):
        if name in given:
            raise ValueError(f"`{name}` {given[name]:g} {reason}. Lower it, or leave it out.")
    longest_s = settings["max_utterance_s"]
    while longest_s >= 1:
        duration = min(settings["max_duration"], longest_s)
        shortened = {**settings, "max_duration": duration, "max_utterance_s": longest_s}
        if _fits(shortened, build, machine):
            return shortened
        longest_s = float(math.floor(0.8 * longest_s))
    raise ValueError(f"An utterance of 1 s {reason}. Free memory, or choose a smaller `size`.")


def _fits(settings: Settings, build: Build, machine: Machine) -> bool:
    # the processes of a CPU share its memory
    task = build(settings)
    num_processes = task.config.world_size if machine.num_cores else 1
    return _needed_bytes(task) * num_processes <= _SHARE_OF_FREE * machine.free_bytes


def _warm_steps(task: TransducerTask) -> int:
    """Return a tenth of all updates, within bounds."""
    rank = Rank(0, task.config.world_size, torch.device("cpu"))
    return min(_MOST_WARM_STEPS, max(10, len(task.loader(rank).plan(0)) * task.config.num_epochs // 10))
