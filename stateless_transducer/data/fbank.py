"""Manifests -> stored features and cuts: ``<prefix>_cuts_<split>.jsonl.gz`` beside ``<prefix>_feats_<split>/``.

Speed perturbation is resampling before the features, so a cut at 0.9 is 1/0.9 times as long and lower. Features are
stored in steps of 1/256, which is finer than what float16 keeps of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path

from lhotse import CutSet, LilcomChunkyWriter, MonoCut, Recording, SupervisionSegment, load_manifest
from lhotse.features import Features

from stateless_transducer.audio import AudioError, read_audio, resample
from stateless_transducer.data.corpora.utterance import Problem
from stateless_transducer.data.manifests import manifest_path
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.files import replacing

_STORED_STEP = -8  # features are multiples of 2**-8
_CUTS_PER_TASK = 200


def compute_features(
    split: str,
    *,
    manifest_dir: Path,
    output_dir: Path,
    prefix: str,
    config: FbankConfig,
    speeds: Sequence[float],
    pool: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Write features and cuts of a split; the cuts appear last, so their file says that all is there.

    Args:
        split: train, dev, test, ...
        manifest_dir: where `write_manifests` wrote.
        output_dir: for cuts and features.
        prefix: name of the corpus.
        config: the front end.
        speeds: each utterance is stored at each of them.
        pool: does the work: processes of this machine, or of many.
        progress: called with (utterances done, utterances in all).

    Returns:
        Utterances whose sound could not be read after all; they are left out.

    Raises:
        ValueError: the manifests are missing, or no utterance is left.
    """
    items = list(_read_manifests(manifest_dir, prefix, split))
    tasks = [items[i : i + _CUTS_PER_TASK] for i in range(0, len(items), _CUTS_PER_TASK)]
    folder = output_dir / f"{prefix}_feats_{split}"
    folder.mkdir(parents=True, exist_ok=True)
    cuts: dict[int, list[MonoCut]] = {}
    problems: list[Problem] = []
    # absolute: the cuts must be usable from anywhere
    archives = [(folder / f"feats-{i}").resolve() for i in range(len(tasks))]
    running = {pool.submit(_extract, task, archives[i], config, tuple(speeds)): i for i, task in enumerate(tasks)}
    for done, future in enumerate(as_completed(running), 1):
        cuts[running[future]], bad = future.result()
        problems += bad
        if progress is not None:
            progress(min(done * _CUTS_PER_TASK, len(items)), len(items))
    in_order = [cut for i in sorted(cuts) for cut in cuts[i]]
    if not in_order:
        raise ValueError(f"No utterance of {split} could be read: {problems[0].detail}")
    with replacing(manifest_path(output_dir, prefix, "cuts", split)) as temporary:
        CutSet.from_cuts(in_order).to_file(temporary)
    return problems


def _read_manifests(manifest_dir: Path, prefix: str, split: str) -> Iterable[tuple[Recording, SupervisionSegment]]:
    paths = {kind: manifest_path(manifest_dir, prefix, kind, split) for kind in ("recordings", "supervisions")}
    for path in paths.values():
        if not path.is_file():
            raise ValueError(f"{path} is missing; make the manifests first.")
    recordings = {recording.id: recording for recording in load_manifest(paths["recordings"])}
    for supervision in load_manifest(paths["supervisions"]):
        yield recordings[supervision.recording_id], supervision


def _extract(
    items: Sequence[tuple[Recording, SupervisionSegment]], storage: Path, config: FbankConfig, speeds: Sequence[float]
) -> tuple[list[MonoCut], list[Problem]]:
    """Features of some utterances at all speeds, in one archive."""
    cuts, problems = [], []
    with LilcomChunkyWriter(storage, tick_power=_STORED_STEP) as writer:
        for recording, supervision in items:
            try:
                samples = read_audio(str(recording.sources[0].source), config.sample_rate)
            except AudioError as err:
                problems.append(Problem("unreadable audio", recording.id, str(err)))
                continue
            for speed in speeds:
                perturbed = resample(samples, config.sample_rate * speed, config.sample_rate)
                frames = fbank(perturbed, config)
                duration = len(perturbed) / config.sample_rate
                cuts.append(_cut(recording, supervision, speed, duration, frames.shape[0], config, writer, frames))
    return cuts, problems


def _cut(recording, supervision, speed, duration, num_frames, config, writer, frames) -> MonoCut:
    suffix = "" if speed == 1.0 else f"_sp{speed:g}"
    id_ = recording.id + suffix
    at_rate = recording if recording.sampling_rate == config.sample_rate else recording.resample(config.sample_rate)
    perturbed = at_rate if speed == 1.0 else at_rate.perturb_speed(speed)
    features = Features(
        type="kaldi-native-fbank",
        num_frames=num_frames,
        num_features=config.num_mel_bins,
        frame_shift=config.frame_shift_ms / 1000,
        sampling_rate=config.sample_rate,
        start=0.0,
        duration=duration,
        storage_type=writer.name,
        storage_path=writer.storage_path,
        storage_key=writer.write(id_, frames),
        recording_id=id_,
        channels=0,
    )
    said = SupervisionSegment(
        id=id_,
        recording_id=id_,
        start=0.0,
        duration=duration,
        channel=0,
        text=supervision.text,
        speaker=supervision.speaker,
    )
    return MonoCut(
        id=id_,
        start=0.0,
        duration=duration,
        channel=0,
        supervisions=[said],
        features=features,
        recording=perturbed,
    )
