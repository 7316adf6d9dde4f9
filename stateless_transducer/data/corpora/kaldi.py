"""Kaldi's data folders: wav.scp, text, perhaps segments and utt2spk (https://kaldi-asr.org/doc/data_prep.html)."""

from __future__ import annotations

import math
from pathlib import Path

from stateless_transducer.data.corpora.id_lines import read_id_lines
from stateless_transducer.data.corpora.table import split_name
from stateless_transducer.data.corpora.utterance import Problem, Utterance

_FILES = ("wav.scp", "text", "segments", "utt2spk")


def kaldi_folders(folder: Path) -> list[Path]:
    """The folder itself if it is Kaldi's, or those directly in it that are; none if it is something else."""
    if (folder / "wav.scp").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/wav.scp") if path.is_file())


def kaldi_files(folder: Path) -> list[Path]:
    """What `read_kaldi` reads, whether it is there or not."""
    return [each / name for each in kaldi_folders(folder) for name in _FILES]


def read_kaldi(folder: Path, *, audio_dir: Path | None = None) -> tuple[list[Utterance], list[Problem]]:
    """The utterances of a folder of Kaldi's, or of several in one, in the order of their texts; what cannot be used.

    A folder called train, dev, test or the like is that split; another one has a split of its own name beside others,
    and is train alone.

    Args:
        folder: with wav.scp, or with folders that have it.
        audio_dir: what relative paths are relative to; None: where the command runs, as with Kaldi.

    Raises:
        ValueError: a file is missing, or not UTF-8.
    """
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    folders = kaldi_folders(folder)
    for each in folders:
        split = split_name(each.resolve().name) or ("train" if len(folders) == 1 else each.name)
        found, wrong = _read_one(each, split, audio_dir or Path())
        utterances += found
        problems += wrong
    return utterances, problems


def _read_one(folder: Path, split: str, audio_dir: Path) -> tuple[list[Utterance], list[Problem]]:
    for name in ("wav.scp", "text"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no file {name}; a folder of Kaldi's has wav.scp and text.")
    sounds, problems = read_id_lines(folder / "wav.scp")
    texts, wrong = read_id_lines(folder / "text")
    problems += wrong
    has_segments = (folder / "segments").is_file()
    segments, wrong = read_id_lines(folder / "segments") if has_segments else ({id_: id_ for id_ in sounds}, [])
    problems += wrong
    speakers = read_id_lines(folder / "utt2spk")[0] if (folder / "utt2spk").is_file() else {}
    utterances: list[Utterance] = []
    for id_, text in texts.items():
        if id_ not in segments:
            problems.append(Problem("text without audio", id_, f"not in {'segments' if has_segments else 'wav.scp'}"))
            continue
        try:
            recording, start_s, duration_s = _segment(segments[id_])
            path = audio_dir / _sound(sounds, recording)
        except ValueError as err:
            problems.append(Problem("bad row", id_, str(err)))
            continue
        utterances.append(Utterance(id_, path, text, speakers.get(id_, "unknown"), split, start_s, duration_s))
    problems += [Problem("audio without text", id_, str(folder)) for id_ in segments if id_ not in texts]
    return utterances, problems


def _segment(line: str) -> tuple[str, float, float]:
    """Recording, start and duration; an end of -1 is that of the recording."""
    recording, *times = line.split()
    if not times:
        return recording, 0.0, math.inf
    try:
        start, end = map(float, times)
    except ValueError as err:
        raise ValueError(f"segments: must be `utterance recording start end`, but is {line[:80]!r}") from err
    duration = math.inf if end == -1 else end - start
    if not (0 <= start < math.inf and duration > 0):
        raise ValueError(f"segments: begins at {start:g} s and ends at {end:g} s")
    return recording, start, duration


def _sound(sounds: dict[str, str], recording: str) -> Path:
    path = sounds.get(recording)
    if path is None:
        raise ValueError(f"recording {recording!r} is not in wav.scp")
    if path.endswith("|"):
        raise ValueError(f"wav.scp has a command for {recording!r}, and commands are not run: let it name a sound file")
    return Path(path)
