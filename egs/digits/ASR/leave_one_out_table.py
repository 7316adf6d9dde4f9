#!/usr/bin/env python3
"""Word error rates of ``leave_one_out.sh`` as a Markdown table: each speaker, mean, median and worst.

./leave_one_out_table.py george jackson ...     folders, each with exp/ as run.sh or finetune.sh leaves it
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

try:
    from stateless_transducer.evaluation.test_sets import CONFIDENCE
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

METHODS = ("greedy_search", "modified_beam_search")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--streaming", action="store_true", help="results of live sound instead of whole utterances")
    arguments = parser.parse_args()
    try:
        results = {
            folder.name: [result_of(folder, method, live=arguments.streaming) for method in METHODS]
            for folder in arguments.folders
        }
    except OSError as err:
        print(f"leave_one_out_table.py: error: {err}", file=sys.stderr)
        return 1
    print("| speaker left out | greedy_search: WER % | modified_beam_search: WER % | words |")
    print("|---|---|---|---|")
    for speaker, methods in results.items():
        cells = [f"{figures['error_rate']:.2f} ({low_to_high(figures)})" for figures in methods]
        print(f"| {speaker} | {' | '.join(cells)} | {methods[0]['reference_units']} |")
    rates = list(zip(*([figures["error_rate"] for figures in methods] for methods in results.values()), strict=True))
    for name, summary in ("mean", statistics.mean), ("median", statistics.median), ("worst", max):
        print(f"| {name} | {' | '.join(f'{summary(column):.2f}' for column in rates)} | |")
    print(f"\nIn brackets: {100 * CONFIDENCE:g} % intervals.")
    return 0


def result_of(folder: Path, method: str, *, live: bool) -> dict:
    """Figures of the newest result, in words, on dev."""
    results = (folder / "exp" / "log" / method / "wer").glob("result-dev-*.json")
    paths = sorted(
        (path for path in results if ("-streaming-" in path.name) == live), key=lambda path: path.stat().st_mtime
    )
    if not paths:
        raise FileNotFoundError(f"{folder} has no result of {method} on dev; run leave_one_out.sh first")
    return json.loads(paths[-1].read_text(encoding="utf-8"))


def low_to_high(figures: dict) -> str:
    return f"{figures['confidence_interval']['low']:.2f}..{figures['confidence_interval']['high']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
