"""Recordings -> stored features and cuts: ``<prefix>_cuts_<split>.jsonl.gz`` beside ``<prefix>_feats_<split>/``.

The work is divided into parts, each an archive with the list of its cuts; existing parts are not computed again.
Features are stored in steps of 1/256, finer than float16 at their size.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lhotse import LilcomChunkyWriter, MonoCut
from lhotse.features import Features

from stateless_transducer.audio import AudioError
from stateless_transducer.data.corpora.utterance import Problem, describe_problems
from stateless_transducer.data.cutting import Cutter, Source, read_source, sound_file
from stateless_transducer.data.executor import Executor
from stateless_transducer.data.stored_features import with_checksum
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.files import replacing, write_text

_STORED_STEP = -8  # features are multiples of 2**-8
_SILENT = 2.0**-15
"""Peak of a recording without sound, one step of 16 bits: a text with it teaches a model to invent words."""


@dataclass(frozen=True)
class _Part:
    """Work of one process at a time; its name is a hash of everything that the result depends on."""

    sources: tuple[Source, ...]
    cutter: Cutter
    config: FbankConfig
    path: Path

    @property
    def cuts(self) -> Path:
        """List of the cuts, written last."""
        return self.path.with_suffix(".jsonl.gz")

    @property
    def problems(self) -> Path:
        return self.path.with_suffix(".problems.json")

    @property
    def archive(self) -> Path:
        return self.path.with_suffix(".lca")


def store_features(
    sources: Sequence[Source],
    cutter: Cutter,
    *,
    cuts_path: Path,
    feats_dir: Path,
    config: FbankConfig,
    sources_per_part: int,
    execute: Executor,
    progress: Callable[[int, int], None],
) -> list[Problem]:
    """Write features and cuts; the file of all cuts is written last and marks the result as complete.

    Args:
        sources: recordings with their supervisions.
        cutter: makes the cuts.
        cuts_path: file for the list of all cuts.
        feats_dir: folder for the features.
        config: configuration of the front end.
        sources_per_part: number of recordings in a part.
        execute: computes the parts.
        progress: called with (recordings done, recordings in total).

    Returns:
        Recordings that could not be read, or that have a transcript but no sound; they are skipped.

    Raises:
        ValueError: no recording is left.
    """
    feats_dir.mkdir(parents=True, exist_ok=True)
    parts = [
        _part(feats_dir, number, tuple(sources[start : start + sources_per_part]), cutter, config)
        for number, start in enumerate(range(0, len(sources), sources_per_part))
    ]
    missing = [part for part in parts if not part.cuts.exists()]
    done = len(sources) - sum(len(part.sources) for part in missing)
    for part, _ in zip(missing, execute(_make, missing), strict=True):
        done += len(part.sources)
        progress(done, len(sources))
    problems = [Problem(**row) for part in parts for row in json.loads(part.problems.read_text(encoding="utf-8"))]
    if len(problems) == len(sources):
        raise ValueError(f"No recording for {cuts_path.name} can be used:\n{describe_problems(problems)}")
    with replacing(cuts_path) as temporary, temporary.open("wb") as whole:
        for part in parts:
            with part.cuts.open("rb") as file:
                shutil.copyfileobj(file, whole)
    _tidy(feats_dir, parts)
    return problems


def _part(folder: Path, number: int, sources: tuple[Source, ...], cutter: Cutter, config: FbankConfig) -> _Part:
    fingerprint = hashlib.sha256(repr((sources, cutter, config)).encode()).hexdigest()[:8]
    # absolute: the cuts must be usable from anywhere
    return _Part(sources, cutter, config, (folder / f"feats-{number}-{fingerprint}").resolve())


def _make(part: _Part) -> None:
    """Write the features of a part's cuts into its archive, then the list of the cuts."""
    cuts, problems = [], []
    with replacing(part.archive) as temporary, LilcomChunkyWriter(temporary, tick_power=_STORED_STEP) as writer:
        for source in part.sources:
            recording, supervision = source
            try:
                samples = read_source(source, part.config.sample_rate)
            except AudioError as err:
                problems.append(Problem("unreadable audio", recording.id, str(err)))
                continue
            if supervision is not None and np.abs(samples).max() <= _SILENT:
                problems.append(Problem("silent audio", recording.id, f"no sound in {sound_file(recording)}"))
                continue
            for cut, wave in part.cutter(source, samples, part.config.sample_rate):
                cuts.append(_with_features(cut, fbank(wave, part.config), part, writer))
    write_text(part.problems, json.dumps([asdict(problem) for problem in problems]))
    with replacing(part.cuts) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(with_checksum(cut).to_dict(), ensure_ascii=False) + "\n" for cut in cuts)


def _with_features(cut: MonoCut, frames: np.ndarray, part: _Part, writer: LilcomChunkyWriter) -> MonoCut:
    """Store features (T_in, F), and add their place to the cut."""
    config = part.config
    cut.features = Features(
        type="kaldi-native-fbank",
        num_frames=frames.shape[0],
        num_features=frames.shape[1],
        frame_shift=config.frame_shift_ms / 1000,
        sampling_rate=config.sample_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=writer.name,
        storage_path=str(part.archive),
        storage_key=writer.write(cut.id, frames),
        recording_id=cut.recording_id,
        channels=0,
    )
    return cut


def _tidy(folder: Path, parts: Sequence[_Part]) -> None:
    """Remove everything but the archives of these parts, files of former runs included."""
    keep = {part.archive.name for part in parts}
    for path in [*folder.glob("feats-*"), *folder.glob(".feats-*")]:
        if path.name not in keep:
            path.unlink()
