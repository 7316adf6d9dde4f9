#!/usr/bin/env python3
"""Join single recordings into longer utterances: connected digits from single digits, phrases from words.

    ./join_strings.py --recordings manifest.tsv --strings strings.tsv --output-dir joined [--noise-share 0.6]

``manifest.tsv`` has columns id, path; ``strings.tsv`` has id, speaker, split, text, segments (ids of recordings) and
gaps_ms (silences before, between and after them: one more than segments). Writes ``<output-dir>/<split>/<id>.wav`` and
``<output-dir>/table.tsv`` for ``transducer prepare table``. With ``--noise-share``, that part of a split's strings
has a noise in the recordings, not in the silences: as if they had been recorded elsewhere, with another microphone.
With ``--dev-speaker``, that speaker's strings are dev, and those of all other speakers of train and dev are train.
"""

from __future__ import annotations

import argparse
import csv
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

try:
    import numpy as np
    import soundfile
    from make_noise import RATE, colored_noise

    from stateless_transducer.audio import AudioError, read_audio, resample
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True, help="table of single recordings")
    parser.add_argument("--strings", type=Path, required=True, help="table of what to join")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sample-rate", type=int, default=16000, help="of what is written")
    parser.add_argument("--noise-share", type=float, default=0.0, help="share of a split's strings with noise")
    parser.add_argument("--noise-split", default="train", help="which split; dev shows how much noise a model stands")
    parser.add_argument(
        "--noise-snr-db", type=float, nargs=2, default=(5.0, 30.0), help="how far their noise is below the speech"
    )
    parser.add_argument("--dev-speaker", help="speaker to hold out (default: the splits of the strings)")
    parser.add_argument("--train-limit", type=int, help="training strings per speaker (default: all)")
    parser.add_argument("--dev-limit", type=int, help="dev strings per speaker (default: all)")
    arguments = parser.parse_args()
    try:
        count = join_all(arguments)
    except (AudioError, OSError, KeyError, ValueError) as err:
        print(f"join_strings.py: error: {err}", file=sys.stderr)
        return 1
    print(f"{arguments.output_dir}/table.tsv: {count} utterances")
    return 0


def join_all(arguments: argparse.Namespace) -> int:
    folder = arguments.recordings.parent
    paths = {row["id"]: folder / row["path"] for row in read_rows(arguments.recordings)}
    sounds: dict[str, np.ndarray] = {}
    rows = []
    for row in chosen_strings(read_rows(arguments.strings), arguments):
        split, segments = row["split"], row["segments"].split()
        for id_ in segments:
            if id_ not in sounds:
                sounds[id_] = read_audio(paths[id_], arguments.sample_rate)
        gaps = [round(float(gap) / 1000 * arguments.sample_rate) for gap in row["gaps_ms"].split()]
        recordings = [sounds[id_] for id_ in segments]
        rng = np.random.default_rng(zlib.crc32(row["id"].encode()))
        if split == arguments.noise_split and rng.random() < arguments.noise_share:
            snr_db = rng.uniform(*arguments.noise_snr_db)
            recordings = with_noise(recordings, snr_db, arguments.sample_rate, rng)
        joined = join(recordings, gaps)
        path = arguments.output_dir / split / f"{row['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, joined, arguments.sample_rate, subtype="PCM_16")
        rows.append((row["id"], f"{split}/{path.name}", row["speaker"], split, row["text"]))
    with (arguments.output_dir / "table.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("id", "path", "speaker", "split", "text"))
        writer.writerows(rows)
    return len(rows)


def chosen_strings(rows: list[dict[str, str]], arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    """The strings to join, each with its split, up to the limits of the splits."""
    speakers = sorted({row["speaker"] for row in rows if row["split"] != "test"})
    if arguments.dev_speaker not in (None, *speakers):
        raise ValueError(f"`--dev-speaker` must be one of {', '.join(speakers)}, but is {arguments.dev_speaker}")
    limits = {"train": arguments.train_limit, "dev": arguments.dev_limit}
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        speaker, split = row["speaker"], row["split"]
        if arguments.dev_speaker is not None and split != "test":
            split = "dev" if speaker == arguments.dev_speaker else "train"
        counts[speaker, split] += 1
        limit = limits.get(split)
        if limit is None or counts[speaker, split] <= limit:
            yield {**row, "split": split}


def with_noise(sounds: list[np.ndarray], snr_db: float, sample_rate: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One noise of one color through all of them, so many decibels below their mean power."""
    sizes = [len(sound) for sound in sounds]
    noise = colored_noise(rng, sum(sizes) * RATE // sample_rate + 2)
    noise = resample(noise.astype(np.float32), RATE, sample_rate)[: sum(sizes)]
    power = np.mean(np.concatenate(sounds) ** 2)
    noise *= np.sqrt(power / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return [sound + piece for sound, piece in zip(sounds, np.split(noise, np.cumsum(sizes)[:-1]), strict=True)]


def join(sounds: list[np.ndarray], gaps: list[int]) -> np.ndarray:
    """Sounds with silences of so many samples before, between and after them."""
    pieces = [np.zeros(gaps[0], np.float32)]
    for sound, gap in zip(sounds, gaps[1:], strict=True):
        pieces += [sound, np.zeros(gap, np.float32)]
    return np.concatenate(pieces).clip(-1, 1)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    sys.exit(main())
