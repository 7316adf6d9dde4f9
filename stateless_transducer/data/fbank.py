"""Recordings -> stored features and cuts: ``<prefix>_cuts_<split>.jsonl.gz`` beside ``<prefix>_feats_<split>/``.

The work is done in parts, each an archive and the list of its cuts; a part that is there is not made again. Features
are stored in steps of 1/256, which is finer than what float16 keeps of them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lhotse import LilcomChunkyWriter, MonoCut
from lhotse.features import Features

from stateless_transducer.audio import AudioError
from stateless_transducer.data.corpora.utterance import Problem
from stateless_transducer.data.cutting import Cutter, Source, read_source
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.files import replacing, write_text

_STORED_STEP = -8  # features are multiples of 2**-8


@dataclass(frozen=True)
class _Part:
    """What one process does at a time; its name tells all that the result depends on."""

    sources: tuple[Source, ...]
    cutter: Cutter
    config: FbankConfig
    path: Path

    @property
    def cuts(self) -> Path:
        """Appears last."""
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
    pool: Executor,
    progress: Callable[[int, int], None],
) -> list[Problem]:
    """Write features and cuts; the cuts appear last, so their file says that all is there.

    Args:
        sources: recordings, and what is said in them.
        cutter: makes the cuts.
        cuts_path: for the list of all cuts.
        feats_dir: for the features.
        config: the front end.
        sources_per_part: recordings that one process does at a time.
        pool: does the work: processes of this machine, or of many.
        progress: called with (recordings done, recordings in all).

    Returns:
        Recordings that could not be read after all; they are left out.

    Raises:
        ValueError: no recording could be read.
    """
    feats_dir.mkdir(parents=True, exist_ok=True)
    parts = [
        _part(feats_dir, number, tuple(sources[start : start + sources_per_part]), cutter, config)
        for number, start in enumerate(range(0, len(sources), sources_per_part))
    ]
    running = {pool.submit(_make, part): part for part in parts if not part.cuts.exists()}
    done = sum(len(part.sources) for part in parts if part.cuts.exists())
    for future in as_completed(running):
        future.result()
        done += len(running[future].sources)
        progress(done, len(sources))
    problems = [Problem(**each) for part in parts for each in json.loads(part.problems.read_text(encoding="utf-8"))]
    if len(problems) == len(sources):
        raise ValueError(f"No recording for {cuts_path.name} could be read: {problems[0].detail}")
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
    """Features of a part's cuts in its archive, then the list of the cuts."""
    cuts, problems = [], []
    with replacing(part.archive) as temporary, LilcomChunkyWriter(temporary, tick_power=_STORED_STEP) as writer:
        for source in part.sources:
            recording, _ = source
            try:
                samples = read_source(source, part.config.sample_rate)
            except AudioError as err:
                problems.append(Problem("unreadable audio", recording.id, str(err)))
                continue
            for cut, wave in part.cutter(source, samples, part.config.sample_rate):
                cuts.append(_with_features(cut, fbank(wave, part.config), part, writer))
    write_text(part.problems, json.dumps([asdict(problem) for problem in problems]))
    with replacing(part.cuts) as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in cuts)


def _with_features(cut: MonoCut, frames: np.ndarray, part: _Part, writer: LilcomChunkyWriter) -> MonoCut:
    """Store the features (T_in, F) of a cut, and tell it where they are."""
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
    """Remove all but the archives, those of former runs included."""
    keep = {part.archive.name for part in parts}
    for path in [*folder.glob("feats-*"), *folder.glob(".feats-*")]:
        if path.name not in keep:
            path.unlink()
