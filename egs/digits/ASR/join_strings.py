#!/usr/bin/env python3
"""Join single recordings into longer utterances: connected digits from single digits, phrases from words.

    ./join_strings.py --recordings manifest.tsv --strings strings.tsv --output-dir joined

``manifest.tsv`` has columns id, path, speaker, text; ``strings.tsv`` has id, speaker, split, text, segments (ids of
recordings) and gaps_ms (silences before, between and behind them: one more than segments). Writes
``<output-dir>/<split>/<id>.wav`` and ``<output-dir>/table.tsv`` for ``transducer prepare table``.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from collections import defaultdict
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
    parser.add_argument(
        "--repeats",
        type=float,
        default=0.0,
        help="share of the words of split train in whose place another recording of the word before is said",
    )
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
    recordings = read_rows(arguments.recordings)
    paths = {row["id"]: folder / row["path"] for row in recordings}
    by_word: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in recordings:
        by_word[row["speaker"], row["text"]].append(row["id"])
    sounds: dict[str, np.ndarray] = {}
    written: dict[str, int] = {}
    rows = []
    for row in read_rows(arguments.strings):
        split = row["split"]
        if arguments.limit is not None and written.get(split, 0) >= arguments.limit:
            continue
        written[split] = written.get(split, 0) + 1
        words, segments = row["text"].split(), row["segments"].split()
        if split == "train" and arguments.repeats:
            draw = random.Random(row["id"])
            for i in range(1, len(words)):
                if draw.random() < arguments.repeats:
                    words[i] = words[i - 1]
                    segments[i] = draw.choice(by_word[row["speaker"], words[i]])
        for id_ in segments:
            if id_ not in sounds:
                sounds[id_] = read_audio(paths[id_], arguments.sample_rate)
        gaps = [round(float(gap) / 1000 * arguments.sample_rate) for gap in row["gaps_ms"].split()]
        joined = join([sounds[id_] for id_ in segments], gaps)
        path = arguments.output_dir / split / f"{row['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, joined, arguments.sample_rate, subtype="PCM_16")
        rows.append((row["id"], f"{split}/{path.name}", row["speaker"], split, " ".join(words)))
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
