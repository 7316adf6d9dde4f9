"""Cuts of recordings with their samples, and samples and features of cuts.

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
"""A recording, and a supervision with its transcript or None."""


_SAME_S = 1e-3
"""Supervisions shorter than their file by less than this are the whole file."""

_PART = "part"
"""Custom field of a cut with the place of the utterance in its file: start and duration in seconds, at speed 1."""


def read_source(source: Source, sample_rate: int) -> np.ndarray:
    """Read the samples (S,) of a recording, or of the part that the supervision covers.

    Raises:
        AudioError: the sound file cannot be read.
    """
    recording, supervision = source
    return _read(sound_file(recording), sample_rate, _part_of(recording, supervision))


def _part_of(recording: Recording, supervision: SupervisionSegment | None) -> tuple[float, float] | None:
    """Return start and duration in seconds, or None for the whole recording."""
    if supervision is None or (supervision.start == 0 and supervision.duration > recording.duration - _SAME_S):
        return None
    return supervision.start, supervision.duration


def _read(path: Path, sample_rate: int, part: Sequence[float] | None) -> np.ndarray:
    if part is None:
        return read_audio(path, sample_rate)
    start_s, duration_s = part
    return np.concatenate(list(stream_audio(path, sample_rate, start_s=start_s, duration_s=duration_s)))


class Cutter(Protocol):
    """Makes cuts of a recording.

    Implementations are frozen dataclasses: they are sent to processes, and their repr is part of the result's name.
    """

    def __call__(self, source: Source, samples: np.ndarray, sample_rate: int) -> Iterator[tuple[MonoCut, np.ndarray]]:
        """Yield cuts without features, with the samples (S,) of each.

        Args:
            source: recording and supervision.
            samples: result of `read_source`.
            sample_rate: rate of the samples.
        """
        ...


@dataclass(frozen=True)
class WholeAtSpeeds:
    """Cuts the whole source, once per speed, by resampling: speed 0.9 makes it longer by 1/0.9 and lower in pitch."""

    speeds: tuple[float, ...]

    def __call__(self, source: Source, samples: np.ndarray, sample_rate: int) -> Iterator[tuple[MonoCut, np.ndarray]]:
        """Yield cuts ``id``, ``id_sp0.9``, ..."""
        recording, supervision = source
        assert supervision is not None, recording.id
        at_rate = recording if recording.sampling_rate == sample_rate else recording.resample(sample_rate)
        part = _part_of(recording, supervision)
        for speed in self.speeds:
            perturbed = at_speed(samples, speed, sample_rate)
            id_ = recording.id + ("" if speed == 1.0 else f"_sp{speed:g}")
            duration = len(perturbed) / sample_rate
            segment = SupervisionSegment(
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
                supervisions=[segment],
                recording=at_rate if speed == 1.0 else at_rate.perturb_speed(speed),
                custom=None if part is None else {_PART: list(part)},
            )
            yield cut, perturbed


@dataclass(frozen=True)
class Windows:
    """Cuts consecutive windows; the last, shorter one is dropped unless it is longer than ``longer_than_s``."""

    window_s: float
    longer_than_s: float

    def __call__(self, source: Source, samples: np.ndarray, sample_rate: int) -> Iterator[tuple[MonoCut, np.ndarray]]:
        """Yield cuts ``id-0``, ``id-1``, ..."""
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
    """Compute features (T_in, F) of a cut from its sound; stored features are these, rounded.

    Raises:
        AudioError: the sound file cannot be read.
    """
    config = FbankConfig()
    return fbank(samples_of(cut, config.sample_rate), config)


def samples_of(cut: Cut, sample_rate: int) -> np.ndarray:
    """Read the samples (S,) of a cut from its recording, as its cutter returned them.

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
    """Return the path of a recording's sound file."""
    return Path(str(recording.sources[0].source))


def at_speed(samples: np.ndarray, speed: float, sample_rate: int) -> np.ndarray:
    """Resample (S,) -> (S / speed,)."""
    return resample(samples, sample_rate * speed, sample_rate)


def _speed(transforms: Sequence) -> float:
    """Return the speed in lhotse's list of transforms; transforms read from a manifest are dicts."""
    items = [transform if isinstance(transform, dict) else transform.to_dict() for transform in transforms]
    return next((item["kwargs"]["factor"] for item in items if item["name"] == "Speed"), 1.0)
