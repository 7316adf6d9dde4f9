"""Sound made on the spot, in the layouts of corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

MUSAN_SECONDS = {
    "music/jamendo/music-jamendo-0000": 26.0,
    "music/jamendo/music-jamendo-0001": 5.0,
    "speech/us-gov/speech-us-gov-0000": 15.5,
    "noise/free-sound/noise-free-sound-0000": 6.0,
    "noise/free-sound/noise-free-sound-0001": 3.0,
}
"""Sound file of `write_musan`, without its ending -> seconds."""


def write_musan(corpus_dir: Path) -> Path:
    """Noise in MUSAN's layout; windows of 10 s longer than 5 s: three of the music, two of the speech, one of noise."""
    random = np.random.default_rng(17)
    for number, (name, seconds) in enumerate(MUSAN_SECONDS.items(), 1):
        path = corpus_dir / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.normal(0, 0.01 * number, round(seconds * 16000)).clip(-1, 1), 16000)
    return corpus_dir


AISHELL_TEXTS = {
    ("train", "S0002"): ("今天 天气 很 好", "明天 下雨"),
    ("dev", "S0724"): ("天气 不 好",),
    ("test", "S0764"): ("后天 很 好",),
}
"""What each speaker of `write_aishell` says, one file a sentence."""


def write_aishell(corpus_dir: Path, texts_of: Mapping[tuple[str, str], Sequence[str]] = AISHELL_TEXTS) -> Path:
    """Noise with transcripts in AISHELL's layout: a second and a bit each.

    Args:
        corpus_dir: made if need be.
        texts_of: what each speaker of each split says.
    """
    random = np.random.default_rng(33)
    lines = []
    for (split, speaker), texts in texts_of.items():
        folder = corpus_dir / "data_aishell" / "wav" / split / speaker
        folder.mkdir(parents=True)
        for number, text in enumerate(texts):
            id_ = f"BAC009{speaker}W{121 + number:04d}"
            soundfile.write(folder / f"{id_}.wav", random.normal(0, 0.1, 17000 + 1001 * number).clip(-1, 1), 16000)
            lines.append(f"{id_} {text}\n")
    transcript = corpus_dir / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.parent.mkdir()
    transcript.write_text("".join(lines), encoding="utf-8")
    return corpus_dir
