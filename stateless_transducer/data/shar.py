"""Corpora in lhotse's Shar format: cuts in shards, and the features of each shard in a tar file beside it.

The shards may be in several folders, on several disks. An index holds the place of each cut's features in the tar
files, so that a cut is one read, as with any other manifest.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from lhotse.features.io import FeaturesReader, MemoryLilcomReader, register_reader

from stateless_transducer.files import check_file, read_lines

_LILCOM, _NUMPY = ".llc", ".npy"


def shar_folders(source: Path) -> list[Path]:
    """Return the folders with shards: the source itself, or those that a text file lists, one per line.

    Raises:
        ValueError: a folder does not exist or holds no shards.
    """
    folders = [source]
    if source.is_file():
        folders = [source.parent / line.strip() for line in read_lines(source) if line.strip()]
    for folder in folders:
        if not _shards(folder):
            where = f" (named in {source})" if source.is_file() else ""
            raise ValueError(f"{folder}{where} holds no cuts.*.jsonl.gz, as lhotse's Shar format has.")
    if not folders:
        raise ValueError(f"{source} names no folder.")
    return folders


def shar_files(folders: Sequence[Path]) -> list[Path]:
    """Return all files of a corpus."""
    return [path for folder in folders for cuts in _shards(folder) for path in (cuts, _features_of(cuts))]


def shar_lines(folders: Sequence[Path]) -> Iterator[bytes]:
    """Yield a line of JSON per cut, with features that point into a tar file.

    Raises:
        ValueError: a shard has no features, or features of other cuts.
    """
    for folder in folders:
        for cuts in _shards(folder):
            yield from _shard_lines(cuts, _features_of(cuts))


def _shards(folder: Path) -> list[Path]:
    return sorted([*folder.glob("cuts.*.jsonl.gz"), *folder.glob("cuts.*.jsonl")]) if folder.is_dir() else []


def _features_of(cuts: Path) -> Path:
    return cuts.with_name(f"features.{cuts.name.split('.')[1]}.tar")


def _shard_lines(cuts: Path, features: Path) -> Iterator[bytes]:
    if not features.is_file():
        raise ValueError(f"{features} is missing: Shar corpora are read with stored features (field `features`).")
    check_file(cuts)
    opened = gzip.open(cuts) if cuts.suffix == ".gz" else cuts.open("rb")
    with tarfile.open(features) as archive, opened as lines:
        members = iter(archive)
        for line in lines:
            cut = json.loads(line)
            data, described = next(members, None), next(members, None)
            # ids may have slashes and dots
            if data is None or described is None or str(PurePosixPath(data.name).with_suffix("")) != cut["id"]:
                name = "nothing" if data is None else data.name
                raise ValueError(f"{features}: has {name} where the features of {cut['id']} should be.")
            suffix = Path(data.name).suffix
            content = archive.extractfile(described)
            if suffix not in (_LILCOM, _NUMPY) or content is None:
                raise ValueError(f"{features}: {data.name} holds no features of lhotse's.")
            cut["features"] = {
                **json.load(content),
                "storage_type": TarSliceReader.name,
                "storage_path": str(features.resolve()),
                "storage_key": f"{data.offset_data},{data.size},{suffix}",
            }
            yield json.dumps(cut, ensure_ascii=False).encode() + b"\n"


@register_reader
class TarSliceReader(FeaturesReader):
    """Reader of features in a range of bytes of a file; the key is ``first byte,number of bytes,suffix``."""

    name = "tar_slice"  # pyright: ignore

    def __init__(self, storage_path: str, **kwargs: object) -> None:
        super().__init__()
        self._path = Path(storage_path)

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> np.ndarray:
        """Return the features: (T_in, F)."""
        place, size, suffix = key.split(",")
        with self._path.open("rb") as file:
            file.seek(int(place))
            data = file.read(int(size))
        if suffix == _LILCOM:
            return MemoryLilcomReader().read(data, left_offset_frames, right_offset_frames)
        return np.load(io.BytesIO(data))[left_offset_frames:right_offset_frames]
