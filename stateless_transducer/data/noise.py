"""Preparation of MUSAN: manifests and features of noise for training, each computed once.

<data>/manifests/musan_recordings_{music,speech,noise}.jsonl.gz
<data>/fbank/musan_cuts.jsonl.gz                                 windows of 10 s with stored features
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stateless_transducer.audio import AudioError, audio_duration
from stateless_transducer.data.config import WorkConfig
from stateless_transducer.data.corpora.musan import PARTS, read_musan
from stateless_transducer.data.corpora.utterance import Problem, describe_problems, problem_rows
from stateless_transducer.data.cutting import Windows, sound_file
from stateless_transducer.data.executor import executor
from stateless_transducer.data.manifests import (
    manifest_path,
    noise_cuts_path,
    problems_path,
    read_manifest,
    write_recordings,
)
from stateless_transducer.data.preparation import Bar, Say, compute_features, manifests_are_there, manifests_stamp
from stateless_transducer.files import write_text
from stateless_transducer.wording import counted

PREFIX = "musan"

_WINDOWS = Windows(window_s=10.0, longer_than_s=5.0)
# recordings last several minutes
_RECORDINGS_PER_PART = 20


def prepare_noise_manifests(corpus_dir: Path, config: WorkConfig, *, say: Say, bar: Bar) -> None:
    """Read MUSAN, unless its manifests exist already.

    Raises:
        ValueError: the folder is not MUSAN's, the manifests are from another folder, no file can be read, or
            ``strict`` is set and one cannot.
    """
    done = manifests_stamp(config.manifest_dir, PREFIX)
    now = {"source": str(corpus_dir.resolve())}
    if manifests_are_there(done, now, PREFIX, kinds=("recordings",), say=say):
        return
    files = read_musan(corpus_dir)
    noise_cuts_path(config.fbank_dir).unlink(missing_ok=True)
    everything = [path for part in PARTS for path in files[part]]
    with bar("checking audio") as progress, ThreadPoolExecutor(config.num_jobs) as pool:
        checked = {}
        for path, result in zip(everything, pool.map(_check, everything), strict=True):
            checked[path] = result
            progress(len(checked), len(everything))
    problems = [result for result in checked.values() if isinstance(result, Problem)]
    write_text(problems_path(config.manifest_dir, PREFIX), "kind\tid\tdetail\n" + problem_rows(problems))
    if problems:
        say(f"left out: {len(problems)}\n{describe_problems(problems)}")
        if config.strict:
            raise ValueError(f"`strict`: {counted(len(problems), 'problem')}:\n{describe_problems(problems)}")
        if len(problems) == len(everything):
            raise ValueError(f"No recording of `corpus_dir` {corpus_dir} can be used:\n{describe_problems(problems)}")
    for part in PARTS:
        readable = {path: result for path in files[part] if not isinstance(result := checked[path], Problem)}
        rows = [(path.stem, path, duration, rate) for path, (duration, rate) in readable.items()]
        write_recordings(manifest_path(config.manifest_dir, PREFIX, "recordings", part), rows)
        say(
            f"{part:6s} {counted(len(rows), 'recording'):>18s}  "
            f"{sum(duration for duration, _ in readable.values()) / 3600:8.2f} h"
        )
    write_text(done, json.dumps(now) + "\n")


def _check(path: Path) -> Problem | tuple[float, int]:
    """Return seconds and sample rate of a file, or its problem."""
    try:
        return audio_duration(path)
    except AudioError as err:
        return Problem("unreadable audio", path.stem, str(err))


def prepare_noise_features(config: WorkConfig, *, say: Say, bar: Bar) -> None:
    """Compute features of windows of all recordings, unless they exist already.

    Raises:
        ValueError: there are no manifests, or ``strict`` is set and a sound could not be read.
    """
    cuts, done = noise_cuts_path(config.fbank_dir), config.fbank_dir / f".{PREFIX}.done"
    if cuts.exists():
        say(f"{cuts}: already there - skipping")
        return
    if not manifests_stamp(config.manifest_dir, PREFIX).exists():
        raise ValueError(f"{config.manifest_dir} has no manifests of {PREFIX}; make them first (`step=manifests`).")
    recordings = [
        recording
        for part in PARTS
        for recording in read_manifest(manifest_path(config.manifest_dir, PREFIX, "recordings", part))
    ]
    config.fbank_dir.mkdir(parents=True, exist_ok=True)
    with executor(config, config.fbank_dir, sound_file(recordings[0])) as execute:
        compute_features(
            [(recording, None) for recording in recordings],
            _WINDOWS,
            cuts_path=cuts,
            feats_dir=config.fbank_dir / f"{PREFIX}_feats",
            sources_per_part=_RECORDINGS_PER_PART,
            prefix=PREFIX,
            config=config,
            execute=execute,
            say=say,
            bar=bar,
        )
    done.touch()
