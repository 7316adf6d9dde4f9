"""Sounds of a command line (files, folders, patterns, standard input) and paths of their outputs."""

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
from stateless_transducer.files import printable

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class NamedSound:
    """A sound of the command line."""

    name: str
    """Name as the user wrote it, or the path in a folder, in UTF-8."""
    source: Path | BinaryIO
    output: PurePath
    """Output name without suffix; for files of a named folder, with the path below that folder."""
    id: str
    """File name without folder and suffix, or ``name`` if that is ambiguous. Blanks become `_`."""


def find_sounds(names: Sequence[str]) -> tuple[list[NamedSound], list[str]]:
    """Return the sounds in the order of the names, and problems with names that match none.

    A folder stands for all sound files in it and its subfolders, sorted by name; ``-`` for standard input; a pattern
    (with ``*``, ``**``, ``?`` or ``[]``) that is not itself the name of a file, for its matches.

    Raises:
        ValueError: Standard input is named twice.
    """
    if names.count(STANDARD_INPUT) > 1:
        raise ValueError("`-`, standard input, can be read only once.")
    sounds: list[NamedSound] = []
    problems: list[str] = []
    for name in names:
        if not name:
            problems.append("the name of a sound is empty.")
            continue
        if name == STANDARD_INPUT:
            sounds.append(NamedSound(name, sys.stdin.buffer, PurePath("stdin"), name))
            continue
        is_pattern = glob.has_magic(name) and not os.path.lexists(name)
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
        if not matches:
            problems.append(f"{printable(name)}: matches no file.")
        for path in map(Path, matches):
            before = len(problems)
            matched = list(_walk(path, path, problems)) if os.path.isdir(path) else [_sound(path, PurePath(path.name))]
            if not matched and len(problems) == before:
                problems.append(
                    f"{printable(path)}: holds no sound file (by its suffix: .wav, .flac, .mp3, .m4a, .mp4, ...)."
                )
            sounds += matched
    return _with_unique_ids(sounds), problems


def _with_unique_ids(sounds: Sequence[NamedSound]) -> list[NamedSound]:
    counts = Counter(sound.id for sound in sounds)
    sounds = [sound if counts[sound.id] == 1 else replace(sound, id=_joined(sound.name)) for sound in sounds]
    # `_joined` may map two names to one, and a sound may be named twice
    unique, used_ids = [], set[str]()
    for sound in sounds:
        id_, number = sound.id, 1
        while id_ in used_ids:
            number += 1
            id_ = f"{sound.id}-{number}"
        used_ids.add(id_)
        unique.append(replace(sound, id=id_))
    return unique


def _walk(
    folder: Path, top: Path, problems: list[str], ancestors: frozenset[Path] = frozenset()
) -> Iterator[NamedSound]:
    """Yield the sounds in a folder; unreadable folders are added to the problems."""
    try:
        ancestors |= {folder.resolve()}
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as err:
        problems.append(f"{printable(folder)}: cannot be read ({err.strerror}).")
        return
    for path in entries:
        if not os.path.isdir(path):
            # opening a pipe without a writer would wait forever
            if path.suffix.lower() in SOUND_SUFFIXES and not path.is_fifo():
                yield _sound(path, path.relative_to(top))
        elif path.resolve() not in ancestors:
            # a link to a parent folder would never end
            yield from _walk(path, top, problems, ancestors)


def _sound(path: Path, relative: PurePath) -> NamedSound:
    # file names need not be UTF-8, but written names must
    name = str(path).encode("utf-8", "backslashreplace").decode()
    return NamedSound(name, path, relative.with_suffix(""), _joined(path.stem))


def _joined(name: str) -> str:
    return printable("_".join(name.split()))


def output_paths(folder: Path, sounds: Sequence[NamedSound], suffix: str) -> list[Path]:
    """Return an output file per sound: ``a.srt``; for equal names ``a.wav.srt``, ``a.mp3.srt``, ``a.mp3-2.srt``.

    Names that differ only in case count as equal, as on some file systems.
    """
    stems = [_key(sound.output) for sound in sounds]
    counts = Counter(stems)
    used_keys: set[str] = set()
    # of each name, the last number tried: thousands of folders may each hold an audio.wav
    numbers: Counter[str] = Counter()
    paths = []
    for sound, stem in zip(sounds, stems, strict=True):
        base = sound.output
        if counts[stem] > 1 and isinstance(sound.source, Path):
            base = base.with_name(base.name + sound.source.suffix)
        name, key = base, _key(base)
        while _key(name) in used_keys:
            numbers[key] += 1
            name = base.with_name(f"{base.name}-{numbers[key] + 1}")
        used_keys.add(_key(name))
        paths.append(folder / name.with_name(f"{name.name}.{suffix}"))
    return paths


def _key(path: PurePath) -> str:
    return str(path).casefold()
