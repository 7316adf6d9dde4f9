#!/usr/bin/env python3
"""Connected digits spoken by espeak-ng in many English voices: more speakers than a small corpus has.

    ./synthesise_digits.py --output-dir synthetic --num-strings 6000

Writes ``<output-dir>/wav/<id>.wav`` (band of a telephone, as the Free Spoken Digit Dataset) and
``<output-dir>/table.tsv`` for ``transducer prepare table``. Needs espeak-ng: pip install 'stateless-transducer[demo]'.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import soundfile

from stateless_transducer.audio import resample
from stateless_transducer.data.corpora.espeak import Espeak, Voice

DIGITS = "zero one two three four five six seven eight nine".split()
LANGUAGES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029")
# voices that nobody has
STRANGE = {"AnxiousAndy", "Demonic", "Marco", "Mr serious", "UniRobot", "klatt", "klatt2", "whisper", "whisperf"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--num-strings", type=int, default=6000)
    parser.add_argument("--strings-per-speaker", type=int, default=30)
    parser.add_argument("--seed", type=int, default=20240101)
    parser.add_argument("--num-jobs", type=int, default=2)
    arguments = parser.parse_args()
    try:
        speakers = range(-(-arguments.num_strings // arguments.strings_per_speaker))
        tasks = [(arguments, number) for number in speakers]
        # a process a speaker: espeak-ng's noise depends on all that the process has said before
        with multiprocessing.get_context("spawn").Pool(arguments.num_jobs, maxtasksperchild=1) as pool:
            rows = [row for own in pool.imap(speak, tasks, chunksize=1) for row in own]
    except (OSError, ValueError) as err:
        print(f"synthesise_digits.py: error: {err}", file=sys.stderr)
        return 1
    with (arguments.output_dir / "table.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("id", "path", "speaker", "split", "text"))
        writer.writerows(rows)
    print(f"{arguments.output_dir}/table.tsv: {len(rows)} utterances")
    return 0


def speak(task: tuple[argparse.Namespace, int]) -> list[tuple[str, ...]]:
    """The strings of one speaker: a voice with its own language, pitch, rate, level and noise."""
    arguments, number = task
    random = np.random.default_rng((arguments.seed, number))
    espeak = Espeak(LANGUAGES[number % len(LANGUAGES)])
    variants = sorted(set(espeak.variants()) - STRANGE)
    voice = Voice(
        variants[number // len(LANGUAGES) % len(variants)], *map(int, random.integers([25, 30, 120], [76, 71, 221]))
    )
    folder = arguments.output_dir / "wav"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(arguments.strings_per_speaker):
        chosen = random.integers(0, 10, random.integers(1, 8))
        pieces = [pause(random)]
        for digit in chosen:
            raw = espeak.say(DIGITS[digit], voice).astype(np.float32) / 32768
            # silence at its ends belongs to the synthesiser, not to the word
            loud = np.flatnonzero(np.abs(raw) > 0.01)
            sound = raw[loud[0] : loud[-1] + 1] if len(loud) else raw
            pieces += [resample(resample(sound, espeak.sample_rate, 8000), 8000, 16000), pause(random)]
        samples = np.concatenate(pieces)
        level = 10 ** (random.uniform(-20, -2) / 20)
        noise = level * 10 ** (random.uniform(-55, -25) / 20)
        samples = samples * level / np.abs(samples).max()
        samples += resample(random.normal(0, noise, len(samples) // 2 + 1), 8000, 16000)[: len(samples)]
        id_ = f"synthetic-{number:04d}-{i:03d}"
        soundfile.write(folder / f"{id_}.wav", samples.clip(-1, 1), 16000, subtype="PCM_16")
        rows.append((id_, f"wav/{id_}.wav", f"synthetic{number}", "train", " ".join(DIGITS[digit] for digit in chosen)))
    return rows


def pause(random: np.random.Generator) -> np.ndarray:
    return np.zeros(round(random.uniform(0.08, 0.35) * 16000), np.float32)


if __name__ == "__main__":
    sys.exit(main())
