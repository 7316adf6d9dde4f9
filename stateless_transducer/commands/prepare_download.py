"""``transducer prepare download``: a corpus of OpenSLR, unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from stateless_transducer.commands.shared.console import bytes_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.corpora.openslr import BASE_URL, obtain


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare download``."""

    corpus: Annotated[Literal["aishell", "musan", "yesno"], Positional]
    """aishell: 16 GB, and as much again unpacked; musan: 11 GB, and as much again; yesno: 5 MB."""
    dl_dir: Path = Path("download")
    """Folder for the archives and the unpacked corpora."""
    mirror: str = BASE_URL
    """URL of OpenSLR's resources; a mirror is https://openslr.elda.org/resources."""
    checksum: bool = True
    """Refuse archives that differ from the published ones."""

    def __post_init__(self) -> None:
        if not self.mirror.startswith(("http://", "https://")):
            raise ValueError(f"`mirror` must begin with http:// or https://, but is {self.mirror!r}.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Download a corpus from OpenSLR and unpack it; existing files are skipped."
    # the corpus may also be named as an option, `--corpus aishell`
    words = [word.removeprefix("--corpus=") for word in arguments if word != "--corpus"]
    run(parse(Options, program, words, description))
    return 0


def run(options: Options) -> None:
    """Download, verify and unpack the corpus."""
    obtain(
        options.corpus,
        options.dl_dir,
        base_url=options.mirror,
        checksum=options.checksum,
        say=say,
        bar=bytes_bar,
    )
