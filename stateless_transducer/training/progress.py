"""Progress of a training run: bar, log file, metrics file, TensorBoard, and a README in the folder."""

from __future__ import annotations

import json
import logging
import math
import shlex
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
from stateless_transducer.data.batches import cuts_path
from stateless_transducer.files import printable_text, write_text


def peak_bytes() -> float:
    """Return the peak memory of this process, without that of a GPU; 0 on Windows, where Python does not know it."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def open_log(
    log_dir: Path, stem: str, *, rank: int = 0, world_size: int = 1, to_console: bool = True
) -> logging.Logger:
    """Open a logger to ``<log_dir>/<stem>-<date>[-<rank>]``, optionally also to the console, in icefall's line format.

    Lines about single batches (level DEBUG) are not shown on a terminal, where the bar reports the same.

    Raises:
        ValueError: the folder is not writable.
    """
    logger = logging.getLogger(f"stateless_transducer.{stem}.{rank}")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    date = datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    suffix, rank_note = (f"-{rank}", f" ({rank}/{world_size})") if world_size > 1 else ("", "")
    make_log_dir(log_dir)
    handlers: list[logging.Handler] = [logging.FileHandler(log_dir / f"{stem}-{date}{suffix}", encoding="utf-8")]
    if to_console:
        handlers.append(_ConsoleHandler(logging.INFO if sys.stderr.isatty() else logging.DEBUG))
    line = f"%(asctime)s %(levelname)s [%(filename)s:%(lineno)d]{rank_note} %(message)s"
    for handler in handlers:
        handler.setFormatter(logging.Formatter(line))
        logger.addHandler(handler)
    return logger


def make_log_dir(log_dir: Path) -> None:
    """Create the folder for logs.

    Raises:
        ValueError: the folder is not writable.
    """
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=log_dir):
            pass
    except OSError as err:
        raise ValueError(f"`exp_dir` {log_dir.parent} cannot be written: {err.strerror}.") from err


class _ConsoleHandler(logging.Handler):
    """Log to the current standard error: while a bar is shown, that is the bar's stream, which prints above it."""

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        print(printable_text(self.format(record)), file=sys.stderr, flush=True)


def describe_run(exp_dir: Path, config: Mapping[str, Any], command: str) -> None:
    """Write ``config.json``, the options of the run, and ``README``, the origin and contents of the folder."""
    write_text(exp_dir / "config.json", json.dumps(config, indent=2, ensure_ascii=False, default=str) + "\n")
    date = datetime.now().strftime("%Y-%m-%d %H:%M")
    resume_command = "the same command" if config["train"]["resume"] else "the same command with --resume true"
    data = shlex.join(["--manifest-dir", str(config["data"]["manifest_dir"]), "--prefix", config["data"]["prefix"]])
    folder = shlex.quote(str(exp_dir))
    write_text(
        exp_dir / "README",
        f"Made by stateless-transducer {__version__} (torch {torch.__version__}), {date}, with\n\n    {command}\n\n"
        "epoch-N.pt, checkpoint-N.pt  checkpoints: model, front end, tokens, and training state\n"
        "best-*-loss.pt               checkpoints with the lowest training and validation loss\n"
        "abandoned-N/                 later checkpoints, moved away when --start-epoch went back\n"
        "config.json                  all options\n"
        "log/log-train-*              log; log/metrics.jsonl: its numbers\n"
        "tensorboard/                 tensorboard --logdir tensorboard\n\n"
        f"Resume after an interruption: {resume_command}\n"
        f"Error rates:                 {_decode_hint(exp_dir, config, data)}\n"
        f"One model file:              transducer average --exp-dir {folder} --output model.pt\n",
    )


def _decode_hint(exp_dir: Path, config: Mapping[str, Any], data: str) -> str:
    """Return the command that decodes a prepared split, or a note that none is prepared."""
    folder, prefix = Path(config["data"]["manifest_dir"]), config["data"]["prefix"]
    command = f"transducer decode --exp-dir {shlex.quote(str(exp_dir))} {data}"
    if cuts_path(folder, prefix, "test") is not None:
        return command
    dev_split = config["dev_split"]
    if cuts_path(folder, prefix, dev_split) is not None:
        return f"{command} --test-sets {shlex.quote(dev_split)}"
    return f"{command} --test-sets NAME, once a test set is prepared"


class TrainingDisplay:
    """Progress bar on a terminal; numbers to TensorBoard and ``<exp_dir>/log/metrics.jsonl``.

    Args:
        exp_dir: folder of the run.
        total_seconds: seconds of speech in all epochs together.
        done_seconds: seconds of speech that a resumed run has done before.
        tensorboard: whether to write to TensorBoard.
        device: device whose memory is reported.
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
                    "or pass `tensorboard=False`."
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
        # not by an update, from which the bar would estimate the time left
        self._bar.tasks[0].completed = done_seconds
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
        """Seconds of speech per second since the start."""
        return self._seconds / max(1e-9, time.monotonic() - self._started)

    @property
    def memory(self) -> float:
        """Peak memory of this process in GiB, on the GPU or on the machine."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device) / 2**30
        return peak_bytes() / 2**30

    def advance(self, seconds: float, *, where: str, loss: float) -> None:
        """Advance the bar by a batch; ``where`` names epoch and batch."""
        self._seconds += seconds
        shown = "-" if math.isnan(loss) else f"{loss:.3f}"
        numbers = f"loss {shown} a frame  {self.speed:.0f} s of speech/s  {self.memory:.1f} GiB"
        self._bar.update(self._task, advance=seconds, description=where, numbers=numbers)

    def record(self, step: int, **numbers: Any) -> None:
        """Write numbers at a step, counted in batches, to the files; JSON has null for those that are not finite."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in numbers.items()
        }
        self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
        self._metrics.flush()
        if self._writer is not None:
            for name, value in numbers.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"train/{name}", value, step)

    def show_samples(self, step: int, text: str, picture: np.ndarray) -> None:
        """Write transcripts (Markdown) and an alignment (U+1, T), 0..1, to TensorBoard."""
        if self._writer is not None:
            self._writer.add_text("valid/transcripts", text, step)
            # small lattices are hard to see: 4 x 4 pixels per cell, the first token at the bottom
            pixels = np.kron(picture[::-1].clip(0, 1), np.ones((4, 4)))
            self._writer.add_image("valid/alignment", pixels[None].astype(np.float32), step)
