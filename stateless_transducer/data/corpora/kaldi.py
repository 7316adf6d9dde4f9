"""Kaldi's data folders: wav.scp, text, optionally segments, utt2spk (https://kaldi-asr.org/doc/data_prep.html)."""

from __future__ import annotations

import math
from pathlib import Path

from stateless_transducer.data.corpora.id_lines import read_id_lines
from stateless_transducer.data.corpora.table import split_name
from stateless_transducer.data.corpora.utterance import Problem, Utterance

_FILES = ("wav.scp", "text", "segments", "utt2spk")


def kaldi_folders(folder: Path) -> list[Path]:
    """Return the folder itself if it has a wav.scp, or else the folders directly inside it that have one."""
    if (folder / "wav.scp").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/wav.scp") if path.is_file())


def kaldi_files(folder: Path) -> list[Path]:
    """Return the paths that `read_kaldi` reads, whether they exist or not."""
    return [data_dir / name for data_dir in kaldi_folders(folder) for name in _FILES]


def read_kaldi(folder: Path, *, audio_dir: Path | None = None) -> tuple[list[Utterance], list[Problem]]:
    """Read the utterances of one or several data folders, in the order of their texts, and the problems.

    The name of a data folder (train, dev, test or the like) is its split. With another name, it is a split of that name
    if there are several data folders, and train if it is the only one.

    Args:
        folder: data folder, or folder of data folders.
        audio_dir: base of relative paths; None for the current folder, as with Kaldi.

    Raises:
        ValueError: a file is missing or not UTF-8.
    """
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    folders = kaldi_folders(folder)
    for data_dir in folders:
        split = split_name(data_dir.resolve().name) or ("train" if len(folders) == 1 else data_dir.name)
        its_utterances, its_problems = _read_one(data_dir, split, audio_dir or Path())
        utterances += its_utterances
        problems += its_problems
    return utterances, problems


def _read_one(folder: Path, split: str, audio_dir: Path) -> tuple[list[Utterance], list[Problem]]:
    for name in ("wav.scp", "text"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no file {name}; a folder of Kaldi's has wav.scp and text.")
    sounds, problems = read_id_lines(folder / "wav.scp")
    texts, text_problems = read_id_lines(folder / "text")
    problems += text_problems
    has_segments = (folder / "segments").is_file()
    segments = {id_: id_ for id_ in sounds}
    if has_segments:
        segments, segment_problems = read_id_lines(folder / "segments")
        problems += segment_problems
    speakers: dict[str, str] = {}
    if (folder / "utt2spk").is_file():
        speakers, _ = read_id_lines(folder / "utt2spk")
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
    """Parse recording, start and duration; an end of -1 is the end of the recording."""
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
