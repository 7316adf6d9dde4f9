#!/usr/bin/env python3
"""What waiting threads cost: training and transcription on an idle machine and beside other work, by waiting policy.

    python benchmarks/threads.py [--threads 1 2] [--seconds 5] [--repeats 3]

Each run is a process of its own: the demo's model takes training steps, or transcribes noise with torch or as ONNX, for
some seconds. `busy` means one endless loop per core beside it. Policies take turns; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from about import about, print_about

POLICIES = {
    "torch's default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1000 spins": {"GOMP_SPINCOUNT": "1000"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
}
TASKS = ("train", "torch", "onnx")


def work(task: str, folder: Path, threads: int, seconds: float) -> float:
    """Return the seconds of sound that a task gets through in a second."""
    step, sound_s = training_step(threads) if task == "train" else transcription(task, folder, threads)
    step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return count * sound_s / (time.perf_counter() - start)


def training_step(threads: int):
    """Return a function that trains the demo's model on a batch, and the seconds of speech in the batch."""
    import torch
    from train import learn, learner, make_batch

    from stateless_transducer.commands.demo import SIZES

    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    batch = make_batch(16.0, 2.0, SIZES.vocab_size)
    learning = learner(SIZES, torch.device("cpu"))
    return lambda: learn(learning, batch, 1), batch.seconds


def transcription(task: str, folder: Path, threads: int):
    """Return a function that transcribes noise, and its seconds."""
    import numpy as np

    from stateless_transducer import Recognizer

    path = folder / ("onnx" if task == "onnx" else "model.pt")
    recognizer = Recognizer.from_pretrained(path, device="cpu", num_threads=threads)
    sound = (0.1 * np.random.default_rng(0).standard_normal(16000 * 4)).astype(np.float32)
    return lambda: recognizer.transcribe(sound), 4.0


def prepare(folder: Path) -> None:
    """Write the demo's model with random weights, as a checkpoint and as ONNX."""
    from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
    from stateless_transducer.cli import main as transducer
    from stateless_transducer.commands.demo import SIZES
    from stateless_transducer.features import FbankConfig
    from stateless_transducer.model.transducer import build_model
    from stateless_transducer.text.tokens import SPECIAL, TokenTable

    table = TokenTable((*SPECIAL, *(chr(0x4E00 + i) for i in range(SIZES.vocab_size - len(SPECIAL)))))
    model = build_model(SIZES).eval()
    save_checkpoint(folder / "model.pt", Checkpoint(model.state_dict(), SIZES, FbankConfig(), table, {}))
    if transducer(["export", "onnx", "--model", str(folder / "model.pt"), "--output", str(folder / "onnx")]):
        sys.exit("The export failed.")


@contextmanager
def loops(count: int) -> Iterator[None]:
    """Keep some cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(task: str, folder: Path, threads: int, seconds: float, policy: dict[str, str]) -> float:
    """Return the speed of a process of its own."""
    unset = {name for setting in POLICIES.values() for name in setting}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | policy
    command = [sys.executable, __file__, "--work", task, str(folder), str(threads), str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        task, folder, threads, seconds = arguments.work
        print(json.dumps(work(task, Path(folder), int(threads), float(seconds))))
        return
    print_about(about())
    speeds: dict[tuple[str, int, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for _ in range(arguments.repeats):
            for machine, count in (("idle", 0), ("busy", os.cpu_count() or 1)):
                with loops(count):
                    for task in TASKS:
                        for threads in arguments.threads:
                            for policy, setting in POLICIES.items():
                                speed = measure(task, Path(name), threads, arguments.seconds, setting)
                                speeds.setdefault((task, threads, machine, policy), []).append(speed)
    print(f"Seconds of sound a second.\n\n| task | threads | machine | {' | '.join(POLICIES)} |")
    print("|---|---|---|" + "---|" * len(POLICIES))
    for task in TASKS:
        for threads in arguments.threads:
            for machine in ("idle", "busy"):
                cells = [f"{statistics.median(speeds[task, threads, machine, policy]):.1f}" for policy in POLICIES]
                print(f"| {task} | {threads} | {machine} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
