#!/usr/bin/env python3
"""Write a table of the yesno corpus (OpenSLR 1) for ``transducer prepare table``.

    ./make_table.py FOLDER table.tsv [--fold 0]

A file name is the transcript: ``0_1_0_0_1_0_1_1.wav`` has eight words, 0 for NO and 1 for YES. In the order of their
names, the first half of the files is train and the second half is test. Each training utterance is in the table as a
whole and as pairs of neighboring words, cut in the middle of the pauses. Pairs are omitted if an utterance has another
number of bursts of energy than words. With ``--fold``, the table has the training half only, and every third utterance
of it is dev, from the given one on: as a whole, and from its first YES on, since all of them begin with NO.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import numpy as np

    from stateless_transducer.audio import AudioError, read_audio
    from stateless_transducer.files import replacing
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

WORDS = {"0": "NO", "1": "YES"}
NUM_FOLDS = 3
RATE, FRAMES_PER_S = 8000, 100
SHORTEST_FRAMES = 8
"""Shorter pauses and bursts do not count."""
MARGIN_FRAMES = 20
"""Silence before the first word and after the last one."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the sound files, at any depth")
    parser.add_argument("table", type=Path, help="table to write")
    parser.add_argument("--fold", type=int, choices=range(NUM_FOLDS), help="third of the training half to hold out")
    arguments = parser.parse_args()
    try:
        rows = list(rows_of(arguments.folder, arguments.fold))
        with replacing(arguments.table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(("id", "path", "start", "end", "split", "text"))
            writer.writerows(rows)
    except (AudioError, OSError, ValueError) as err:
        print(f"make_table.py: error: {err}", file=sys.stderr)
        return 1
    print(f"{arguments.table}: {len(rows)} utterances")
    return 0


def rows_of(folder: Path, fold: int | None) -> Iterator[tuple[str, Path, float, float, str, str]]:
    """Rows of the table: id, path, begin and end in seconds, split, text."""
    files = sorted(
        (path for path in folder.rglob("*.*") if re.fullmatch(r"[01](_[01]){7}\.(wav|flac)", path.name)),
        key=lambda path: path.stem,
    )
    if len(files) < 2 * NUM_FOLDS:
        raise ValueError(f"{folder} needs {2 * NUM_FOLDS} files like 0_1_0_0_1_0_1_1.wav, but holds {len(files)}")
    half = len(files) // 2
    for number, path in enumerate(files if fold is None else files[:half]):
        words = [WORDS[digit] for digit in path.stem.split("_")]
        samples = read_audio(path, RATE)
        split = "test" if number >= half else "dev" if number % NUM_FOLDS == fold else "train"
        yield path.stem, path.resolve(), 0.0, len(samples) / RATE, split, " ".join(words)
        borders = word_borders(samples)
        if split == "test" or len(borders) != len(words) + 1:
            continue
        spans = [(first, first + 2) for first in range(len(words) - 1)]
        if split == "dev":
            spans = [(words.index("YES"), len(words))] if "YES" in words else []
        for first, end in spans:
            text = " ".join(words[first:end])
            yield f"{path.stem}-{first}", path.resolve(), borders[first], borders[end], split, text


def word_borders(samples: np.ndarray) -> list[float]:
    """Begin of the first word, middles of the pauses and end of the last word, in seconds, with a margin at either end.

    A frame is loud if its level is above the middle between quiet (10th percentile) and loud (95th percentile).
    """
    size = RATE // FRAMES_PER_S
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    levels = np.convolve(10 * np.log10(np.mean(frames**2, 1) + 1e-10), np.full(5, 1 / 5), "same")
    is_loud = levels > np.percentile(levels, (10, 95)).mean()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_loud, [False]])))
    bursts: list[list[int]] = []
    for begin, end in edges.reshape(-1, 2).tolist():
        if bursts and begin - bursts[-1][1] < SHORTEST_FRAMES:
            bursts[-1][1] = end
        else:
            bursts.append([begin, end])
    bursts = [burst for burst in bursts if burst[1] - burst[0] >= SHORTEST_FRAMES]
    middles = [(before[1] + after[0]) / 2 for before, after in zip(bursts, bursts[1:], strict=False)]
    if not bursts:
        return []
    first, last = max(0, bursts[0][0] - MARGIN_FRAMES), min(len(frames), bursts[-1][1] + MARGIN_FRAMES)
    return [round(place / FRAMES_PER_S, 3) for place in (first, *middles, last)]


if __name__ == "__main__":
    sys.exit(main())
