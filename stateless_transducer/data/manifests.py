"""Utterances -> checked lhotse manifests on disk: ``<prefix>_{recordings,supervisions}_<split>.jsonl.gz``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet, load_manifest

from stateless_transducer.audio import AudioError, audio_duration
from stateless_transducer.data.config import Limits
from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance, describe_problems, problem_rows
from stateless_transducer.files import replacing, write_text


def problems_path(manifest_dir: Path, prefix: str) -> Path:
    """The table of all that is left out, and why."""
    return manifest_dir / f"{prefix}_problems.tsv"


@dataclass(frozen=True)
class CorpusSummary:
    """What was found in a corpus."""

    num_utterances: dict[str, int]
    hours: dict[str, float]
    num_speakers: dict[str, int]
    problems: tuple[Problem, ...]

    def lines(self) -> str:
        """The numbers, and what is wrong, for the screen."""
        rows = [
            f"{split:6s} {count:7d} utterances  {self.hours[split]:8.2f} h  {self.num_speakers[split]:4d} speakers"
            for split, count in self.num_utterances.items()
        ]
        if self.problems:
            rows += [f"left out: {len(self.problems)}", describe_problems(self.problems)]
        return "\n".join(rows)


def manifest_path(manifest_dir: Path, prefix: str, kind: str, split: str) -> Path:
    """The one place that knows how manifests are named, as icefall's."""
    return manifest_dir / f"{prefix}_{kind}_{split}.jsonl.gz"


def noise_cuts_path(fbank_dir: Path) -> Path:
    """The same for the noise that training mixes in, which has no splits."""
    return fbank_dir / "musan_cuts.jsonl.gz"


def read_texts(manifest_dir: Path, prefix: str, split: str) -> list[str]:
    """The transcripts of a split, in the order of its manifest."""
    return [segment.text or "" for segment in load_manifest(manifest_path(manifest_dir, prefix, "supervisions", split))]


def read_manifests(manifest_dir: Path, prefix: str, split: str) -> list[tuple[Recording, SupervisionSegment]]:
    """Recordings, and what is said in them, in the order of the manifests.

    Raises:
        ValueError: the manifests are missing.
    """
    paths = {kind: manifest_path(manifest_dir, prefix, kind, split) for kind in ("recordings", "supervisions")}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(f"{path} is missing; make the manifests first.")
    recordings = {recording.id: recording for recording in load_manifest(paths["recordings"])}
    return [(recordings[each.recording_id], each) for each in load_manifest(paths["supervisions"])]


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
    """Check every utterance's sound and text, write the manifests of the good ones and a table of the problems.

    Raises:
        ValueError: ``strict`` and there is a problem; or nothing is left.
    """
    found = list(problems)
    checked: dict[str, list[tuple[Utterance, float, int]]] = {}
    with ThreadPoolExecutor(num_jobs) as pool:
        results = pool.map(lambda utterance: _check(utterance, limits), utterances)
        for done, (utterance, result) in enumerate(zip(utterances, results, strict=True), 1):
            if isinstance(result, Problem):
                found.append(result)
            else:
                checked.setdefault(utterance.split, []).append((utterance, *result))
            if progress is not None:
                progress(done, len(utterances))
    write_text(problems_path(manifest_dir, prefix), "kind\tid\tdetail\n" + problem_rows(found))
    if found and strict:
        raise ValueError(f"`--strict`: {len(found)} problems:\n{describe_problems(found)}")
    if not checked:
        raise ValueError(f"No utterance is usable:\n{describe_problems(found)}")
    splits = [split for split in SPLITS if split in checked] + sorted(set(checked) - set(SPLITS))
    for split in splits:
        _write_split(manifest_dir, prefix, split, checked[split])
    return CorpusSummary(
        num_utterances={split: len(checked[split]) for split in splits},
        hours={split: sum(row[1] for row in checked[split]) / 3600 for split in splits},
        num_speakers={split: len({row[0].speaker for row in checked[split]}) for split in splits},
        problems=tuple(found),
    )


def _check(utterance: Utterance, limits: Limits) -> Problem | tuple[float, int]:
    """Seconds and sample rate, or what is wrong."""
    if not utterance.text.strip():
        return Problem("empty text", utterance.id, "")
    if not utterance.path.is_file():
        return Problem("missing audio", utterance.id, str(utterance.path))
    try:
        duration, rate = audio_duration(utterance.path)
    except AudioError as err:
        return Problem("unreadable audio", utterance.id, str(err))
    if duration < limits.min_utterance_s:
        return Problem("too short", utterance.id, f"{duration:.2f} s < {limits.min_utterance_s:g} s")
    if duration > limits.max_utterance_s:
        return Problem("too long", utterance.id, f"{duration:.2f} s > {limits.max_utterance_s:g} s")
    rate_of_speech = len(utterance.text.replace(" ", "")) / duration
    if rate_of_speech > limits.max_chars_per_second:
        detail = f"{rate_of_speech:.0f} characters a second > {limits.max_chars_per_second:g}"
        return Problem("too much text", utterance.id, detail)
    return duration, rate


def _write_split(manifest_dir: Path, prefix: str, split: str, rows: list[tuple[Utterance, float, int]]) -> None:
    sounds = [(utterance.id, utterance.path, duration, rate) for utterance, duration, rate in rows]
    write_recordings(manifest_path(manifest_dir, prefix, "recordings", split), sounds)
    supervisions = SupervisionSet.from_segments(
        SupervisionSegment(
            id=utterance.id,
            recording_id=utterance.id,
            start=0.0,
            duration=duration,
            channel=0,
            text=utterance.text,
            speaker=utterance.speaker,
        )
        for utterance, duration, _ in rows
    )
    with replacing(manifest_path(manifest_dir, prefix, "supervisions", split)) as temporary:
        supervisions.to_file(temporary)


def write_recordings(path: Path, rows: Iterable[tuple[str, Path, float, int]]) -> None:
    """Write the manifest of sound files: id, file, seconds, sample rate of each."""
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
