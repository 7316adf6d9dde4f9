"""What a person sees of a training run: bar, log file, metrics file, TensorBoard, and a folder that explains itself."""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stateless_transducer import __version__
from stateless_transducer.files import write_text


def peak_bytes() -> float:
    """The most of the machine's memory that this process has taken."""
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kept if sys.platform == "darwin" else kept * 1024)


def open_log(
    log_dir: Path, stem: str, *, rank: int = 0, world_size: int = 1, to_console: bool = True
) -> logging.Logger:
    """A logger into ``<log_dir>/<stem>-<date>[-<rank>]`` and perhaps onto the console; lines look as icefall's.

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
    suffix, whose = (f"-{rank}", f" ({rank}/{world_size})") if world_size > 1 else ("", "")
    make_log_dir(log_dir)
    handlers: list[logging.Handler] = [logging.FileHandler(log_dir / f"{stem}-{date}{suffix}", encoding="utf-8")]
    if to_console:
        handlers.append(_ConsoleHandler(logging.INFO if sys.stderr.isatty() else logging.DEBUG))
    line = f"%(asctime)s %(levelname)s [%(filename)s:%(lineno)d]{whose} %(message)s"
    for handler in handlers:
        handler.setFormatter(logging.Formatter(line))
        logger.addHandler(handler)
    return logger


def make_log_dir(log_dir: Path) -> None:
    """The folder for logs in that of an experiment.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=log_dir):
            pass
    except OSError as err:
        raise ValueError(f"`exp_dir` {log_dir.parent} cannot be written: {err.strerror}.") from err


class _ConsoleHandler(logging.Handler):
    """Looks standard error up each time: while a bar is shown, it is the bar's own, which prints above it."""

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        print(self.format(record), file=sys.stderr, flush=True)


def describe_run(exp_dir: Path, config: Mapping[str, Any], command: str) -> None:
    """Write ``config.json``, all options of the run, and ``README``, what made the folder and what to do with it."""
    write_text(exp_dir / "config.json", json.dumps(config, indent=2, ensure_ascii=False, default=str) + "\n")
    made = datetime.now().strftime("%Y-%m-%d %H:%M")
    again = "the same command" if config["train"]["resume"] else "the same command with --resume true"
    data = f"--manifest-dir {config['data']['manifest_dir']} --prefix {config['data']['prefix']}"
    write_text(
        exp_dir / "README",
        f"Made by stateless-transducer {__version__} (torch {torch.__version__}), {made}, with\n\n    {command}\n\n"
        "epoch-N.pt, checkpoint-N.pt  checkpoints: model, front end, tokens, and the state to go on with\n"
        "best-*-loss.pt               those with the lowest training and validation loss\n"
        "abandoned-N/                 what was written later, when --start-epoch went back\n"
        "config.json                  all options\n"
        "log/log-train-*              the log; log/metrics.jsonl the same in numbers\n"
        "tensorboard/                 tensorboard --logdir tensorboard\n\n"
        f"Go on after an interruption: {again}\n"
        f"Error rates:                 transducer decode --exp-dir {exp_dir} {data}\n"
        f"One model file:              transducer average --exp-dir {exp_dir} --output model.pt\n",
    )


class TrainingDisplay:
    """Bar on a terminal, lines of the log elsewhere; numbers to TensorBoard and ``<exp_dir>/log/metrics.jsonl``.

    Args:
        exp_dir: of the run.
        total_seconds: speech in all epochs together.
        done_seconds: speech that a resumed run has behind it.
        tensorboard: whether to write there.
        device: whose memory is shown.
    """

    def __init__(
        self, exp_dir: Path, *, total_seconds: float, done_seconds: float, tensorboard: bool, device: torch.device
    ) -> None:
        self._metrics = (exp_dir / "log" / "metrics.jsonl").open("a", encoding="utf-8")
        self._writer, self._device = None, device
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                raise ValueError(
                    "`tensorboard=True` needs tensorboard: pip install 'stateless-transducer[train]', "
                    "or say `tensorboard=False`."
                ) from None
            self._writer = SummaryWriter(str(exp_dir / "tensorboard"))
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[numbers]}  time left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
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

    @property
    def memory(self) -> float:
        """GiB, the most that this process has taken: of the GPU, or of the machine."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device) / 2**30
        return peak_bytes() / 2**30

    def advance(self, seconds: float, *, where: str, loss: float) -> None:
        """A batch is done; ``where`` names epoch and batch."""
        self._seconds += seconds
        numbers = f"loss {loss:.3f} a frame  {self.speed:.0f} s of speech/s  {self.memory:.1f} GiB"
        self._bar.update(self._task, advance=seconds, description=where, numbers=numbers)

    def record(self, step: int, **numbers: Any) -> None:
        """Numbers at a step (batches so far) to the files."""
        self._metrics.write(json.dumps({"step": step, **numbers}) + "\n")
        self._metrics.flush()
        if self._writer is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"train/{name}", value, step)

    def show_samples(self, step: int, text: str, picture: np.ndarray) -> None:
        """Transcripts (Markdown) and an alignment (U+1, T), 0..1, to TensorBoard."""
        if self._writer is not None:
            self._writer.add_text("valid/transcripts", text, step)
            # small lattices are hard to see: four pixels a cell, the first token at the bottom
            pixels = np.kron(picture[::-1].clip(0, 1), np.ones((4, 4)))
            self._writer.add_image("valid/alignment", pixels[None].astype(np.float32), step)
