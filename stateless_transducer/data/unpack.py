"""Unpacking of archives from the web: nothing is written outside the folder, which appears when it is complete."""

from __future__ import annotations

import bz2
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 20


def unpack(archive: Path, folder: Path, *, progress: Callable[[int, int], None]) -> None:
    """Unpack a tar.gz or tar.bz2 that holds one folder, and each tar.gz inside it in its place.

    Files that an interrupted run has unpacked are not written again. The folder gets its name, and a file ``.done``,
    when it is complete.

    Args:
        archive: archive whose members' paths begin with the folder's name.
        folder: folder to create.
        progress: called with (bytes of the archive read, its size).

    Raises:
        ValueError: the archive is damaged, has another folder, or has a member outside the folder.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    temporary.mkdir(parents=True, exist_ok=True)
    size = archive.stat().st_size
    opener = bz2.open if archive.suffix == ".bz2" else gzip.open
    with archive.open("rb") as raw, opener(raw) as stream:
        try:
            _unpack_stream(stream, temporary.resolve(), lambda: progress(raw.tell(), size))
        except (tarfile.TarError, OSError, zlib.error, EOFError) as err:
            # bz2 and gzip report damage as an OSError, without an error number of the system
            if isinstance(err, OSError) and err.errno is not None:
                raise
            raise ValueError(f"{archive} is damaged ({err}); remove it and run the command again.") from err
    if not (temporary / folder.name).is_dir():
        raise ValueError(f"{archive} holds no folder {folder.name}.")
    (temporary / folder.name / ".done").touch()
    os.replace(temporary / folder.name, folder)
    shutil.rmtree(temporary)


def _unpack_stream(stream: bz2.BZ2File | gzip.GzipFile, folder: Path, step: Callable[[], None]) -> None:
    """Unpack a tar file, as it is read from a compressed file."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            target = _target(folder, member)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None, member.name
            if target.name.endswith(".tar.gz"):
                with gzip.open(content) as inner:
                    _unpack_stream(inner, target.parent, step)
            # an interrupted run leaves a truncated file
            elif not target.exists() or target.stat().st_size != member.size:
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file, _CHUNK)
            step()
        # the checksum is verified at the end of the file
        while stream.read(_CHUNK):
            pass


def _target(folder: Path, member: tarfile.TarInfo) -> Path:
    """Return the path to write a member to."""
    target = (folder / member.name).resolve()
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"The archive holds {member.name!r}, which is neither file nor folder; it is not unpacked.")
    if not target.is_relative_to(folder):
        raise ValueError(f"The archive holds {member.name!r}, which would lie outside {folder}; it is not unpacked.")
    return target
