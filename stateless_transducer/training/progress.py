"""What a person sees of a training run: bar, log file, metrics file, TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LINE = "%(asctime)s %(levelname)s %(message)s"


def open_log(log_dir: Path, stem: str, *, rank: int, world_size: int, to_console: bool) -> logging.Logger:
    """A logger into ``<log_dir>/<stem>-<date>[-<rank>]`` and perhaps onto the console.

    Lines about single batches (level DEBUG) stay off a terminal, where the bar tells the same.

    Raises:
        ValueError: the folder cannot be written.
    """
    logger = logging.getLogger(f"stateless_transducer.{stem}.{rank}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    date = datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    suffix = f"-{rank}" if world_size > 1 else ""
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [logging.FileHandler(log_dir / f"{stem}-{date}{suffix}", encoding="utf-8")]
    except OSError as err:
        raise ValueError(f"`--exp-dir` {log_dir.parent} cannot be written: {err.strerror}.") from err
    if to_console:
        handlers.append(_ConsoleHandler(logging.INFO if sys.stderr.isatty() else logging.DEBUG))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_LINE))
        logger.addHandler(handler)
    return logger


class _ConsoleHandler(logging.Handler):
    """Looks standard error up each time: while a bar is shown, it is the bar's own, which prints above it."""

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        print(self.format(record), file=sys.stderr, flush=True)


class TrainingDisplay:
    """Bar on a terminal, lines of the log elsewhere; numbers to TensorBoard and ``<exp_dir>/log/metrics.jsonl``.

    Args:
        exp_dir: of the run.
        total_seconds: speech in all epochs together.
        done_seconds: speech in the epochs that a resumed run has behind it.
        tensorboard: whether to write there.
    """

    def __init__(self, exp_dir: Path, *, total_seconds: float, done_seconds: float, tensorboard: bool) -> None:
        self._metrics = (exp_dir / "log" / "metrics.jsonl").open("a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                raise ValueError(
                    "`--tensorboard true` needs tensorboard: pip install 'stateless-transducer[train]', "
                    "or say `--tensorboard false`."
                ) from None
            self._writer = SummaryWriter(str(exp_dir / "tensorboard"))
        console = Console(stderr=True)
        self.is_terminal = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}  time left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_seconds, numbers="")
        self._bar.update(self._task, completed=done_seconds)
        self._started, self._seconds = time.monotonic(), 0.0

    def __enter__(self) -> TrainingDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()
        self._metrics.close()
        if self._writer is not None:
            self._writer.close()

    @property
    def speed(self) -> float:
        """Seconds of speech trained on in a second, since the start."""
        return self._seconds / max(1e-9, time.monotonic() - self._started)

    def advance(self, seconds: float, *, epoch: int, num_epochs: int, loss: float) -> None:
        """A batch is done."""
        self._seconds += seconds
        numbers = f"loss {loss:.3f} a frame  {self.speed:.0f} s of speech/s"
        self._bar.update(
            self._task, advance=seconds, description=f"epoch {epoch} ({epoch + 1} of {num_epochs})", numbers=numbers
        )

    def record(self, step: int, **numbers: Any) -> None:
        """Numbers at a step (batches so far) to the files."""
        self._metrics.write(json.dumps({"step": step, **numbers}) + "\n")
        self._metrics.flush()
        if self._writer is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"train/{name}", value, step)
