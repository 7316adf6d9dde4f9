"""All that a run must know to go on, in a checkpoint and back.

Random numbers are drawn from seed and number of the batch, so no generator's state is among it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from stateless_transducer.checkpoint import (
    Checkpoint,
    batch_path,
    epoch_path,
    load_checkpoint,
    saved_batches,
    saved_epochs,
)
from stateless_transducer.files import replacing
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.learner import Learner


class Mean:
    """Mean of totals over weights, old ones fading by ``decay`` at each addition."""

    def __init__(self, decay: float = 1.0) -> None:
        self.total, self.weight, self._decay = 0.0, 0.0, decay

    def add(self, total: float, weight: float) -> None:
        """One more."""
        self.total = self.total * self._decay + total
        self.weight = self.weight * self._decay + weight

    @property
    def value(self) -> float:
        """NaN without any."""
        return self.total / self.weight if self.weight else math.nan


def _recent() -> Mean:
    return Mean(decay=1 - 1 / 200)


@dataclass
class Position:
    """Where a run is."""

    step: int = 0
    """Batches so far, over all epochs."""
    epoch: int = 0
    """That is going on."""
    batch: int = 0
    """Batches of it that are done."""
    best: dict[str, float] = field(default_factory=lambda: {"train": math.inf, "valid": math.inf})
    """Lowest losses of an epoch."""
    best_epoch: dict[str, int] = field(default_factory=dict)
    """Which epoch had each of them."""
    num_bad: int = 0
    """Batches in a row without a finite loss."""
    recent: Mean = field(default_factory=_recent)
    """Loss of the batches of late."""
    whole: Mean = field(default_factory=Mean)
    """Loss of the batches of this epoch."""

    def next_epoch(self) -> None:
        """One is done."""
        self.epoch, self.batch, self.recent, self.whole = self.epoch + 1, 0, _recent(), Mean()

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        means = {name: [mean.total, mean.weight] for name, mean in (("recent", self.recent), ("whole", self.whole))}
        numbers = {name: getattr(self, name) for name in ("step", "epoch", "batch", "num_bad")}
        return {**numbers, "best": dict(self.best), "best_epoch": dict(self.best_epoch), "means": means}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("step", "epoch", "batch", "num_bad"):
            setattr(self, name, state[name])
        self.best, self.best_epoch = dict(state["best"]), dict(state.get("best_epoch", {}))
        for name, mean in (("recent", self.recent), ("whole", self.whole)):
            mean.total, mean.weight = state["means"][name]


def training_state(
    learner: Learner, position: Position, config: TrainConfig, contents: Mapping[str, Any]
) -> dict[str, Any]:
    """What `restore` takes."""
    return {
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "heads": on_cpu(learner.objective.head_state()),
        "ema": None if learner.mean is None else on_cpu(learner.mean.module.state_dict()),
        "options": _options_of_state(learner, config),
        "contents": dict(contents),
        "position": position.state_dict(),
    }


def restore(
    checkpoint: Checkpoint, learner: Learner, position: Position, config: TrainConfig, contents: Mapping[str, Any]
) -> None:
    """Go on where a checkpoint was written.

    Args:
        checkpoint: with its training state.
        learner: gets the weights, and the optimizer's state.
        position: becomes the checkpoint's.
        config: of the run that goes on.
        contents: what its epochs consist of, see `TrainingLoader.contents`.

    Raises:
        ValueError: options have changed on which the optimizer's state depends; or, in the middle of an epoch, what
            the epoch consists of.
    """
    state: Mapping[str, Any] = checkpoint.training_state or {}
    for flag, value in _options_of_state(learner, config).items():
        if state["options"].get(flag, value) != value:
            raise ValueError(f"`{flag}` was {state['options'][flag]} before; going on, it cannot become {value}.")
    if state["position"]["batch"]:
        _check_same_epoch(state.get("contents", {}), contents, state["position"]["epoch"])
    objective = learner.objective
    objective.model.load_state_dict(checkpoint.weights)
    objective.load_head_state(state["heads"])
    learner.optimizer.load_state_dict(state["optimizer"])
    # empty if the run did without: fp16 then begins with its own scale
    if state["scaler"]:
        learner.scaler.load_state_dict(state["scaler"])
    if learner.mean is not None:
        # from here on, if the run had none before
        learner.mean.module.load_state_dict(state["ema"] or checkpoint.weights)
    position.load_state_dict(state["position"])


def _check_same_epoch(before: Mapping[str, Any], now: Mapping[str, Any], epoch: int) -> None:
    """The batches that are done must be the first ones of the same plan: others would be skipped, or heard twice."""
    changed = [
        f"`{name}` was {before.get(name, 0)} and is {now.get(name, 0)}"
        for name in ({**before, **now} if before else ())
        # what a plan does not follow from is absent
        if before.get(name, 0) != now.get(name, 0)
    ]
    if changed:
        again = f"`start_epoch={epoch}` (from the end of the epoch before)" if epoch else "another `exp_dir`"
        raise ValueError(
            f"The checkpoint is from the middle of epoch {epoch}, which cannot go on with other batches: "
            f"{'; '.join(changed)}. Give what was given before, or {again}."
        )


def _options_of_state(learner: Learner, config: TrainConfig) -> dict[str, Any]:
    """Options on which the optimizer's state depends: what is trained, and by what."""
    return {
        "--optimizer": config.optim.optimizer,
        **learner.objective.options_of_heads,
        "--freeze-layers": config.fine_tune.freeze_layers,
        "--layer-lr-decay below 1": config.fine_tune.layer_lr_decay < 1,
    }


