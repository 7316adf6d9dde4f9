#!/usr/bin/env python3
"""Draw docs/latency.svg: what a chunk length costs, from a result of benchmarks/streaming.py.

python docs/draw_latency.py benchmarks/results/2026-11-30-streaming.md
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
from drawing import DARK, LIGHT
from matplotlib.layout_engine import ConstrainedLayoutEngine

plt.rcParams |= {
    "svg.hashsalt": "latency",  # the same file each time
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["soft"],
    "grid.color": LIGHT["faint"],
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), LIGHT["ink"]),
}
ROW = re.compile(
    r"\| (?P<model>\w+) \| (\d+) \| (?P<latency>\d+) \| (?P<errors>[\d.]+) \| (?P<delay>\d+) \| (?P<late>\d+) \|"
)
SIZE = 8, 2.8
"""Inches, of 72 points."""
LAYOUT = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
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
    figure, (left, right) = plt.subplots(1, 2, figsize=SIZE, layout=LAYOUT)
    left.plot(latency, [float(row["errors"]) for row in rows], "o-", color=LIGHT["blue"], label="chunk by chunk")
    left.axhline(float(whole["errors"]), color=LIGHT["soft"], linestyle="--", label="whole utterances")
    left.set_ylabel("error rate, %")
    for name, label, marker, color in (("late", "90th percentile", "^-", "orange"), ("delay", "median", "o-", "blue")):
        right.plot(latency, [int(row[name]) for row in rows], marker, color=LIGHT[color], label=label)
    right.set_ylabel("delay of a token, ms")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(latency, [str(number) for number in latency])
        axes.minorticks_off()
        axes.set_ylim(bottom=0, top=1.1 * axes.get_ylim()[1])
        axes.set_xlabel("latency of a chunk, ms")
        axes.grid()
    left.legend()
    right.legend(loc="center right")
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    picture.write_text(with_dark_scheme(file.getvalue()), encoding="utf-8")


def with_dark_scheme(svg: str) -> str:
    """Add the ground and the dark color scheme to a drawing whose inline styles have the light colors."""
    rules = [
        f'[style*="{kind}: {LIGHT[name]}"] {{ {kind}: {DARK[name]} !important; }}'
        for name in LIGHT
        for kind in ("fill", "stroke")
    ]
    style = "\n".join(["<style>@media (prefers-color-scheme: dark) {", *rules, "}</style>"])
    colors = f"fill: {LIGHT['ground']}; stroke: {LIGHT['faint']}"
    width, height = (72 * inches - 1 for inches in SIZE)
    ground = f'<rect x="0.5" y="0.5" width="{width:g}" height="{height:g}" rx="8" style="{colors}"/>'
    return svg.replace("<metadata>", f"{style}\n {ground}\n <metadata>", 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="page of benchmarks/results")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("latency.svg"))
    arguments = parser.parse_args()
    draw(arguments.result, arguments.output)
