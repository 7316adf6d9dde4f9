#!/usr/bin/env python3
"""Draw docs/latency.svg: what a chunk length costs, from a result of benchmarks/streaming.py.

python docs/draw_latency.py benchmarks/results/2026-11-30-streaming.md
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib.pyplot as plt

plt.rcParams["svg.hashsalt"] = "latency"  # the same file each time
ROW = re.compile(
    r"\| (?P<model>\w+) \| (\d+) \| (?P<latency>\d+) \| (?P<errors>[\d.]+) \| (?P<delay>\d+) \| (?P<late>\d+) \|"
)
WHOLE = re.compile(r"\| (?P<model>\w+) \| whole \| the sound \| (?P<errors>[\d.]+) \|")


def draw(result: Path, picture: Path) -> None:
    """Draw error rate and delay of tokens by latency.

    Args:
        result: Markdown page with the table of one model.
        picture: file to write.

    Raises:
        ValueError: the page has no such table.
    """
    text = result.read_text(encoding="utf-8")
    rows, whole = [match.groupdict() for match in ROW.finditer(text)], WHOLE.search(text)
    if not rows or whole is None:
        raise ValueError(f"{result}: no table of benchmarks/streaming.py with latencies and whole utterances.")
    latency = [int(row["latency"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    left.plot(latency, [float(row["errors"]) for row in rows], "o-", label="chunk by chunk")
    left.axhline(float(whole["errors"]), color="gray", linestyle="--", label="whole utterances")
    left.set_ylabel("error rate, %")
    for name, label, marker in (("late", "90th percentile", "^-"), ("delay", "median", "o-")):
        right.plot(latency, [int(row[name]) for row in rows], marker, label=label)
    right.set_ylabel("delay of a token, ms")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(latency, [str(number) for number in latency])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("latency of a chunk, ms")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="page of benchmarks/results")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("latency.svg"))
    arguments = parser.parse_args()
    draw(arguments.result, arguments.output)
