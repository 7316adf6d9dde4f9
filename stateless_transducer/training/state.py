"""Training state: save it in a checkpoint, find the checkpoint to resume from, and restore it.

Random numbers are drawn from the seed and the number of the batch, so a checkpoint holds no generator state.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from operator import index
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
from stateless_transducer.model.regularize import load_whitening_state, whitening_state
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.optim import load_optimizer
from stateless_transducer.training.running_mean import RunningMean
from stateless_transducer.weight_files import DamagedFileError
from stateless_transducer.wording import one_line


class Mean:
    """Weighted mean; each addition multiplies the weight of earlier values by ``decay``."""

    def __init__(self, decay: float = 1.0) -> None:
        self.total: float = 0.0
        self.weight: float = 0.0
        self._decay = decay

    def add(self, total: float, weight: float) -> None:
        """Add a total and its weight."""
        self.total = self.total * self._decay + total
        self.weight = self.weight * self._decay + weight

    @property
    def value(self) -> float:
        """Total per weight; NaN before the first addition."""
        return self.total / self.weight if self.weight else math.nan


_WAYS_OUT = "Resume with the version that wrote it, or pass it as `init_from`."


def _recent() -> Mean:
    return Mean(decay=1 - 1 / 200)


@dataclass
class Position:
    """Position of a run in its training data, and the losses up to it."""

    step: int = 0
    """Number of batches done, over all epochs."""
    epoch: int = 0
    """Epoch in progress, from 0."""
    batch: int = 0
    """Number of batches done in this epoch."""
    best: dict[str, float] = field(default_factory=lambda: {"train": math.inf, "valid": math.inf})
    """Lowest loss of an epoch, for training and validation."""
    best_epoch: dict[str, int] = field(default_factory=dict)
    """Epoch of each lowest loss."""
    num_bad: int = 0
    """Number of consecutive batches without a finite loss."""
    recent: Mean = field(default_factory=_recent)
    """Mean loss of roughly the last 200 batches."""
    whole: Mean = field(default_factory=Mean)
    """Mean loss of this epoch."""

    def next_epoch(self) -> None:
        """Move to the beginning of the next epoch."""
        self.epoch, self.batch, self.recent, self.whole = self.epoch + 1, 0, _recent(), Mean()

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain values."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "num_bad": self.num_bad,
            "best": dict(self.best),
            "best_epoch": dict(self.best_epoch),
            "means": {
                "recent": [self.recent.total, self.recent.weight],
                "whole": [self.whole.total, self.whole.weight],
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the position to the one that `state_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing or of another type.
        """
        self.step, self.epoch, self.batch, self.num_bad = (
            index(state[name]) for name in ("step", "epoch", "batch", "num_bad")
        )
        self.best = {name: float(loss) for name, loss in state["best"].items()}
        self.best_epoch = {name: index(epoch) for name, epoch in state.get("best_epoch", {}).items()}
        self.recent.total, self.recent.weight = map(float, state["means"]["recent"])
        self.whole.total, self.whole.weight = map(float, state["means"]["whole"])


