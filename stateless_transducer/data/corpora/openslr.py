"""AISHELL-1 and MUSAN (arXiv 1510.08484) from OpenSLR: which archives, and the folders that they become."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from stateless_transducer.data.download import Progress, fetch
from stateless_transducer.data.unpack import unpack

BASE_URL = "https://www.openslr.org/resources"


@dataclass(frozen=True)
class Archive:
    """One file of OpenSLR."""

    number: int
    """Of the resource."""
    name: str
    """Of the file."""
    md5: str
    """Of the whole file."""
    folder: str
    """That it becomes, in the download folder."""


# the checksums to which the recipes of several toolkits hold these archives
ARCHIVES = {
    "aishell": (
        # the small one first: then the other one, once there, tells that both are
        Archive(33, "resource_aishell.tgz", "957d480a0fcac85fc18e550756f624e5", "aishell/resource_aishell"),
        Archive(33, "data_aishell.tgz", "2f494334227864a8a8fec932999db9d8", "aishell/data_aishell"),
    ),
    "musan": (Archive(17, "musan.tar.gz", "0c472d4fc0c5141eca47ad1ffeb2a7df", "musan"),),
}


def obtain(
    corpus: str,
    dl_dir: Path,
    *,
    base_url: str,
    checksum: bool,
    say: Callable[[str], None],
    bar: Callable[[str], AbstractContextManager[Progress]],
) -> None:
    """Download and unpack what is not there yet.

    Args:
        corpus: of `ARCHIVES`.
        dl_dir: for the archives and the folders.
        base_url: what the number of the resource is appended to.
        checksum: whether the archives must be the ones of the table.
        say: tells the user a line.
        bar: shows the progress of a part, in bytes.

    Raises:
        OSError: it cannot be fetched.
        ValueError: what was fetched is damaged.
    """
    for archive in ARCHIVES[corpus]:
        folder, packed = dl_dir / archive.folder, dl_dir / archive.name
        if folder.is_dir():
            say(f"{folder}: already there - skipping")
            continue
        url = f"{base_url.rstrip('/')}/{archive.number}/{archive.name}"
        say(f"{packed}: " + ("already there" if packed.exists() else f"from {url}"))
        fetch(url, packed, md5=archive.md5 if checksum else None, say=say, bar=bar)
        with bar(f"unpacking {archive.name}") as progress:
            unpack(packed, folder, progress=progress)
        say(f"{folder}: unpacked; {packed} is not needed any more")
