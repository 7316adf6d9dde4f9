"""Utterances -> checked lhotse manifests on disk: ``<prefix>_{recordings,supervisions}_<split>.jsonl.gz``."""

from __future__ import annotations

import math
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet, load_manifest

from stateless_transducer.audio import AudioError, audio_duration
from stateless_transducer.data.config import Limits
from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance, describe_problems, problem_rows
from stateless_transducer.files import check_file, replacing, write_text
from stateless_transducer.wording import counted

_ROUNDING_S = 0.1
"""Tolerance for segments that end after their file: tables have few digits."""


def problems_path(manifest_dir: Path, prefix: str) -> Path:
    """Return the path of the table of skipped utterances and the reasons."""
    return manifest_dir / f"{prefix}_problems.tsv"


@dataclass(frozen=True)
class CorpusSummary:
    """Sizes of the splits of a corpus, and its problems."""

    num_utterances: dict[str, int]
    hours: dict[str, float]
    num_speakers: dict[str, int]
    problems: tuple[Problem, ...]

    def lines(self) -> str:
        """Return sizes and problems as text for the screen."""
        rows = [
            f"{split:6s} {counted(count, 'utterance'):>18s}  {self.hours[split]:8.2f} h  "
            f"{counted(self.num_speakers[split], 'speaker'):>13s}"
            for split, count in self.num_utterances.items()
        ]
        if self.problems:
            rows += [f"left out: {len(self.problems)}", describe_problems(self.problems)]
        return "\n".join(rows)


def manifest_path(manifest_dir: Path, prefix: str, kind: str, split: str) -> Path:
    """Return the path of a manifest, named as in icefall."""
    return manifest_dir / f"{prefix}_{kind}_{split}.jsonl.gz"


def noise_cuts_path(fbank_dir: Path) -> Path:
    """Return the path of the cuts of noise for training, which has no splits."""
    return fbank_dir / "musan_cuts.jsonl.gz"


def read_texts(manifest_dir: Path, prefix: str, split: str) -> list[str]:
    """Return the transcripts of a split, in the order of its manifest."""
    return [segment.text or "" for segment in read_manifest(manifest_path(manifest_dir, prefix, "supervisions", split))]


def read_durations(manifest_dir: Path, prefix: str, split: str) -> list[float]:
    """Return the durations in seconds of a split's utterances at speed 1, in the order of its manifest."""
    return [segment.duration for segment in read_manifest(manifest_path(manifest_dir, prefix, "supervisions", split))]


def read_manifests(manifest_dir: Path, prefix: str, split: str) -> list[tuple[Recording, SupervisionSegment]]:
    """Return recordings with their supervisions, in the order of the manifests.

    Raises:
        ValueError: the manifests are missing.
    """
    paths = {kind: manifest_path(manifest_dir, prefix, kind, split) for kind in ("recordings", "supervisions")}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(f"{path} is missing; make the manifests first.")
    recordings = {recording.id: recording for recording in read_manifest(paths["recordings"])}
    return [(recordings[segment.recording_id], segment) for segment in read_manifest(paths["supervisions"])]


def read_manifest(path: Path) -> Any:
    """Read one of lhotse's manifests.

    Raises:
        ValueError: the file is missing, damaged or not a manifest.
    """
    check_file(path)
    try:
        return load_manifest(path)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AssertionError) as err:
        raise ValueError(
            f"{path} cannot be read as a manifest ({err}). Copy it again, or remove it and prepare it again."
        ) from err


