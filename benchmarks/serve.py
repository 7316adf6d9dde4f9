#!/usr/bin/env python3
"""Gain of a server from batching the sounds of several clients.

    python benchmarks/serve.py [--clients 1 4 16] [--threads 2] [--repeats 3] [--checkpoint model.pt --wavs folder]

Two servers run the same exported model on the same threads: one as it is, one that takes a sound at a time
(`--max-duration 0.1`). So many clients send their next sound as soon as the last one is answered; the servers take
turns at each number of clients. Seconds of sound answered a second, and how long an answer took: the median and the
slowest twentieth. The gate: both say the same. Model and sounds are those of `transcribe.py`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import onnxruntime
import soundfile
from about import about, print_about
from transcribe import prepare

SERVERS = {"together": [], "one at a time": ["--max-duration", "0.1", "--max-wait-ms", "0"]}


@contextmanager
def server(model: Path, threads: int, flags: list[str]) -> Iterator[str]:
    """Run a server; yields its address."""
    command = [sys.executable, "-m", "stateless_transducer.cli", "serve", str(model), "--port", "0"]
    command += ["--num-threads", str(threads), "--align", "false", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            sys.exit("The server did not start.")
        while not answers(found[0]):
            time.sleep(0.1)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def load(address: str, paths: list[Path], num_clients: int) -> tuple[float, list[float], list[str]]:
    """Return wall-clock seconds, seconds per answer, and texts."""

    def ask(path: Path) -> tuple[float, str]:
        began = time.perf_counter()
        with path.open("rb") as file:
            answer = client.post(f"{address}/v1/audio/transcriptions", files={"file": file})
        answer.raise_for_status()
        return time.perf_counter() - began, answer.json()["text"]

    with httpx.Client(timeout=600) as client, ThreadPoolExecutor(num_clients) as pool:
        began = time.perf_counter()
        found = list(pool.map(ask, paths))
        return time.perf_counter() - began, [took for took, _ in found], [text for _, text in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--wavs", type=Path, help="folder with .wav files")
    parser.add_argument("--seconds", type=float, default=240.0, help="of noise, without --wavs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows: dict[tuple[int, str], list[tuple[float, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        paths = prepare(Path(temporary), arguments)
        seconds = sum(soundfile.info(path).duration for path in paths)
        facts = {"threads": arguments.threads, "files": len(paths), "seconds": round(seconds)}
        print_about(about(onnxruntime=onnxruntime.__version__, **facts))
        addresses = {
            name: stack.enter_context(server(Path(temporary) / "onnx", arguments.threads, flags))
            for name, flags in SERVERS.items()
        }
        wanted = None
        for num_clients in arguments.clients:
            for _ in range(arguments.repeats):
                for name, address in addresses.items():
                    wall, took, texts = load(address, paths, num_clients)
                    if texts != (wanted := wanted or texts):
                        sys.exit(f"Gate: {name} with {num_clients} clients says something else.")
                    rows.setdefault((num_clients, name), []).append((wall, took))
    print("| clients | server | s of speech/s | times as much | answer, median s | slowest twentieth, s |")
    print("|---|---|---|---|---|---|")
    for (num_clients, name), own in rows.items():
        beside = rows[num_clients, "one at a time"]
        gain = statistics.median(b[0] / a[0] for a, b in zip(own, beside, strict=True))
        speed = seconds / statistics.median(wall for wall, _ in own)
        every = sorted(second for _, took in own for second in took)
        middle, slow = every[len(every) // 2], every[int(0.95 * len(every))]
        print(f"| {num_clients} | {name} | {speed:.0f} | {gain:.2f} | {middle:.2f} | {slow:.2f} |")


if __name__ == "__main__":
    main()
