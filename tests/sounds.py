"""Sound made on the spot: in many encodings, and in the layouts of corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

SOUNDFILE_ENCODINGS: dict[str, dict[str, str]] = {
    "wav": {},
    "flac": {},
    "mp3": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "aiff": {},
    "au": {},
    "caf": {},
    "w64": {},
    "rf64": {"format": "RF64"},
    "sph": {"format": "NIST"},
}
"""Suffix -> options of `soundfile.write`."""

AV_ENCODINGS: dict[str, tuple[str, dict[str, str]]] = {
    "m4a": ("aac", {}),
    "mov": ("pcm_s16le", {}),
    "index-first.mp4": ("aac", {"movflags": "faststart"}),
    "fragmented.mp4": ("aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    "mkv": ("aac", {}),
    "webm": ("libopus", {}),
    "avi": ("pcm_s16le", {}),
    "mp3.avi": ("libmp3lame", {}),
    "flv": ("aac", {}),
    "aac": ("aac", {}),
    "ac3": ("ac3", {}),
    "amr": ("libopencore_amrnb", {}),
    "mpg": ("mp2", {}),
    "ts": ("aac", {}),
    "live.webm": ("libopus", {"live": "1"}),
    "no-xing.mp3": ("libmp3lame", {"write_xing": "0"}),
}
"""End of a file's name -> codec and options of the container."""


def write_encoding(
    folder: Path, encoding: str, seconds: float, *, silence_s: float = 0.0, has_video: bool = False
) -> Path:
    """Write ``a.<encoding>``: silence, then a tone with a little noise, and with PyAV, video if asked for."""
    path = folder / f"a.{encoding}"
    rate = 8000 if encoding == "amr" else 48000 if encoding in AV_ENCODINGS else 16000
    noise = 0.05 * np.random.default_rng(7).standard_normal(round(seconds * rate))
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(len(noise)) / rate) + noise).astype(np.float32)
    samples = np.concatenate([np.zeros(round(silence_s * rate), np.float32), samples])
    if encoding in SOUNDFILE_ENCODINGS:
        soundfile.write(path, samples, rate, **SOUNDFILE_ENCODINGS[encoding])
        return path
    codec, options = AV_ENCODINGS[encoding]
    if codec not in av.codecs_available:
        # the wheels of PyAV 19 have none for AMR
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
        video = container.add_stream("mpeg4", rate=25) if has_video else None
        if video is not None:
            video.width = video.height = 64
        # a picture before each 40 ms of sound
        for start in range(0, len(samples), rate // 25):
            if video is not None:
                container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + rate // 25], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            for resampled in resampler.resample(frame):
                container.mux(stream.encode(resampled))
        for encoder in (stream, video):
            if encoder is not None:
                container.mux(encoder.encode(None))
    return path


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
