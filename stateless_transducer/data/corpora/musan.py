"""MUSAN (OpenSLR 17, arXiv 1510.08484) as its archive unpacks: music, speech and noise to mix into speech."""

from __future__ import annotations

from pathlib import Path

PARTS = ("music", "speech", "noise")


def read_musan(corpus_dir: Path) -> dict[str, list[Path]]:
    """Return the sound files of each part, sorted.

    Raises:
        ValueError: the folder is not MUSAN's, or a part is empty.
    """
    if not corpus_dir.is_dir():
        raise ValueError(f"`corpus_dir` {corpus_dir}: no such folder.")
    files = {part: sorted((corpus_dir / part).rglob("*.wav")) for part in PARTS}
    for part, paths in files.items():
        if not paths:
            raise ValueError(
                f"`corpus_dir` {corpus_dir} is not MUSAN's: {part}/ holds no wav file. "
                "Pass the folder that holds music/, speech/ and noise/."
            )
    return files
