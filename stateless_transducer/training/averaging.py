"""Which checkpoints of a run make a model. Free of torch until it averages, so that ``--help`` need not load it."""

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
    """Use the running mean of the weights that `--ema-decay` kept in training."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.epoch is not None and self.iter is not None:
            raise ValueError(
                f"`epoch` {self.epoch} and `iter` {self.iter} both name the last checkpoint: pass one of them."
            )

    def of(self, exp_dir: Path) -> Checkpoint:
        """The mean of the checkpoints.

        Raises:
            ValueError: one is missing; the message lists what is there.
        """
        from stateless_transducer.checkpoint import average_checkpoints

        numbers, there, path = self._wanted(exp_dir)
        missing = [number for number in numbers if number not in there]
        if missing:
            kind = "epoch" if self.iter is None else "iter"
            names, absent, found = ([path(exp_dir, n).name for n in each] for each in (numbers, missing, there))
            raise ValueError(
                f"`{kind}` {numbers[-1]} `avg` {len(numbers)} needs {_listed(names)}, but {_listed(absent)} is not "
                f"in `exp_dir` {exp_dir} ({_listed(found) or 'no checkpoint'} there)."
            )
        return average_checkpoints((path(exp_dir, number) for number in numbers), use_ema=self.use_ema)

    def _wanted(self, exp_dir: Path) -> tuple[Sequence[int], list[int], Callable[[Path, int], Path]]:
        """Numbers of the checkpoints, numbers of those that there are, and how they are named."""
        from stateless_transducer.checkpoint import batch_path, epoch_path, saved_batches, saved_epochs

        if self.iter is not None:
            there, avg = saved_batches(exp_dir), self.avg or 1
            if self.iter not in there:
                return [self.iter], there, batch_path
            before = [number for number in there if number <= self.iter]
            # as many as there are do: older ones are removed as training goes on
            return before[-avg:], there, batch_path
        there = saved_epochs(exp_dir)
        if self.epoch is None and not there:
            raise ValueError(f"`exp_dir` {exp_dir} holds no epoch-*.pt; train first.")
        epoch = there[-1] if self.epoch is None else self.epoch
        # the first epochs do an average no good
        avg = self.avg or max(1, min(10, (epoch + 1) // 2))
        if avg > epoch + 1:
            raise ValueError(f"`avg` must be at most {epoch + 1}, the number of epochs up to {epoch}, but is {avg}.")
        return range(epoch - avg + 1, epoch + 1), there, epoch_path


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])
