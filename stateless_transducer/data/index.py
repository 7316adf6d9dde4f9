"""Index of a manifest of cuts, for random access: lengths are in arrays, and a cut is one read.

A compressed manifest must be read from its beginning, which takes half a minute for a million cuts. So it is unpacked
once, into a folder beside it, with the positions of its lines:

<prefix>_cuts_<split>.jsonl.gz.index/
    cuts.jsonl     the manifest
    arrays.npz     position, checksum, duration and feature frames of each cut; stamp of the manifest
    counts-*.npz   number of tokens and of unknown units in each transcript, one file per token table
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from stateless_transducer.data.shar import shar_files, shar_folders, shar_lines
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import check_file, parse_json, replacing
from stateless_transducer.text.tokens import TokenTable

_MOST_NAMED = 5
_FRAME_SHIFT_S = FbankConfig().frame_shift_s
"""Of prepared features: all have the default front end."""


# errors of `np.load` for damaged, incomplete or missing archives of arrays; their members have checksums
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class CutIndex:
    """Cuts of a manifest, by number."""

    folder: Path
    places: np.ndarray
    """(M + 1,), int64: byte at which each line begins, and the end of the last."""
    checksums: np.ndarray
    """(M,), uint32: CRC-32 of each line."""
    seconds: np.ndarray
    """(M,), float64."""
    num_frames: np.ndarray
    """(M,), int32: feature frames."""

    frame_shift_s = _FRAME_SHIFT_S
    """Seconds from one feature frame to the next."""

    def __len__(self) -> int:
        return len(self.seconds)

    def __getstate__(self) -> dict[str, object]:
        # a worker process opens the file itself
        return {name: value for name, value in self.__dict__.items() if name != "_lines"}

    def __iter__(self) -> Iterator[Cut]:
        return (self.cut(i) for i in range(len(self)))

    @cached_property
    def _lines(self) -> np.ndarray:
        return np.memmap(self.folder / "cuts.jsonl", np.uint8, "r")

    def cut(self, number: int) -> Cut:
        """Read a cut.

        Raises:
            ValueError: its line is damaged.
        """
        return deserialize_item(json.loads(self._line(number)))

    def _line(self, number: int) -> bytes:
        line = self._lines[self.places[number] : self.places[number + 1]].tobytes()
        if zlib.crc32(line) != self.checksums[number]:
            raise ValueError(f"{self.folder / 'cuts.jsonl'} is damaged. Remove the folder; it is built again.")
        return line

    def name_some(self, numbers: np.ndarray) -> str:
        """Return the ids of cuts for a message, at most the first five."""
        ids = [self.cut(number).id for number in numbers[:_MOST_NAMED]]
        return ", ".join(ids + ["..."] * (len(numbers) > _MOST_NAMED))

    def num_tokens(self, token_table: TokenTable) -> np.ndarray:
        """Return the number of tokens of each transcript, (M,), int32; counted once per table."""
        return self._counts(token_table)[0]

    def num_unknown(self, token_table: TokenTable) -> np.ndarray:
        """Return the number of units of each transcript that the table lacks, (M,), int32."""
        return self._counts(token_table)[1]

    def _counts(self, token_table: TokenTable) -> np.ndarray:
        key = hashlib.sha256(repr(token_table).encode()).hexdigest()[:12]
        path = self.folder / f"counts-{key}.npz"
        with suppress(*_UNREADABLE), path.open("rb") as file, np.load(file) as arrays:
            return arrays["counts"]
        texts = [_text(json.loads(self._line(number))) for number in range(len(self))]
        counts = [[len(token_table.encode(text)), len(token_table.unknown_units(text))] for text in texts]
        result = np.array(counts, np.int32).reshape(-1, 2).T
        with replacing(path) as temporary:
            np.savez(temporary, counts=result)
        return result


@dataclass(frozen=True)
class JoinedIndex:
    """Two manifests as one; the numbers of the second follow those of the first."""

    first: CutIndex
    second: CutIndex

    @property
    def frame_shift_s(self) -> float:
        """Seconds from one feature frame to the next."""
        return self.first.frame_shift_s

    def cut(self, number: int) -> Cut:
        """Read a cut."""
        number_in_second = number - len(self.first)
        return self.first.cut(number) if number_in_second < 0 else self.second.cut(number_in_second)


def open_index(manifest: Path) -> CutIndex:
    """Open the index of a manifest; it is built again if the manifest has changed.

    Args:
        manifest: .jsonl, .jsonl.gz, a folder in lhotse's Shar format, or a .txt that lists such folders.

    Raises:
        ValueError: the manifest is damaged, or a line is not a cut with a transcript.
    """
    stamp = _stamp(manifest)
    for folder in _folders(manifest):
        with suppress(*_UNREADABLE):
            return _load(folder, stamp)
    for folder in _folders(manifest):
        try:
            _build(manifest, folder, stamp)
            return _load(folder, stamp)
        except OSError as err:
            # no permission, or a file system that is mounted for reading only
            if err.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    raise ValueError(
        f"{manifest}: its index can be written neither beside it nor to {tempfile.gettempdir()}. Set TMPDIR "
        "to a folder that you can write to."
    )


def _stamp(manifest: Path) -> list[int]:
    """Return number, sizes and latest modification time of the manifest's files."""
    files = shar_files(shar_folders(manifest)) if _is_shar(manifest) else [manifest]
    states = [path.stat() for path in files if path.exists()]
    return [len(states), sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def _is_shar(manifest: Path) -> bool:
    return manifest.is_dir() or manifest.suffix == ".txt"


def _read_lines(manifest: Path) -> Iterator[bytes]:
    if _is_shar(manifest):
        yield from shar_lines(shar_folders(manifest))
        return
    check_file(manifest)
    try:
        with gzip.open(manifest) if manifest.suffix == ".gz" else manifest.open("rb") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as err:
        raise ValueError(f"{manifest} is damaged ({err}). Copy it again, or remove it and prepare it again.") from err


def _folders(manifest: Path) -> Iterator[Path]:
    """Yield the folders to try: beside the manifest, then in the temporary folder if that cannot be written."""
    name = f"{manifest.name}.index"
    yield manifest.with_name(name)
    key = hashlib.sha256(str(manifest.resolve()).encode()).hexdigest()[:12]
    private = _private_folder()
    if private is not None:
        yield private / f"{key}-{name}"


def _private_folder() -> Path | None:
    """Return a folder in the temporary folder into which only this user can write; None if there is none.

    All users know the names of indexes, and could leave one there that holds other cuts.
    """
    if not hasattr(os, "getuid"):
        return None
    folder = Path(tempfile.gettempdir()) / f"stateless-transducer-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_private else None


def _load(folder: Path, stamp: list[int]) -> CutIndex:
    with (folder / "arrays.npz").open("rb") as file, np.load(file) as arrays:
        if arrays["stamp"].tolist() != stamp:
            raise ValueError("index of another manifest")
        return CutIndex(folder, arrays["places"], arrays["checksums"], arrays["seconds"], arrays["num_frames"])


def _build(manifest: Path, folder: Path, stamp: list[int]) -> None:
    """Build the index in a folder of another name first: processes may build it at once, or be killed."""
    making = Path(tempfile.mkdtemp(prefix=f".{manifest.name[:80]}.", dir=folder.parent))
    try:
        places, checksums, seconds, num_frames = [0], [], [], []
        with (making / "cuts.jsonl").open("wb") as target:
            for number, line in enumerate(_read_lines(manifest), start=1):
                if not line.strip():
                    continue
                try:
                    cut = parse_json(line)
                    duration, frames = _lengths(cut)
                    has_transcript = _has_transcript(cut)
                except (ValueError, KeyError, TypeError, AttributeError) as err:
                    raise ValueError(f"{manifest}:{number}: not a cut of lhotse's ({err}).") from err
                if not has_transcript:
                    raise ValueError(f"{manifest}:{number}: cut {cut['id']} has no supervision, so no transcript.")
                target.write(line)
                places.append(places[-1] + len(line))
                checksums.append(zlib.crc32(line))
                seconds.append(duration)
                num_frames.append(frames)
        np.savez(
            making / "arrays.npz",
            stamp=np.array(stamp),
            places=np.array(places, np.int64),
            checksums=np.array(checksums, np.uint32),
            seconds=np.array(seconds, np.float64),
            num_frames=np.array(num_frames, np.int32),
        )
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(FileExistsError, OSError):
            # another process was faster, and its index is the same
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _lengths(cut: dict) -> tuple[float, int]:
    """Return seconds and feature frames."""
    if cut["type"] != "MonoCut":
        whole = deserialize_item(cut)
        return whole.duration, whole.num_frames or round(whole.duration / _FRAME_SHIFT_S)
    features = cut.get("features")
    if features is not None and features["duration"] == cut["duration"]:
        return cut["duration"], features["num_frames"]
    return cut["duration"], round(cut["duration"] / _FRAME_SHIFT_S)


def _has_transcript(cut: dict) -> bool:
    return bool(cut["supervisions"] if cut["type"] == "MonoCut" else deserialize_item(cut).supervisions)


def _text(cut: dict) -> str:
    if cut["type"] != "MonoCut":
        return deserialize_item(cut).supervisions[0].text or ""
    return cut["supervisions"][0].get("text") or ""
