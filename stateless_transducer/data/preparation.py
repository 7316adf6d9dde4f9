"""A corpus that has been read -> everything training wants, each part made once.

<data>/manifests/<prefix>_*.jsonl.gz   recordings, supervisions, problems
<data>/fbank/<prefix>_cuts_*.jsonl.gz  cuts with stored features
<data>/lang_char or lang_word/         tokens
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from stateless_transducer.data.config import Limits, PrepareConfig
from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance, describe_problems
from stateless_transducer.data.fbank import SPEEDS, compute_features
from stateless_transducer.data.manifests import manifest_path, write_manifests
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import write_text

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def prepare_manifests(
    read: Callable[[], tuple[Sequence[Utterance], Sequence[Problem]]],
    *,
    source: Path,
    prefix: str,
    config: PrepareConfig,
    limits: Limits,
    say: Say,
    bar: Bar,
) -> bool:
    """Read and check a corpus, unless its manifests are there already.

    Returns:
        Whether it was read now; then features and tokens of an earlier reading are stale, and the features are gone.

    Raises:
        ValueError: the manifests that are there are another source's.
    """
    done = config.manifest_dir / f".{prefix}_manifests.done"
    if done.exists():
        made_from = done.read_text(encoding="utf-8").strip()
        if made_from != str(source.resolve()):
            raise ValueError(
                f"{config.manifest_dir}/{prefix}_* were made from {made_from}, not from {source}. Choose another "
                f"`--data-dir`, or remove {done} to make them anew."
            )
        say(f"{config.manifest_dir}/{prefix}_*: already there - skipping (remove {done} to make them again)")
        return False
    utterances, problems = read()
    # an utterance may have moved to another split since
    for folder, kinds in ((config.manifest_dir, ("recordings", "supervisions")), (config.fbank_dir, ("cuts",))):
        for kind in kinds:
            for stale in folder.glob(manifest_path(folder, prefix, kind, "*").name):
                stale.unlink()
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
    write_text(done, f"{source.resolve()}\n")
    return True


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
