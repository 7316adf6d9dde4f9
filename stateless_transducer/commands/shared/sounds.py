"""Which sounds a command line names: files, folders, patterns, standard input; and where what is found is written."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import BinaryIO

from stateless_transducer.audio import SOUND_SUFFIXES

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class NamedSound:
    """A sound of the command line."""

    name: str
    """As the user knows it."""
    source: Path | BinaryIO
    output: PurePath
    """Its name, without suffix, in a folder of results; of a file in a folder that was named, with the way there."""
    id: str
    """Its name without folder and suffix; of sounds in which that is the same, ``name``. Blanks are `_`."""


def find_sounds(names: Sequence[str]) -> tuple[list[NamedSound], list[str]]:
    """The sounds in the order of their names, and what is wrong with names that lead to none.

    A folder stands for all sound files in it, however deep, in the order of their names; ``-`` for standard input; a
    pattern (with ``*``, ``**``, ``?`` or ``[]``), where no file has that name, for what matches it.

    Raises:
        ValueError: standard input is named twice.
    """
    if names.count(STANDARD_INPUT) > 1:
        raise ValueError("`-`, standard input, can be read only once.")
    sounds: list[NamedSound] = []
    problems: list[str] = []
    for name in names:
        if name == STANDARD_INPUT:
            sounds.append(NamedSound(name, sys.stdin.buffer, PurePath("stdin"), name))
            continue
        is_pattern = glob.has_magic(name) and not os.path.lexists(name)
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
        if not matches:
            problems.append(f"{name}: matches no file.")
        for path in map(Path, matches):
            before = len(problems)
            found = list(_walk(path, path, problems)) if os.path.isdir(path) else [_sound(path, PurePath(path.name))]
            if not found and len(problems) == before:
                problems.append(f"{path}: holds no sound file (by its suffix: .wav, .flac, .mp3, .m4a, .mp4, ...).")
            sounds += found
    return _told_apart(sounds), problems


def _told_apart(sounds: Sequence[NamedSound]) -> list[NamedSound]:
    counts = Counter(sound.id for sound in sounds)
    sounds = [sound if counts[sound.id] == 1 else replace(sound, id=_joined(sound.name)) for sound in sounds]
    # blanks have become `_`, and a sound may be named twice
    found, taken = [], set[str]()
    for sound in sounds:
        free, number = sound.id, 1
        while free in taken:
            number += 1
            free = f"{sound.id}-{number}"
        taken.add(free)
        found.append(replace(sound, id=free))
    return found


def _walk(folder: Path, top: Path, problems: list[str], above: frozenset[Path] = frozenset()) -> Iterator[NamedSound]:
    """The sounds in a folder; folders that cannot be read are named among the problems."""
    try:
        above |= {folder.resolve()}
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as err:
        problems.append(f"{folder}: cannot be read ({err.strerror}).")
        return
    for path in inside:
        if not os.path.isdir(path):
            if path.suffix.lower() in SOUND_SUFFIXES:
                yield _sound(path, path.relative_to(top))
        elif path.resolve() not in above:
            # a link to a folder above would never end
            yield from _walk(path, top, problems, above)


def _sound(path: Path, relative: PurePath) -> NamedSound:
    # names need not be UTF-8, but what is printed must
    name = str(path).encode("utf-8", "backslashreplace").decode()
    return NamedSound(name, path, relative.with_suffix(""), _joined(PurePath(name).stem))


def _joined(name: str) -> str:
    return "_".join(name.split())


def output_paths(folder: Path, sounds: Sequence[NamedSound], suffix: str) -> list[Path]:
    """A file in the folder for each sound: ``a.srt``; of equal names ``a.wav.srt``, ``a.mp3.srt``, ``a.mp3-2.srt``.

    Names that differ in case alone count as the same, as they do to some file systems.
    """
    stems = [_key(sound.output) for sound in sounds]
    counts = Counter(stems)
    taken: set[str] = set()
    paths = []
    for sound, stem in zip(sounds, stems, strict=True):
        own = sound.output
        if counts[stem] > 1 and isinstance(sound.source, Path):
            own = own.with_name(own.name + sound.source.suffix)
        free, number = own, 1
        while _key(free) in taken:
            number += 1
            free = own.with_name(f"{own.name}-{number}")
        taken.add(_key(free))
        paths.append(folder / free.with_name(f"{free.name}.{suffix}"))
    return paths


def _key(path: PurePath) -> str:
    return str(path).casefold()
