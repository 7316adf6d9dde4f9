"""``transducer prepare table``: a user's own data, ready for training."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from tyro.conf import Positional

from stateless_transducer.commands import train
from stateless_transducer.commands.shared.console import progress_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.config import DataConfig, Limits, PrepareConfig, TokenConfig
from stateless_transducer.data.corpora.kaldi import kaldi_files, kaldi_folders, read_kaldi
from stateless_transducer.data.corpora.table import TableColumns, hold_out, paired_files, read_folder, read_table
from stateless_transducer.data.corpora.utterance import Problem, Utterance
from stateless_transducer.files import fingerprint, size_and_time
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.text.normalize import normalize, suspect_characters
from stateless_transducer.text.tokens import TokenTable, build_token_table, has_ideographs, lang_corpus
from stateless_transducer.training.config import TrainConfig

_NUM_EXAMPLES = 20
_LITTLE_S = 3600.0
"""Seconds of speech below which a new model seldom generalizes."""


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare table``."""

    source: Annotated[Path, Positional]
    """Table (.tsv, .csv, .jsonl); folder of sound files, each with a .txt of the same name; or Kaldi data folder
    (wav.scp, text, optionally segments and utt2spk), or a folder of such folders."""
    prefix: str = "table"
    """Name of the corpus, with which the names of manifests and cuts begin."""
    audio_dir: Path | None = None
    """Folder that relative paths in the table refer to; by default, the table's folder."""
    dev_share: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    """Share of the training utterances to hold out as dev, by speaker, if there is no dev split; 0: none."""
    normalize_text: bool = False
    """Convert texts to lower case and to the usual forms of characters (NFKC), and remove punctuation. Digits stay:
    spell out numbers in the source."""
    tokens: TokenConfig = field(default_factory=TokenConfig)
    columns: Annotated[TableColumns, ADVANCED] = field(default_factory=TableColumns)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not re.fullmatch(r"[\w.-]+", self.prefix):
            raise ValueError(f"`prefix` must be letters, digits and `_.-`, but is {self.prefix!r}.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Prepare manifests, fbank features and tokens of your own data; skip finished steps."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Prepare manifests, features and tokens; report units without a token.

    Raises:
        ValueError: The table does not exist or has no usable row; with ``strict`` also any problem, or a unit of dev or
            test that train lacks.
    """
    from stateless_transducer.data.manifests import read_texts
    from stateless_transducer.data.preparation import prepare_features, prepare_manifests, prepared_splits

    config = options.prepare
    if not options.source.exists():
        raise ValueError(f"{options.source}: no such table or folder.")
    prepare_manifests(
        lambda: _read(options),
        source=options.source,
        depends_on=_dependencies(options),
        prefix=options.prefix,
        config=config,
        limits=options.limits,
        say=say,
        bar=progress_bar,
    )
    splits = prepared_splits(config.manifest_dir, options.prefix)
    if "train" not in splits:
        prepare_features(options.prefix, config, say=say, bar=progress_bar)
        say(
            "no split train, hence no tokens: enough for `transducer decode --test-sets`. To train, write `train` into "
            "the column of the splits (`--split-column`), or into the name of the folder with the training data."
        )
        return
    if "dev" not in splits:
        say("no split dev: training will show no validation loss; `--dev-share 0.05` holds out a part of train")
    prepare_features(options.prefix, config, say=say, bar=progress_bar)
    texts = {split: read_texts(config.manifest_dir, options.prefix, split) for split in splits}
    lang_dir = _lang_dir(options)
    tokens = _token_table(lang_dir, texts["train"], options)
    for line in _noise(texts["train"], options):
        say(line)
    lacking = [line for split in splits for line in _lacking(tokens, split, texts[split])]
    if lacking:
        report = f"units that {lang_dir}/tokens.txt lacks, which the model cannot recognize:\n" + "\n".join(lacking)
        if config.strict:
            raise ValueError(f"`--strict`: {report}")
        say(report)
    _print_next_command(options, lang_dir)


def _print_next_command(options: Options, lang_dir: Path) -> None:
    """Print the command to train with, if training can use the corpus, and what it would choose on this machine."""
    from stateless_transducer.data.manifests import read_durations

    config, exp_dir = options.prepare, _unused_folder("exp")
    data = DataConfig(manifest_dir=config.fbank_dir, prefix=options.prefix)
    training = train.Options(size="auto", lang_dir=lang_dir, train=TrainConfig(exp_dir=exp_dir), data=data)
    choice: list[str] = []
    try:
        train.with_size(training, (), tell=choice.append)
    except ValueError as err:
        say(f"no training yet: {err} Longer recordings help, or larger tokens (`--token word` or `--token bpe`).")
        return
    say(choice[0])
    seconds = sum(read_durations(config.manifest_dir, options.prefix, "train"))
    if seconds < _LITTLE_S:
        say(
            f"{seconds / 60:.1f} minutes of speech are little for a new model; if you have a trained one, pass "
            "`--init-from` in place of `--size` (docs/training.md)"
        )
    command = ["transducer", "train", "--manifest-dir", config.fbank_dir, "--prefix", options.prefix]
    command += ["--lang-dir", lang_dir, "--exp-dir", exp_dir, "--size", "auto", "--resume", "true"]
    say(f"next: {shlex.join(map(str, command))}")


def _unused_folder(name: str) -> Path:
    """Return a folder that does not exist: ``name``, ``name-2`` and so on."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def _read(options: Options) -> tuple[list[Utterance], list[Problem]]:
    """Read the utterances of the source, and hold out a part of them if requested."""
    source = options.source
    if kaldi_folders(source):
        if options.columns != TableColumns():
            raise ValueError(f"`--...-column` are for tables, but {source} is a folder of Kaldi's.")
        utterances, problems = read_kaldi(source, audio_dir=options.audio_dir)
    elif source.is_dir():
        if options.audio_dir is not None or options.columns != TableColumns():
            raise ValueError(f"`--audio-dir` and `--...-column` are for tables, but {source} is a folder.")
        utterances, problems = read_folder(source)
    else:
        utterances, problems = read_table(source, options.columns, audio_dir=options.audio_dir)
    if options.normalize_text:
        utterances = [replace(utterance, text=normalize(utterance.text)) for utterance in utterances]
    if options.dev_share:
        utterances, message = hold_out(utterances, options.dev_share)
        say(message)
    return utterances, problems


def _dependencies(options: Options) -> dict[str, Any]:
    """Return the inputs of the utterances, which are read again after a change of these."""
    source = options.source
    if source.is_dir():
        source_name, state = "the files", fingerprint(kaldi_files(source) or paired_files(source))
    else:
        source_name, state = "transcripts", size_and_time(source)
    columns = {f"--{name.replace('_', '-')}": value for name, value in asdict(options.columns).items()}
    return {
        source_name: state,
        "--dev-share": options.dev_share,
        "--normalize-text": options.normalize_text,
        "--audio-dir": None if options.audio_dir is None else str(options.audio_dir.resolve()),
        **columns,
    }


def _lang_dir(options: Options) -> Path:
    """Return the folder of the tokens: ``lang_char`` or the like, with the corpus in the name if another one has it."""
    data_dir, usual = options.prepare.data_dir, f"lang_{options.tokens.name}"
    if not (data_dir / usual / "tokens.txt").exists():
        return data_dir / usual
    owner = lang_corpus(data_dir / usual)
    if owner == options.prefix:
        return data_dir / usual
    say(f"{data_dir / usual} has the tokens of {owner or 'another corpus'} and is left unchanged")
    return data_dir / f"lang_{options.prefix}_{options.tokens.name}"


def _token_table(lang_dir: Path, train_texts: Sequence[str], options: Options) -> TokenTable:
    """Return the tokens in a folder, or build and write them if there are none or they are older than the corpus."""
    from stateless_transducer.data.preparation import manifests_stamp

    path, stamp = lang_dir / "tokens.txt", manifests_stamp(options.prepare.manifest_dir, options.prefix)
    if path.exists() and path.stat().st_mtime_ns >= stamp.stat().st_mtime_ns:
        say(f"{lang_dir}/tokens.txt: already there - skipping")
        return TokenTable.read(lang_dir)
    kind = options.tokens
    tokens = build_token_table(train_texts, kind.token, keep_spaces=kind.token == "char", vocab_size=kind.num_pieces)
    if tokens.unit == "bpe" and any(map(has_ideographs, train_texts)):
        say("`--token bpe` is for alphabetic scripts; in Chinese, a sentence is one word: `--token char` or `bbpe`?")
    tokens.write(lang_dir, corpus=options.prefix)
    say(f"{lang_dir}: {kind.told(len(tokens))}")
    return tokens


def _noise(texts: Sequence[str], options: Options) -> list[str]:
    """Return lines about the characters that look like noise, and a way out; none if there are none."""
    suspects = suspect_characters(texts)
    if not suspects:
        return []
    lines = [f"  {reason}: {_examples(counts)}" for reason, counts in suspects.items()]
    removed = "" if options.normalize_text else "; `--normalize-text true` unifies case and forms, removes punctuation"
    return ["characters of the training texts that look like noise" + removed + ":", *lines]


def _examples(counts: Counter[str]) -> str:
    examples = " ".join(f"{unit} ({count})" for unit, count in counts.most_common(_NUM_EXAMPLES))
    return examples + (" ..." if len(counts) > _NUM_EXAMPLES else "")


def _lacking(tokens: TokenTable, split: str, texts: Sequence[str]) -> list[str]:
    """Return a line about the units of a split that the table lacks, if any."""
    counts = Counter(unit for text in texts for unit in tokens.unknown_units(text))
    if not counts:
        return []
    total = sum(len(tokens.split(text)) for text in texts)
    return [f"  {split}: {counts.total()} of {total} units, {len(counts)} distinct: {_examples(counts)}"]