class Resumable:
    """A checkpoint to resume from, read once per process. Another process gets the path alone, and reads it itself."""

    def __init__(self, path: Path, start_epoch: int = 0, checkpoint: Checkpoint | None = None) -> None:
        self.path, self._start_epoch, self._checkpoint = path, start_epoch, checkpoint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checkpoint": None}

    def check(self) -> None:
        """Read the checkpoint.

        Raises:
            ValueError: see `load_resumable`.
        """
        if self._checkpoint is None:
            self._checkpoint = load_resumable(self.path, self._start_epoch)

    def take(self) -> Checkpoint:
        """Return the checkpoint, and keep no reference: the optimizer's state is twice as large as the model.

        Raises:
            ValueError: see `load_resumable`.
        """
        self.check()
        checkpoint, self._checkpoint = self._checkpoint, None
        assert checkpoint is not None
        return checkpoint


def find_resumable(config: TrainConfig) -> Resumable | None:
    """The checkpoint that ``--start-epoch`` or ``--resume`` goes on from; None: start from nothing.

    Raises:
        ValueError: it is not there, or cannot be resumed.
    """
    folder, there = config.exp_dir, saved_epochs(config.exp_dir)
    if config.start_epoch:
        if config.start_epoch - 1 not in there:
            found = ", ".join(epoch_path(folder, n).name for n in there) or "no checkpoint"
            raise ValueError(
                f"`start_epoch` {config.start_epoch} needs epoch-{config.start_epoch - 1}.pt in `exp_dir` "
                f"{folder}, which holds {found}."
            )
        return Resumable(epoch_path(folder, config.start_epoch - 1), config.start_epoch)
    within = saved_batches(folder)
    newest = [epoch_path(folder, n) for n in there[-1:]] + [batch_path(folder, n) for n in within[-1:]]
    if not config.resume:
        if newest:
            again = f"or with `start_epoch={there[-1] + 1}` " if there else ""
            raise ValueError(
                f"`exp_dir` {folder} holds {newest[0].name} of an earlier run; go on with `resume=True` {again}"
                "or choose another folder."
            )
        return None
    # later ones are of a run that was longer, before `--start-epoch` went back
    reached = [n for n in there if n < config.num_epochs]
    newest = [epoch_path(folder, n) for n in reached[-1:]] + [batch_path(folder, n) for n in within[-1:]]
    if len(newest) < 2:
        return Resumable(newest[0]) if newest else None
    read = [(path, load_resumable(path)) for path in newest]
    path, checkpoint = max(read, key=lambda pair: pair[1].provenance["step"])
    return Resumable(path, checkpoint=checkpoint)


def load_resumable(path: Path, start_epoch: int = 0) -> Checkpoint:
    """A checkpoint to go on from.

    Raises:
        ValueError: it holds a model without training state, or belongs to another epoch than its name says.
    """
    checkpoint = load_checkpoint(path)
    state = checkpoint.training_state
    if state is None:
        raise ValueError(f"{path} holds a model without its training state; training cannot go on with it.")
    if "means" not in state["position"]:
        raise ValueError(f"{path} was written by an earlier version; train on with that, or `init_from` it.")
    epoch, batch = state["position"]["epoch"], state["position"]["batch"]
    if start_epoch and (epoch, batch) != (start_epoch, 0):
        raise ValueError(f"{path} was another file: it goes on with epoch {epoch}, not {start_epoch}.")
    return checkpoint


def set_aside_later(exp_dir: Path, position: Position, num_epochs: int) -> Path | None:
    """Move away what a run wrote behind a position that ``--start-epoch`` has gone back to.

    It would be overwritten, and `--resume` would take it for the newest. Epochs that the new run does not come to stay.
    The best epochs become those of what was before the position.

    Returns:
        The new folder with all of it; None if there was nothing.
    """
    later = [epoch_path(exp_dir, n) for n in saved_epochs(exp_dir) if position.epoch <= n < num_epochs]
    later += [batch_path(exp_dir, step) for step in saved_batches(exp_dir) if step > position.step]
    if not later:
        return None
    folder = next(path for n in count(1) if not (path := exp_dir / f"abandoned-{n}").exists())
    folder.mkdir()
    for path in later:
        path.rename(folder / path.name)
    for name in position.best:
        path = best_path(exp_dir, name)
        if path.exists():
            if load_checkpoint(path).provenance["epoch"] < position.epoch:
                continue
            path.rename(folder / path.name)
        epoch = position.best_epoch.get(name)
        if epoch is not None and epoch_path(exp_dir, epoch).exists():
            link_or_copy(epoch_path(exp_dir, epoch), path)
        else:
            position.best[name] = math.inf
    return folder


def best_path(exp_dir: Path, name: str) -> Path:
    """``best-train-loss.pt``, ``best-valid-loss.pt``."""
    return exp_dir / f"best-{name}-loss.pt"


def link_or_copy(path: Path, to: Path) -> None:
    """A second name for the same file, where the file system has that: checkpoints are a gigabyte each."""
    with replacing(to) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy."""
    return {name: value.detach().cpu().clone() for name, value in weights.items()}
