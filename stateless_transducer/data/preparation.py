"""A corpus that has been read -> everything training wants, each part made once.

<data>/manifests/<prefix>_*.jsonl.gz   recordings, supervisions, problems
<data>/fbank/<prefix>_cuts_*.jsonl.gz  cuts with stored features
<data>/lang_char or lang_word/         tokens
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stateless_transducer.data.config import Limits, PrepareConfig
from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance, describe_problems, problem_rows
from stateless_transducer.data.fbank import compute_features
from stateless_transducer.data.manifests import manifest_path, problems_path, write_manifests
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import write_text

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def prepare_manifests(
    read: Callable[[], tuple[Sequence[Utterance], Sequence[Problem]]],
    *,
    source: Path,
    transcripts: Path,
    prefix: str,
    config: PrepareConfig,
    limits: Limits,
    say: Say,
    bar: Bar,
) -> bool:
    """Read and check a corpus, unless its manifests are there already and nothing they depend on has changed.

    Args:
        read: gives the utterances, and what is wrong with the others.
        source: folder or table that is read.
        transcripts: the file whose change tells that the corpus has changed.
        prefix: name of the corpus.
        config: where to, and how.
        limits: what utterances must keep to.
        say: tells the user a line.
        bar: shows the progress of a part.

    Returns:
        Whether it was read now; then features and tokens of an earlier reading are stale, and the features are gone.

    Raises:
        ValueError: the manifests that are there are another source's.
    """
    done = config.manifest_dir / f".{prefix}_manifests.done"
    now = _stamp(source, transcripts, config, limits)
    if done.exists():
        before = json.loads(done.read_text(encoding="utf-8"))
        if before["source"] != now["source"]:
            raise ValueError(
                f"{config.manifest_dir}/{prefix}_* were made from {before['source']}, not from {source}. Choose "
                f"another `--data-dir`, or remove {done} to make them anew."
            )
        if before == now:
            say(f"{config.manifest_dir}/{prefix}_*: already there - skipping (remove {done} to make them again)")
            return False
        changed = ", ".join(key for key in now if before.get(key) != now[key])
        say(f"{config.manifest_dir}/{prefix}_*: made anew, since these changed: {changed}")
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
        say(f"all of them: {problems_path(config.manifest_dir, prefix)}")
    write_text(done, json.dumps(now) + "\n")
    return True


def _stamp(source: Path, transcripts: Path, config: PrepareConfig, limits: Limits) -> dict[str, Any]:
    """On what prepared data depend, and what is cheap to look at."""
    found = transcripts.stat() if transcripts.is_file() else None
    return {
        "source": str(source.resolve()),
        "transcripts": None if found is None else [found.st_size, found.st_mtime_ns],
        "speeds": list(config.all_speeds),
        "limits": asdict(limits),
    }


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
                    speeds=config.all_speeds if split == "train" else (1.0,),
                    pool=pool,
                    progress=progress,
                )
            with problems_path(config.manifest_dir, prefix).open("a", encoding="utf-8") as table:
                table.write(problem_rows(problems))
            say(f"{cuts}: done" + (f", left out:\n{describe_problems(problems)}" if problems else ""))
            if problems and config.strict:
                cuts.unlink()
                raise ValueError(f"`--strict`: {describe_problems(problems)}")
