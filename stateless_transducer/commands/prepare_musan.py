"""``transducer prepare musan``: MUSAN, ready to be mixed into speech."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stateless_transducer.commands.shared.console import progress_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.config import WorkConfig


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare musan``."""

    corpus_dir: Path
    """Folder that holds music/, speech/ and noise/."""
    step: Literal["all", "manifests", "fbank"] = "all"
    """Single step to run."""
    work: WorkConfig = field(default_factory=WorkConfig)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Prepare manifests and fbank features of MUSAN, in windows of 10 s; skip finished steps."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Manifests, features."""
    from stateless_transducer.data.noise import prepare_noise_features, prepare_noise_manifests

    if options.step in ("all", "manifests"):
        prepare_noise_manifests(options.corpus_dir, options.work, say=say, bar=progress_bar)
    if options.step in ("all", "fbank"):
        prepare_noise_features(options.work, say=say, bar=progress_bar)
