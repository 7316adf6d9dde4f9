# pyright: strict
"""Averages of the weights of checkpoints.

`averaging` chooses the checkpoints, without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from stateless_transducer.checkpoint import Checkpoint, check_weights, load_checkpoint


def average_checkpoints(paths: Iterable[Path], *, use_ema: bool = False) -> Checkpoint:
    """Average the weights of checkpoints in float64; integer entries and everything else are those of the last file.

    At most two models and the sum are in memory.

    Args:
        paths: paths of the checkpoints.
        use_ema: average the running means of the weights instead.

    Raises:
        ValueError: there is no file, or the models differ in sizes or tokens.
    """
    total: dict[str, Tensor] = {}
    last: Checkpoint | None = None
    count = 0
    names: list[str] = []
    for path in paths:
        current = _without_training_state(path, use_ema)
        if last is not None:
            if not _is_same_model(current, last):
                raise ValueError(f"{path} cannot be averaged with {names[-1]}: other sizes or tokens.")
            check_weights(current.weights, last.weights)
        for name, value in current.weights.items():
            if value.is_floating_point():
                total[name] = total[name] + value if name in total else value.double()
        last, count = current, count + 1
        names.append(path.name)
    if last is None:
        raise ValueError("No checkpoint to average.")
    weights = {
        name: (total[name] / count).to(value.dtype) if name in total else value for name, value in last.weights.items()
    }
    provenance = {**last.provenance, "averaged": names}
    return replace(last, weights=weights, provenance=provenance)


def average_between(ends: Sequence[Path], names: Sequence[str]) -> Checkpoint:
    """Average the weights over a part of a run, from the means since its start that two checkpoints hold.

    Args:
        ends: checkpoints at the beginning and at the end of the part; the latter alone, if the run begins with the
            part. The result has everything but the weights from the latter.
        names: names of the checkpoints within the part, for the provenance.

    Raises:
        ValueError: a checkpoint holds no such mean, the models differ in sizes or tokens, no weights were added to the
            mean between the two, or it began after the part.
    """
    start, end = ends[0] if len(ends) > 1 else None, ends[-1]
    last, first = _read_mean(end), None if start is None else _read_mean(start)
    if last.since != (0 if first is None else first.since):
        raise ValueError(
            f"`use_averaged_model`: the mean in {end} began after batch {last.since}, where the run was resumed with "
            "`average_period`: after the first batch to average. Lower `avg`."
        )
    part, checkpoint = last.weights, last.checkpoint
    if first is not None:
        if not _is_same_model(first.checkpoint, checkpoint):
            raise ValueError(f"{start} cannot be averaged with {end.name}: other sizes or tokens.")
        if first.step >= last.step:
            raise ValueError(
                f"`use_averaged_model`: no weights were added to the mean between {start} and {end.name}; raise `avg`."
            )
        part = mean_of_part(first.weights, first.step, last.weights, last.step)
    weights = {name: part[name].to(value.dtype) for name, value in checkpoint.weights.items()}
    provenance = {**checkpoint.provenance, "averaged": list(names), "running_mean": True}
    return replace(checkpoint, weights=weights, provenance=provenance)


def _is_same_model(a: Checkpoint, b: Checkpoint) -> bool:
    return (a.model_config, a.token_table) == (b.model_config, b.token_table)


def mean_of_part(
    first: Mapping[str, Tensor], first_step: int, last: Mapping[str, Tensor], last_step: int
) -> dict[str, Tensor]:
    """Return the mean over the steps after one and up to another, from the means over all steps up to each.

    ``(last_step * last - first_step * first) / (last_step - first_step)`` in float64; integer entries are the last.
    """
    share = last_step / (last_step - first_step)
    return {
        name: (mean.double() * share + first[name].double() * (1 - share)).to(mean.dtype)
        if mean.is_floating_point()
        else mean
        for name, mean in last.items()
    }


class _Mean(NamedTuple):
    """Mean of the weights since the start of a run, in one of its checkpoints."""

    checkpoint: Checkpoint
    """The checkpoint without its training state."""
    weights: Mapping[str, Tensor]
    step: int
    """Last step whose weights the mean has."""
    since: int
    """Step after which it has weights."""


def _read_mean(path: Path) -> _Mean:
    checkpoint = load_checkpoint(path)
    mean = (checkpoint.training_state or {}).get("average")
    # before the first addition, the mean is that of the initial weights
    step, since = _steps_in_mean(path, checkpoint, mean) if mean else (0, 0)
    if mean is None or not step:
        before = "" if mean is None else f" before batch {mean['period']}, its first one"
        raise ValueError(
            f"`use_averaged_model`: {path} holds no mean of the weights since the start of the run{before}; train with "
            "`average_period`."
        )
    return _Mean(replace(checkpoint, training_state=None), mean["weights"], step, since)


def _steps_in_mean(path: Path, checkpoint: Checkpoint, mean: Mapping[str, Any]) -> tuple[int, int]:
    """Return the last step whose weights the mean has, 0 if there is none, and the step after which it has weights."""
    try:
        step, period = int(checkpoint.provenance["step"]), int(mean["period"])
        check_weights(mean["weights"], checkpoint.weights)
        # earlier versions did not save where a mean began
        return step // period * period, int(mean.get("since", 0))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as err:
        raise ValueError(f"{path}: the mean of its weights is invalid ({err}).") from err


def _without_training_state(path: Path, use_ema: bool) -> Checkpoint:
    """Read a checkpoint, and drop the optimizer's state: it is twice as large as the model."""
    checkpoint = load_checkpoint(path)
    if not use_ema:
        return replace(checkpoint, training_state=None)
    mean = (checkpoint.training_state or {}).get("ema")
    if mean is None:
        raise ValueError(f"`use_ema`: {path} holds no running mean of the weights; train with `ema_decay`.")
    try:
        check_weights(mean, checkpoint.weights)
    except (ValueError, TypeError, AttributeError) as err:
        raise ValueError(f"{path}: the mean of its weights is invalid ({err}).") from err
    provenance = {**checkpoint.provenance, "running_mean": True}
    return replace(checkpoint, weights=mean, provenance=provenance, training_state=None)