def training_state(
    learner: Learner, position: Position, config: TrainConfig, contents: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state of a run, for a checkpoint that `restore` reads."""
    return {
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "heads": on_cpu(learner.objective.head_state()),
        **_means(learner, config),
        "whitening": whitening_state(learner.objective),
        "options": _options_of_state(learner, config),
        "contents": dict(contents),
        "position": position.state_dict(),
    }


def _means(learner: Learner, config: TrainConfig) -> dict[str, Any]:
    """Return the mean of the weights, by its kind."""
    means: dict[str, Any] = {"ema": None, "average": None}
    if learner.mean is not None:
        weights, period = on_cpu(learner.mean.weights), config.optim.average_period
        if period:
            means["average"] = {"weights": weights, "period": period, "since": learner.mean.since}
        else:
            means["ema"] = weights
    return means


def restore(
    checkpoint: Checkpoint, learner: Learner, position: Position, config: TrainConfig, contents: Mapping[str, Any]
) -> None:
    """Resume where a checkpoint was written.

    Args:
        checkpoint: checkpoint with training state.
        learner: receives the weights and the optimizer's state.
        position: receives the checkpoint's position.
        config: options of the resumed run.
        contents: contents of its epochs, see `TrainingLoader.contents`.

    Raises:
        ValueError: options on which the state depends have changed; or, in the middle of an epoch, the contents of
            the epoch; or a part of the state is not that of such a run.
    """
    state: Mapping[str, Any] = checkpoint.training_state or {}
    # earlier versions saved fewer options, and a file from elsewhere may hold none
    saved_options = state.get("options", {})
    for flag, value in _options_of_state(learner, config).items():
        saved = saved_options.get(flag, value)
        if saved != value:
            raise _unchangeable(flag, saved, value)
    average, period = state.get("average"), config.optim.average_period
    if isinstance(average, dict) and period and average.get("period", period) != period:
        # the number of weights in the mean would not follow from the number of the batch any more
        raise _unchangeable("--average-period", average["period"], period)
    if state["position"]["batch"]:
        _check_same_epoch(state.get("contents", {}), contents, state["position"]["epoch"])
    learner.objective.model.load_state_dict(checkpoint.weights)
    loaders: dict[str, Callable[[Any], object]] = {
        "heads": learner.objective.load_head_state,
        "optimizer": lambda saved: load_optimizer(learner.optimizer, saved),
        # empty if the run used no scaler: fp16 then starts with its default scale
        "scaler": lambda saved: saved and learner.scaler.load_state_dict(saved),
        "whitening": lambda saved: load_whitening_state(learner.objective, saved or {}),
        "position": position.load_state_dict,
    }
    if learner.mean is not None:
        mean = learner.mean
        # a run that had no running mean starts one here
        if config.optim.ema_decay:
            loaders["ema"] = lambda saved: mean.load(saved or checkpoint.weights)
        else:
            loaders["average"] = lambda saved: _load_average(mean, saved, checkpoint, config.optim.average_period)
    for name, load in loaders.items():
        try:
            load(state.get(name))
        # a file from elsewhere may hold anything
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as err:
            cause = one_line(err)
            raise ValueError(f"the `{name}` in its training state is invalid ({cause}). {_WAYS_OUT}") from err


def _unchangeable(flag: str, saved: object, value: object) -> ValueError:
    return ValueError(f"`{flag}` was {saved} before; a resumed run cannot change it to {value}.")


def _load_average(mean: RunningMean, saved: Mapping[str, Any] | None, checkpoint: Checkpoint, period: int) -> None:
    """Set the mean since the start of the run; a run that had none begins it here."""
    if saved is None:
        mean.load(checkpoint.weights, since=checkpoint.provenance["step"] // period * period)
    else:
        mean.load(saved["weights"], since=index(saved.get("since", 0)))


def _check_same_epoch(saved: Mapping[str, Any], current: Mapping[str, Any], epoch: int) -> None:
    """Check that the plan of the epoch is unchanged; otherwise utterances would be skipped or used twice."""
    changed = [
        f"`{name}` was {saved.get(name, 0)} and is {current.get(name, 0)}"
        for name in ({**saved, **current} if saved else ())
        # options without influence on the plan are absent
        if saved.get(name, 0) != current.get(name, 0)
    ]
    if changed:
        alternative = f"`start_epoch={epoch}` (from the end of the previous epoch)" if epoch else "another `exp_dir`"
        raise ValueError(
            f"The checkpoint is from the middle of epoch {epoch}, which cannot resume with other batches: "
            f"{'; '.join(changed)}. Restore the earlier values, or pass {alternative}."
        )


def _options_of_state(learner: Learner, config: TrainConfig) -> dict[str, Any]:
    """Options on which the state depends: the optimizer's kind, its parameters, the batches that count as done."""
    return {
        "--optimizer": config.optim.optimizer,
        **learner.objective.options_of_heads,
        "--freeze-layers": config.fine_tune.freeze_layers,
        "--layer-lr-decay below 1": config.fine_tune.layer_lr_decay < 1,
        "--init-from given": config.fine_tune.init_from is not None,
    }


class Resumable:
    """A checkpoint to resume from, read once per process. Another process gets the path alone, and reads it itself."""

    def __init__(self, path: Path, start_epoch: int = 0, checkpoint: Checkpoint | None = None) -> None:
        self.path: Path = path
        self._start_epoch, self._checkpoint = start_epoch, checkpoint

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checkpoint": None}

    def check(self) -> None:
        """Read the checkpoint.

        Raises:
            ValueError: see `load_resumable`.
        """
        if self._checkpoint is None:
            self._checkpoint = load_resumable(self.path, self._start_epoch)

    def release(self) -> None:
        """Free the memory of the checkpoint, which other processes read for themselves."""
        self._checkpoint = None

    def take(self) -> Checkpoint:
        """Return the checkpoint, and keep no reference: the optimizer's state is twice as large as the model.

        Raises:
            ValueError: see `load_resumable`.
        """
        self.check()
        checkpoint = self._checkpoint
        assert checkpoint is not None
        self.release()
        return checkpoint


def find_resumable(config: TrainConfig) -> Resumable | None:
    """Return the checkpoint that ``--start-epoch`` or ``--resume`` asks for; None: train from the beginning.

    Raises:
        ValueError: the checkpoint does not exist, cannot be resumed, or is damaged; the message names the newest one
            that is not.
    """
    folder, epochs = config.exp_dir, saved_epochs(config.exp_dir)
    if config.start_epoch:
        if config.start_epoch - 1 not in epochs:
            names = ", ".join(epoch_path(folder, n).name for n in epochs) or "no checkpoint"
            raise ValueError(
                f"`start_epoch` {config.start_epoch} needs epoch-{config.start_epoch - 1}.pt in `exp_dir` "
                f"{folder}, which holds {names}."
            )
        return Resumable(epoch_path(folder, config.start_epoch - 1), config.start_epoch)
    steps = saved_batches(folder)
    newest = [epoch_path(folder, n) for n in epochs[-1:]] + [batch_path(folder, n) for n in steps[-1:]]
    if not config.resume:
        if newest:
            alternative = f"or with `start_epoch={epochs[-1] + 1}` " if epochs else ""
            raise ValueError(
                f"`exp_dir` {folder} holds {newest[0].name} of an earlier run; resume with `resume=True` {alternative}"
                "or choose another folder."
            )
        return None
    # epochs beyond `--num-epochs` belong to a longer run, before `--start-epoch` went back
    reached = [n for n in epochs if n < config.num_epochs]
    damaged: dict[Path, DamagedFileError] = {}
    candidates: list[tuple[Path, Checkpoint]] = []
    for paths in ([epoch_path(folder, n) for n in reached], [batch_path(folder, n) for n in steps]):
        candidates += islice(_undamaged(reversed(paths), damaged), 1)
    if not candidates:
        if damaged:
            raise next(iter(damaged.values()))
        return None
    path, checkpoint = max(candidates, key=lambda candidate: candidate[1].provenance["step"])
    for other, damage in damaged.items():
        if _is_later(other, checkpoint):
            raise ValueError(
                f"{damage} The newest undamaged one is {path}: move {other.name} to another folder to resume from it."
            ) from damage
    return Resumable(path, checkpoint=checkpoint)


def _undamaged(paths: Iterable[Path], damaged: dict[Path, DamagedFileError]) -> Iterator[tuple[Path, Checkpoint]]:
    """Yield the checkpoints that can be read, and add the others to ``damaged``."""
    for path in paths:
        try:
            yield path, load_resumable(path)
        except DamagedFileError as err:
            damaged[path] = err


def _is_later(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether training wrote a path, known by its name alone, after a checkpoint."""
    kind, number = path.stem.split("-")
    position = (checkpoint.training_state or {})["position"]
    return int(number) >= position["epoch"] if kind == "epoch" else int(number) > position["step"]


def load_resumable(path: Path, start_epoch: int = 0) -> Checkpoint:
    """Read a checkpoint to resume from.

    Raises:
        ValueError: the checkpoint holds a model without training state, an invalid position, or another epoch than its
            name says.
    """
    checkpoint = load_checkpoint(path)
    state = checkpoint.training_state
    if state is None:
        raise ValueError(f"{path} holds a model without its training state, so training cannot resume from it.")
    position = Position()
    try:
        position.load_state_dict(state["position"])
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise ValueError(f"{path}: the `position` in its training state is invalid ({err}). {_WAYS_OUT}") from err
    for name in ("step", "epoch"):
        number = checkpoint.provenance.get(name)
        if not isinstance(number, int):
            raise ValueError(f"{path}: `{name}` is {number!r} in its provenance, no number. {_WAYS_OUT}")
    step = checkpoint.provenance["step"]
    if step != position.step:
        raise ValueError(f"{path}: `step` is {step} in its provenance, but {position.step} in its training state.")
    for name in ("options", "contents"):
        if not isinstance(state.get(name, {}), dict):
            raise ValueError(f"{path}: the `{name}` in its training state is no dict.")
    if start_epoch and (position.epoch, position.batch) != (start_epoch, 0):
        raise ValueError(f"{path} resumes at epoch {position.epoch}, not {start_epoch}. Was it renamed?")
    return checkpoint


def set_aside_later(exp_dir: Path, position: Position, num_epochs: int) -> Path | None:
    """Move away the checkpoints that a run wrote after the position to which ``--start-epoch`` has gone back.

    Otherwise the new run would overwrite them, and `--resume` would take one of them for the newest. Epochs that the
    new run does not reach stay. The best epochs become the best ones before the position.

    Returns:
        The new folder with these checkpoints; None if there were none.
    """
    paths = [epoch_path(exp_dir, n) for n in saved_epochs(exp_dir) if position.epoch <= n < num_epochs]
    paths += [batch_path(exp_dir, step) for step in saved_batches(exp_dir) if step > position.step]
    if not paths:
        return None
    folder = next(path for n in count(1) if not (path := exp_dir / f"abandoned-{n}").exists())
    folder.mkdir()
    for path in paths:
        path.rename(folder / path.name)
    for name in position.best:
        path = best_path(exp_dir, name)
        if path.exists():
            if load_resumable(path).provenance["epoch"] < position.epoch:
                continue
            path.rename(folder / path.name)
        epoch = position.best_epoch.get(name)
        if epoch is not None and epoch_path(exp_dir, epoch).exists():
            link_or_copy(epoch_path(exp_dir, epoch), path)
        else:
            position.best[name] = math.inf
    return folder


def best_path(exp_dir: Path, name: str) -> Path:
    """Path of ``best-train-loss.pt`` or ``best-valid-loss.pt``."""
    return exp_dir / f"best-{name}-loss.pt"


def link_or_copy(path: Path, target: Path) -> None:
    """Give a file a second name, as a hard link where possible: checkpoints are a gigabyte each."""
    with replacing(target) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in weights.items()}
