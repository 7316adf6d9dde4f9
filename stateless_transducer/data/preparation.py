"""A corpus that has been read -> everything training wants, each part made once.

<data>/manifests/<prefix>_*.jsonl.gz   recordings, supervisions, problems
<data>/fbank/<prefix>_cuts_*.jsonl.gz  cuts with stored features
<data>/lang_char or lang_word/         tokens
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance, describe_problems
from stateless_transducer.data.fbank import SPEEDS, compute_features
from stateless_transducer.data.manifests import Limits, manifest_path, write_manifests
from stateless_transducer.features import FbankConfig

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class PrepareConfig:
    """Where prepared data go, and how."""

    data_dir: Path = Path("data")
    """Folder for manifests/, fbank/ and lang_char/ (or lang_word/)."""
    perturb_speed: bool = True
    """Add the training set at 0.9 and 1.1 times its speed."""
    num_jobs: int = min(15, os.cpu_count() or 1)
    """Processes."""
    strict: bool = False
    """Any problem with the corpus is an error."""

    def __post_init__(self) -> None:
        if self.num_jobs < 1:
            raise ValueError(f"`--num-jobs` must be at least 1, but is {self.num_jobs}.")

    @property
    def manifest_dir(self) -> Path:
        """Recordings and supervisions."""
        return self.data_dir / "manifests"

    @property
    def fbank_dir(self) -> Path:
        """Cuts and features."""
        return self.data_dir / "fbank"


def prepare_manifests(
    read: Callable[[], tuple[Sequence[Utterance], Sequence[Problem]]],
    *,
    prefix: str,
    config: PrepareConfig,
    limits: Limits,
    say: Say,
    bar: Bar,
) -> None:
    """Read and check a corpus, unless its manifests are there already."""
    done = config.manifest_dir / f".{prefix}_manifests.done"
    if done.exists():
        say(f"{config.manifest_dir}/{prefix}_*: already there - skipping (remove {done} to make them again)")
        return
    utterances, problems = read()
    with bar("checking audio") as progress:
        summary = write_manifests(
            utterances,
            problems,
            manifest_dir=config.manifest_dir,
            prefix=prefix,
            limits=limits,
            strict=config.strict,
            num_jobs=config.num_jobs,
            progress=progress,
        )
    say(summary.lines())
    if summary.problems:
        say(f"all of them: {config.manifest_dir / f'{prefix}_problems.tsv'}")
    done.touch()


def prepared_splits(manifest_dir: Path, prefix: str) -> list[str]:
    """Splits that have manifests, the usual ones first."""
    head = f"{prefix}_supervisions_"
    found = {path.name[len(head) : -len(".jsonl.gz")] for path in manifest_dir.glob(f"{head}*.jsonl.gz")}
    return [split for split in SPLITS if split in found] + sorted(found - set(SPLITS))


def prepare_features(prefix: str, config: PrepareConfig, *, say: Say, bar: Bar) -> None:
    """Features of every split, unless its cuts are there already.

    Raises:
        ValueError: ``strict``, and a sound could not be read.
    """
    # started once, and only if there is work: a new process takes seconds to load lhotse
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.num_jobs, mp_context=context) as pool:
        for split in prepared_splits(config.manifest_dir, prefix):
            cuts = manifest_path(config.fbank_dir, prefix, "cuts", split)
            if cuts.exists():
                say(f"{cuts}: already there - skipping")
                continue
            with bar(f"fbank of {split}") as progress:
                problems = compute_features(
                    split,
                    manifest_dir=config.manifest_dir,
                    output_dir=config.fbank_dir,
                    prefix=prefix,
                    config=FbankConfig(),
                    speeds=SPEEDS if split == "train" and config.perturb_speed else SPEEDS[:1],
                    pool=pool,
                    progress=progress,
                )
            say(f"{cuts}: done" + (f", left out:\n{describe_problems(problems)}" if problems else ""))
            if problems and config.strict:
                cuts.unlink()
                raise ValueError(f"`--strict`: {describe_problems(problems)}")
