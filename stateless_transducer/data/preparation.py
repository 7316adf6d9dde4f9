"""Preparation of a corpus for training: manifests, features and tokens, each computed once.

<data>/manifests/<prefix>_*.jsonl.gz   recordings, supervisions, problems
<data>/fbank/<prefix>_cuts_*.jsonl.gz  cuts with stored features
<data>/lang_char or lang_word/         tokens
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stateless_transducer.data.config import Limits, PrepareConfig, WorkConfig
from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance, describe_problems, problem_rows
from stateless_transducer.data.cutting import Cutter, Source, WholeAtSpeeds, sound_file
from stateless_transducer.data.executor import Executor, executor
from stateless_transducer.data.fbank import store_features
from stateless_transducer.data.manifests import manifest_path, problems_path, read_manifests, write_manifests
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import parse_json, write_text

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]

_UTTERANCES_PER_PART = 200


def prepare_manifests(
    read: Callable[[], tuple[Sequence[Utterance], Sequence[Problem]]],
    *,
    source: Path,
    depends_on: Mapping[str, Any],
    prefix: str,
    config: PrepareConfig,
    limits: Limits,
    say: Say,
    bar: Bar,
) -> bool:
    """Read and check a corpus, unless its manifests exist and nothing they depend on has changed.

    Args:
        read: returns the utterances, and the problems of the rest.
        source: folder or table that is read.
        depends_on: everything else that the utterances depend on, as plain values by names that users know.
        prefix: name of the corpus.
        config: folders, number of processes.
        limits: limits on usable utterances.
        say: prints a line for the user.
        bar: shows the progress of a step.

    Returns:
        Whether the corpus was read now. Then features of an earlier reading are removed, and its tokens are stale.

    Raises:
        ValueError: the existing manifests are from another source.
    """
    done = manifests_stamp(config.manifest_dir, prefix)
    now = json.loads(json.dumps({"source": str(source.resolve()), "limits": asdict(limits), **depends_on}))
    if manifests_are_there(done, now, prefix, say=say):
        return False
    utterances, problems = read()
    # from here on, the stamp is not valid
    done.unlink(missing_ok=True)
    # an utterance may have moved to another split
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


def manifests_stamp(manifest_dir: Path, prefix: str) -> Path:
    """Return the path of the file that marks manifests as complete and holds what they depend on."""
    return manifest_dir / f".{prefix}_manifests.done"


def manifests_are_there(
    done: Path, now: dict[str, Any], prefix: str, *, kinds: Sequence[str] = ("recordings", "supervisions"), say: Say
) -> bool:
    """Report whether manifests need not be made, by their stamp and what it would be now.

    Manifests beside a stamp of another program (icefall's is an empty file) are used as they are.

    Raises:
        ValueError: they are from another source.
    """
    if not done.exists():
        return False
    name, before = f"{done.parent}/{prefix}_*", _read_stamp(done)
    if "source" not in before:
        patterns = [manifest_path(done.parent, prefix, kind, "*").name for kind in kinds]
        if not all(any(done.parent.glob(pattern)) for pattern in patterns):
            return False
        say(f"{name}: already there, made by another program - skipping (remove {done} to make them again)")
        return True
    if before["source"] != now["source"]:
        raise ValueError(
            f"{name} were made from {before['source']}, not from {now['source']}. Choose another "
            f"`prefix` or `data_dir`, or remove {done} to make them anew."
        )
    # earlier versions recorded fewer values; an option that is on was not there then
    changed = [key for key in now if before.get(key, now[key] if now[key] is not True else False) != now[key]]
    if changed:
        say(f"{name}: made anew, since these changed: {', '.join(changed)}")
        return False
    say(f"{name}: already there - skipping (remove {done} to make them again)")
    return True


def _read_stamp(done: Path) -> dict[str, Any]:
    """Return the JSON object in a done-file of ours; an empty one if it is missing or of another program."""
    try:
        stamp = parse_json(done.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def prepared_splits(manifest_dir: Path, prefix: str) -> list[str]:
    """Return the splits that have manifests, the usual ones first."""
    head = f"{prefix}_supervisions_"
    splits = {path.name[len(head) : -len(".jsonl.gz")] for path in manifest_dir.glob(f"{head}*.jsonl.gz")}
    return [split for split in SPLITS if split in splits] + sorted(splits - set(SPLITS))


def prepare_features(prefix: str, config: PrepareConfig, *, say: Say, bar: Bar) -> None:
    """Compute the features of each split, unless its cuts exist at the same speeds.

    Raises:
        ValueError: there are no manifests; ``strict``, and a sound could not be read.
    """
    splits = prepared_splits(config.manifest_dir, prefix)
    if not splits or not manifests_stamp(config.manifest_dir, prefix).exists():
        raise ValueError(f"{config.manifest_dir} has no manifests of {prefix}; make them first (`step=manifests`).")
    done = config.fbank_dir / f".{prefix}.done"
    before = _read_stamp(done)
    cuts = {split: manifest_path(config.fbank_dir, prefix, "cuts", split) for split in splits}
    speeds = {split: config.all_speeds if split == "train" else (1.0,) for split in splits}
    for split in [split for split in splits if cuts[split].exists()]:
        if before.get(split, list(speeds[split])) == list(speeds[split]):
            say(f"{cuts[split]}: already there - skipping")
        else:
            say(f"{cuts[split]}: made anew, for the speeds have changed")
            cuts[split].unlink()
    todo = [split for split in splits if not cuts[split].exists()]
    if not todo:
        return
    config.fbank_dir.mkdir(parents=True, exist_ok=True)
    sources = {split: read_manifests(config.manifest_dir, prefix, split) for split in todo}
    with executor(config, config.fbank_dir, sound_file(sources[todo[0]][0][0])) as execute:
        for split in todo:
            compute_features(
                sources[split],
                WholeAtSpeeds(speeds[split]),
                cuts_path=cuts[split],
                feats_dir=config.fbank_dir / f"{prefix}_feats_{split}",
                sources_per_part=_UTTERANCES_PER_PART,
                prefix=prefix,
                config=config,
                execute=execute,
                say=say,
                bar=bar,
            )
            before[split] = speeds[split]
            write_text(done, json.dumps(before) + "\n")


def compute_features(
    sources: Sequence[Source],
    cutter: Cutter,
    *,
    cuts_path: Path,
    feats_dir: Path,
    sources_per_part: int,
    prefix: str,
    config: WorkConfig,
    execute: Executor,
    say: Say,
    bar: Bar,
) -> None:
    """Call `store_features` with progress and messages; add unusable recordings to the table of problems.

    Raises:
        ValueError: ``strict``, and a sound could not be read or is silent.
    """
    with bar(f"fbank for {cuts_path.name.removesuffix('.jsonl.gz')}") as progress:
        problems = store_features(
            sources,
            cutter,
            cuts_path=cuts_path,
            feats_dir=feats_dir,
            config=FbankConfig(),
            sources_per_part=sources_per_part,
            execute=execute,
            progress=progress,
        )
    with problems_path(config.manifest_dir, prefix).open("a", encoding="utf-8") as table:
        table.write(problem_rows(problems))
    say(f"{cuts_path}: done" + (f", left out:\n{describe_problems(problems)}" if problems else ""))
    if problems and config.strict:
        cuts_path.unlink()
        raise ValueError(f"`strict`: {describe_problems(problems)}")