def write_manifests(
    utterances: Sequence[Utterance],
    problems: Sequence[Problem],
    *,
    manifest_dir: Path,
    prefix: str,
    limits: Limits,
    strict: bool,
    num_jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusSummary:
    """Check sound and text of all utterances; write manifests of the usable ones and a table of problems.

    Texts are written in Unicode's form NFC, where an accent is part of its letter.

    Raises:
        ValueError: ``strict`` is set and there is a problem, or no utterance is usable.
    """
    utterances = [replace(utterance, text=unicodedata.normalize("NFC", utterance.text)) for utterance in utterances]
    problems = list(problems)
    checked: dict[str, list[_Checked]] = {}
    # a file with many utterances is read once
    duration_of = lru_cache(maxsize=None)(audio_duration)
    with ThreadPoolExecutor(num_jobs) as pool:
        results = pool.map(lambda utterance: _check(utterance, limits, duration_of), utterances)
        for done, result in enumerate(results, 1):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                checked.setdefault(result.utterance.split, []).append(result)
            if progress is not None:
                progress(done, len(utterances))
    write_text(problems_path(manifest_dir, prefix), "kind\tid\tdetail\n" + problem_rows(problems))
    if problems and strict:
        raise ValueError(f"`strict`: {counted(len(problems), 'problem')}:\n{describe_problems(problems)}")
    if not checked:
        raise ValueError(f"No utterance is usable:\n{describe_problems(problems)}")
    splits = [split for split in SPLITS if split in checked] + sorted(set(checked) - set(SPLITS))
    for split in splits:
        _write_split(manifest_dir, prefix, split, checked[split])
    return CorpusSummary(
        num_utterances={split: len(checked[split]) for split in splits},
        hours={split: sum(row.duration for row in checked[split]) / 3600 for split in splits},
        num_speakers={split: len({row.utterance.speaker for row in checked[split]}) for split in splits},
        problems=tuple(problems),
    )


class _Checked(NamedTuple):
    """Usable utterance."""

    utterance: Utterance
    duration: float
    """Seconds of the utterance."""
    file_duration: float
    """Seconds of the file that holds it."""
    sample_rate: int


def _check(
    utterance: Utterance, limits: Limits, duration_of: Callable[[Path], tuple[float, int]]
) -> Problem | _Checked:
    """Return the durations of an usable utterance, or its problem."""
    if not utterance.text.strip():
        return Problem("empty text", utterance.id, "")
    if not utterance.path.is_file():
        return Problem("missing audio", utterance.id, str(utterance.path))
    try:
        file_duration, rate = duration_of(utterance.path)
    except AudioError as err:
        return Problem("unreadable audio", utterance.id, str(err))
    remaining = file_duration - utterance.start_s
    if remaining <= 0 or _ROUNDING_S < utterance.duration_s - remaining < math.inf:
        detail = f"{utterance.start_s:g} s and {utterance.duration_s:g} s of {utterance.path}, {file_duration:.2f} s"
        return Problem("beyond the audio", utterance.id, detail)
    duration = min(utterance.duration_s, remaining)
    if duration < limits.min_utterance_s:
        return Problem("too short", utterance.id, f"{duration:.2f} s < {limits.min_utterance_s:g} s")
    if duration > limits.max_utterance_s:
        return Problem("too long", utterance.id, f"{duration:.2f} s > {limits.max_utterance_s:g} s")
    rate_of_speech = len(utterance.text.replace(" ", "")) / duration
    if rate_of_speech > limits.max_chars_per_second:
        detail = f"{rate_of_speech:.0f} characters a second > {limits.max_chars_per_second:g}"
        return Problem("too much text", utterance.id, detail)
    return _Checked(utterance, duration, file_duration, rate)


def _write_split(manifest_dir: Path, prefix: str, split: str, rows: list[_Checked]) -> None:
    # one recording per utterance, even if a file has several
    sounds = [(row.utterance.id, row.utterance.path, row.file_duration, row.sample_rate) for row in rows]
    write_recordings(manifest_path(manifest_dir, prefix, "recordings", split), sounds)
    supervisions = SupervisionSet.from_segments(
        SupervisionSegment(
            id=row.utterance.id,
            recording_id=row.utterance.id,
            start=row.utterance.start_s,
            duration=row.duration,
            channel=0,
            text=row.utterance.text,
            speaker=row.utterance.speaker,
        )
        for row in rows
    )
    with replacing(manifest_path(manifest_dir, prefix, "supervisions", split)) as temporary:
        supervisions.to_file(temporary)


def write_recordings(path: Path, rows: Iterable[tuple[str, Path, float, int]]) -> None:
    """Write a manifest of sound files, given as rows of id, file, seconds and sample rate."""
    recordings = RecordingSet.from_recordings(
        Recording(
            id=id_,
            sources=[AudioSource(type="file", channels=[0], source=str(audio.resolve()))],
            sampling_rate=rate,
            num_samples=round(duration * rate),
            duration=duration,
        )
        for id_, audio, duration, rate in rows
    )
    with replacing(path) as temporary:
        recordings.to_file(temporary)
