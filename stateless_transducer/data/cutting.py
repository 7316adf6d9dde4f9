"""Recordings -> cuts and their samples, and the way back from a cut to its samples and features.

Letters: S samples, T_in feature frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from stateless_transducer.audio import read_audio, resample, stream_audio
from stateless_transducer.features import FbankConfig, fbank

Source = tuple[Recording, SupervisionSegment | None]
"""A recording and what is said in it."""


_SAME_S = 1e-3
"""What is shorter than the file by less than this is the whole file."""

_PART = "part"
"""Name, in a cut's custom fields, of where an utterance is in its file: start and duration in seconds, at speed 1."""


def read_source(source: Source, sample_rate: int) -> np.ndarray:
    """Samples (S,) of a recording, or of the part of it in which something is said.

    Raises:
        AudioError: the sound file cannot be read.
    """
    recording, supervision = source
    return _read(sound_file(recording), sample_rate, _part_of(recording, supervision))


def _part_of(recording: Recording, supervision: SupervisionSegment | None) -> tuple[float, float] | None:
    """Start and duration in seconds; None: the whole."""
    if supervision is None or (supervision.start == 0 and supervision.duration > recording.duration - _SAME_S):
        return None
    return supervision.start, supervision.duration


def _read(path: Path, sample_rate: int, part: Sequence[float] | None) -> np.ndarray:
    if part is None:
        return read_audio(path, sample_rate)
    start_s, duration_s = part
    return np.concatenate(list(stream_audio(path, sample_rate, start_s=start_s, duration_s=duration_s)))


class Cutter(Protocol):
    """Makes cuts of a recording; a frozen dataclass, since it is sent to processes and its repr names its result."""

    def __call__(self, source: Source, samples: np.ndarray, sample_rate: int) -> Iterator[tuple[MonoCut, np.ndarray]]:
        """Cuts without features, with the samples (S,) of each; given is what `read_source` reads."""
        ...


@dataclass(frozen=True)
class WholeAtSpeeds:
    """All that was read, once at each speed: resampled, so at 0.9 it is 1/0.9 times as long, and lower."""

    speeds: tuple[float, ...]

    def __call__(self, source: Source, samples: np.ndarray, sample_rate: int) -> Iterator[tuple[MonoCut, np.ndarray]]:
        """Cuts ``id``, ``id_sp0.9``, ..."""
        recording, supervision = source
        assert supervision is not None, recording.id
        at_rate = recording if recording.sampling_rate == sample_rate else recording.resample(sample_rate)
        part = _part_of(recording, supervision)
        for speed in self.speeds:
            perturbed = at_speed(samples, speed, sample_rate)
            id_ = recording.id + ("" if speed == 1.0 else f"_sp{speed:g}")
            duration = len(perturbed) / sample_rate
            said = SupervisionSegment(
                id=id_,
                recording_id=id_,
                start=0.0,
                duration=duration,
                channel=0,
                text=supervision.text,
                speaker=supervision.speaker,
            )
            cut = MonoCut(
                id=id_,
                start=0.0 if part is None else part[0] / speed,
                duration=duration,
                channel=0,
                supervisions=[said],
                recording=at_rate if speed == 1.0 else at_rate.perturb_speed(speed),
                custom=None if part is None else {_PART: list(part)},
            )
            yield cut, perturbed


@dataclass(frozen=True)
class Windows:
    """One window after another; the rest at the end counts if it is longer than ``longer_than_s``."""

    window_s: float
    longer_than_s: float

    def __call__(self, source: Source, samples: np.ndarray, sample_rate: int) -> Iterator[tuple[MonoCut, np.ndarray]]:
        """Cuts ``id-0``, ``id-1``, ..."""
        recording, _ = source
        at_rate = recording if recording.sampling_rate == sample_rate else recording.resample(sample_rate)
        step = round(self.window_s * sample_rate)
        for number, start in enumerate(range(0, len(samples), step)):
            window = samples[start : start + step]
            duration = len(window) / sample_rate
            if duration > self.longer_than_s:
                cut = MonoCut(
                    id=f"{recording.id}-{number}",
                    start=start / sample_rate,
                    duration=duration,
                    channel=0,
                    recording=at_rate,
                )
                yield cut, window


def features_from_sound(cut: Cut) -> np.ndarray:
    """Features (T_in, F) of a cut, from its sound; the stored ones are these, rounded.

    Raises:
        AudioError: the sound file cannot be read.
    """
    config = FbankConfig()
    return fbank(samples_of(cut, config.sample_rate), config)


def samples_of(cut: Cut, sample_rate: int) -> np.ndarray:
    """The samples (S,) that a cutter gave with the cut, read from its recording again.

    Raises:
        AudioError: the sound file cannot be read.
    """
    assert isinstance(cut, MonoCut) and cut.recording is not None, cut.id
    part = (cut.custom or {}).get(_PART)
    samples = _read(sound_file(cut.recording), sample_rate, part)
    samples = at_speed(samples, _speed(cut.recording.transforms or ()), sample_rate)
    if part is not None:
        return samples
    start = round(cut.start * sample_rate)
    return samples[start : start + round(cut.duration * sample_rate)]


def sound_file(recording: Recording) -> Path:
    """Where its sound is."""
    return Path(str(recording.sources[0].source))


def at_speed(samples: np.ndarray, speed: float, sample_rate: int) -> np.ndarray:
    """(S,) -> (S / speed,)."""
    return resample(samples, sample_rate * speed, sample_rate)


def _speed(transforms: Sequence) -> float:
    """The factor in lhotse's list of what is done to a recording; read from a manifest, its items are dicts."""
    items = [each if isinstance(each, dict) else each.to_dict() for each in transforms]
    return next((item["kwargs"]["factor"] for item in items if item["name"] == "Speed"), 1.0)
