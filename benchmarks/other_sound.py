#!/usr/bin/env python3
"""Error rates on sound unlike the training data: softer, with silence around utterances, many in a row.

    python benchmarks/other_sound.py model.pt --manifest-dir demo/data/fbank [--prefix aishell] [--test-set test]
    python benchmarks/other_sound.py model.pt ... --gap 0.3 --minutes 1 --max-segment-s 20 6

Errors in percent (greedy search; characters, or words where the tokens are words or pieces of them) of a prepared test
set: of the utterances alone; softer or louder; with silence before and behind, digital or a hiss 50 dB below the
speech; and of sounds of a minute made of utterances with hiss between them, cut by loudness into pieces of at most
so many seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from about import about, print_about

from stateless_transducer import Recognizer
from stateless_transducer.data.batches import load_index
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.text.scoring import ScoredUtterance, score, units
from stateless_transducer.text.tokens import tidied

HISS_DB = -50.0


def hiss(wave: np.ndarray, seconds: float, random: np.random.Generator, rate: int) -> np.ndarray:
    """Return noise at a level below that of a sound."""
    level = np.sqrt(np.mean(wave**2)) * 10 ** (HISS_DB / 20)
    return (level * random.standard_normal(int(seconds * rate))).astype(np.float32)


def error_rate(recognizer: Recognizer, waves: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[float, float]:
    """Return the error rate in percent and the mean seconds of a segment."""
    unit = "char" if getattr(recognizer.token_table, "unit", "bpe") == "char" else "word"
    found = recognizer.transcribe(waves)
    pieces = [segment.end - segment.start for transcript in found for segment in transcript.segments]
    scored = (
        ScoredUtterance(str(n), units(tidied(text), unit), units(tidied(transcript.text), unit))
        for n, (text, transcript) in enumerate(zip(texts, found, strict=True))
    )
    return score(scored).error_rate, float(np.mean(pieces))


def in_a_row(
    waves: Sequence[np.ndarray], texts: Sequence[str], gap: float, minutes: float, rate: int
) -> tuple[list[np.ndarray], list[str]]:
    """Join sounds to recordings of a given length; return them with their texts."""
    random, rows, said, parts, words = np.random.default_rng(0), [], [], [], []
    for wave, text in zip(waves, texts, strict=True):
        parts += [wave, hiss(wave, gap, random, rate)]
        words.append(text)
        if sum(map(len, parts)) >= 60 * minutes * rate:
            rows.append(np.concatenate(parts))
            said.append(" ".join(words))
            parts, words = [], []
    if not rows:
        raise SystemExit("The test set is shorter than `--minutes`.")
    return rows, said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--manifest-dir", type=Path, required=True)
    parser.add_argument("--prefix", default="aishell")
    parser.add_argument("--test-set", default="test")
    parser.add_argument("--gain-db", type=float, nargs="+", default=[-30.0, -20.0, -10.0, 6.0])
    parser.add_argument("--silence", type=float, nargs="+", default=[0.1, 0.5], help="seconds, before and behind")
    parser.add_argument("--gap", type=float, nargs="+", default=[0.3, 1.0], help="seconds, in a row")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--max-segment-s", type=float, nargs="+", default=[20.0, 6.0])
    arguments = parser.parse_args()
    print_about(about())

    details = DetailConfig(align=False)
    recognizer = Recognizer.from_pretrained(arguments.model, details=details)
    rate, random = recognizer.sample_rate, np.random.default_rng(0)
    cuts = list(load_index(arguments.manifest_dir, arguments.prefix, arguments.test_set))
    waves = [cut.resample(rate).load_audio().mean(0).astype(np.float32) for cut in cuts]
    texts = [cut.supervisions[0].text or "" for cut in cuts]

    print("| sounds | pieces, mean s | errors % |\n|---|---|---|")

    def row(name: str, recognizer: Recognizer, waves: Sequence[np.ndarray], texts: Sequence[str]) -> None:
        rate_, seconds = error_rate(recognizer, waves, texts)
        print(f"| {name} | {seconds:.1f} | {rate_:.2f} |", flush=True)

    row("alone", recognizer, waves, texts)
    for gain_db in arguments.gain_db:
        gain = np.float32(10 ** (gain_db / 20))
        row(f"{gain_db:+g} dB", recognizer, [gain * wave for wave in waves], texts)
    for seconds in arguments.silence:
        silence = np.zeros(int(seconds * rate), np.float32)
        row(
            f"{seconds:g} s of digital silence",
            recognizer,
            [np.concatenate([silence, w, silence]) for w in waves],
            texts,
        )
        hissing = [np.concatenate([hiss(w, seconds, random, rate), w, hiss(w, seconds, random, rate)]) for w in waves]
        row(f"{seconds:g} s of hiss", recognizer, hissing, texts)
    for gap in arguments.gap:
        rows, said = in_a_row(waves, texts, gap, arguments.minutes, rate)
        for most in arguments.max_segment_s:
            cutting = Recognizer.from_pretrained(
                arguments.model, segments=SegmentConfig(vad="energy", max_segment_s=most), details=details
            )
            row(f"in a row, {gap:g} s between, `--max-segment-s {most:g}`", cutting, rows, said)


if __name__ == "__main__":
    main()
