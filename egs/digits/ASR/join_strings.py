#!/usr/bin/env python3
"""Join single recordings into longer utterances: connected digits from single digits, phrases from words.

    ./join_strings.py --recordings manifest.tsv --strings strings.tsv --output-dir joined

``manifest.tsv`` has columns id, path; ``strings.tsv`` has id, speaker, split, text, segments (ids of recordings) and
gaps_ms (silences before, between and behind them: one more than segments). Writes ``<output-dir>/<split>/<id>.wav`` and
``<output-dir>/table.tsv`` for ``transducer prepare table``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import soundfile

from stateless_transducer.audio import AudioError, read_audio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True, help="table of single recordings")
    parser.add_argument("--strings", type=Path, required=True, help="table of what to join")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sample-rate", type=int, default=16000, help="of what is written")
    parser.add_argument("--limit", type=int, default=None, help="join no more than this many a split")
    arguments = parser.parse_args()
    try:
        count = join_all(arguments)
    except (AudioError, OSError, KeyError) as err:
        print(f"join_strings.py: error: {err}", file=sys.stderr)
        return 1
    print(f"{arguments.output_dir}/table.tsv: {count} utterances")
    return 0


def join_all(arguments: argparse.Namespace) -> int:
    folder = arguments.recordings.parent
    paths = {row["id"]: folder / row["path"] for row in read_rows(arguments.recordings)}
    sounds: dict[str, np.ndarray] = {}
    written: dict[str, int] = {}
    rows = []
    for row in read_rows(arguments.strings):
        split = row["split"]
        if arguments.limit is not None and written.get(split, 0) >= arguments.limit:
            continue
        written[split] = written.get(split, 0) + 1
        segments = row["segments"].split()
        for id_ in segments:
            if id_ not in sounds:
                sounds[id_] = read_audio(paths[id_], arguments.sample_rate)
        gaps = [round(float(gap) / 1000 * arguments.sample_rate) for gap in row["gaps_ms"].split()]
        joined = join([sounds[id_] for id_ in segments], gaps)
        path = arguments.output_dir / split / f"{row['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, joined, arguments.sample_rate, subtype="PCM_16")
        rows.append((row["id"], f"{split}/{path.name}", row["speaker"], split, row["text"]))
    with (arguments.output_dir / "table.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("id", "path", "speaker", "split", "text"))
        writer.writerows(rows)
    return len(rows)


def join(sounds: list[np.ndarray], gaps: list[int]) -> np.ndarray:
    """Sounds with silences of so many samples before, between and behind them."""
    pieces = [np.zeros(gaps[0], np.float32)]
    for sound, gap in zip(sounds, gaps[1:], strict=True):
        pieces += [sound, np.zeros(gap, np.float32)]
    return np.concatenate(pieces).clip(-1, 1)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    sys.exit(main())
