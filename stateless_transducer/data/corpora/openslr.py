"""AISHELL-1, MUSAN (arXiv 1510.08484) and yesno on OpenSLR: their archives, and the folders these unpack to."""

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
    """An archive on OpenSLR."""

    number: int
    """Number of the resource."""
    name: str
    """Name of the file."""
    md5: str
    """Checksum of the file."""
    folder: str
    """Folder that it unpacks to, in the download folder."""


# checksums used by the recipes of several toolkits
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "aishell": (
        # the small archive first: if the folder of the other exists, both do
        Archive(33, "resource_aishell.tgz", "957d480a0fcac85fc18e550756f624e5", "aishell/resource_aishell"),
        Archive(33, "data_aishell.tgz", "2f494334227864a8a8fec932999db9d8", "aishell/data_aishell"),
    ),
    "musan": (Archive(17, "musan.tar.gz", "0c472d4fc0c5141eca47ad1ffeb2a7df", "musan"),),
    "yesno": (Archive(1, "waves_yesno.tar.gz", "962ff6e904d2df1126132ecec6978786", "waves_yesno"),),
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
    """Download and unpack the archives of a corpus whose folders do not exist.

    Args:
        corpus: key of `ARCHIVES`.
        dl_dir: folder for the archives and their contents.
        base_url: URL to which the number of the resource is appended.
        checksum: whether to verify the checksums of the archives.
        say: prints a line for the user.
        bar: shows the progress of a step, in bytes.

    Raises:
        OSError: an archive cannot be downloaded.
        ValueError: an archive is damaged.
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
