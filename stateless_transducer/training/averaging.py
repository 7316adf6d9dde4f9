"""Averages of a run's checkpoints. Imports torch only when it averages, so that ``--help`` stays fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from stateless_transducer.options import ADVANCED, check_bounds

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint


@dataclass(frozen=True)
class Average:
    """Checkpoints to average."""

    epoch: int | None = None
    """Last epoch-<epoch>.pt to average; by default, the newest."""
    iter: int | None = None
    """Last checkpoint-<iter>.pt to average, instead of `--epoch`."""
    avg: Annotated[int, Ge(1)] | None = None
    """Number of checkpoints to average; by default, ten, but at most half of the epochs."""
    use_ema: Annotated[bool, ADVANCED] = False
    """Use the running mean of the weights, stored with `--ema-decay`."""
    use_averaged_model: Annotated[bool, ADVANCED] = False
    """Average over all batches from the end of epoch `--epoch` - `--avg` to the end of `--epoch`, using the means
    stored with `--average-period`, instead of averaging the checkpoints."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.use_ema and self.use_averaged_model:
            raise ValueError("`use_ema` and `use_averaged_model` choose two means of the weights: pass one of them.")
        if self.epoch is not None and self.iter is not None:
            raise ValueError(
                f"`epoch` {self.epoch} and `iter` {self.iter} both name the last checkpoint: pass one of them."
            )

    @property
    def suffix(self) -> str:
        """Part of the names of results that tells the kind of mean; empty for that of the checkpoints."""
        if self.use_averaged_model:
            return "-use-averaged-model"
        return "-use-ema" if self.use_ema else ""

    def of(self, exp_dir: Path) -> Checkpoint:
        """Return the mean of the checkpoints in a folder.

        Raises:
            ValueError: a checkpoint is missing; the message lists the existing ones.
        """
        from stateless_transducer.training.weight_averages import average_between, average_checkpoints

        numbers, existing, path = self._select(exp_dir)
        # the mean over a part of a run follows from those at its ends
        needed = [*self._before(numbers[0], existing), numbers[-1]] if self.use_averaged_model else numbers
        missing = [number for number in needed if number not in existing]
        if missing:
            kind = "epoch" if self.iter is None else "iter"
            needed_names = _listed([path(exp_dir, number).name for number in needed])
            missing_names = _listed([path(exp_dir, number).name for number in missing])
            existing_names = _listed([path(exp_dir, number).name for number in existing])
            raise ValueError(
                f"`{kind}` {numbers[-1]} `avg` {len(numbers)} needs {needed_names}, but {missing_names} is not "
                f"in `exp_dir` {exp_dir}, which holds {existing_names or 'no checkpoint'}."
            )
        if self.use_averaged_model:
            names = [path(exp_dir, number).name for number in numbers]
            return average_between([path(exp_dir, number) for number in needed], names)
        return average_checkpoints((path(exp_dir, number) for number in numbers), use_ema=self.use_ema)

    def _before(self, first: int, existing: Sequence[int]) -> list[int]:
        """Return the number of the last checkpoint before the first one to average; none before the first epoch."""
        if self.iter is None:
            return [first - 1] if first else []
        earlier = [step for step in existing if step < first]
        if not earlier:
            raise ValueError(
                f"`use_averaged_model` with `iter` {self.iter} and `avg` {self.avg or 1} needs a checkpoint before "
                f"checkpoint-{first}.pt, the first one to average. Lower `avg`, or train with a larger `keep_last`."
            )
        return earlier[-1:]

    def _select(self, exp_dir: Path) -> tuple[Sequence[int], list[int], Callable[[Path, int], Path]]:
        """Return the numbers of the checkpoints to average, those of all existing ones, and the function to a path."""
        from stateless_transducer.checkpoint import batch_path, epoch_path, saved_batches, saved_epochs

        if self.iter is not None:
            steps, avg = saved_batches(exp_dir), self.avg or 1
            if self.iter not in steps:
                return [self.iter], steps, batch_path
            candidates = [step for step in steps if step <= self.iter]
            if avg > len(candidates):
                names = _listed([batch_path(exp_dir, step).name for step in candidates])
                raise ValueError(
                    f"`avg` {avg} needs {avg} checkpoints up to `iter` {self.iter}, but `exp_dir` {exp_dir} holds "
                    f"{len(candidates)}: {names}. Lower `avg`, or train with a larger `keep_last`."
                )
            return candidates[-avg:], steps, batch_path
        epochs = saved_epochs(exp_dir)
        if self.epoch is None and not epochs:
            raise ValueError(f"`exp_dir` {exp_dir} holds no epoch-*.pt; train first.")
        epoch = epochs[-1] if self.epoch is None else self.epoch
        # the first epochs make an average worse
        avg = self.avg or max(1, min(10, (epoch + 1) // 2))
        if avg > epoch + 1:
            raise ValueError(f"`avg` must be at most {epoch + 1}, the number of epochs up to {epoch}, but is {avg}.")
        return range(epoch - avg + 1, epoch + 1), epochs, epoch_path


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])
