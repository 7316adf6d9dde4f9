"""``transducer prepare table``: a user's own data, ready for training."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from tyro.conf import Positional

from stateless_transducer.commands.shared.console import progress_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.data.config import DataConfig, Limits, PrepareConfig, TokenConfig
from stateless_transducer.data.corpora.kaldi import kaldi_files, kaldi_folders, read_kaldi
from stateless_transducer.data.corpora.table import TableColumns, hold_out, paired_files, read_folder, read_table
from stateless_transducer.data.corpora.utterance import Problem, Utterance
from stateless_transducer.files import fingerprint, size_and_time
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.text.tokens import TokenTable, build_token_table, has_ideographs, lang_corpus

_NUM_EXAMPLES = 20
_SMALL_S = 100 * 3600.0
_NUM_EPOCHS, _WARM_STEP, _FEW_BATCHES = 20, 1000, 1000
_FOR_SMALL_CORPORA = (
    "--optimizer adamw --peak-lr 1e-3 --warm-step {} --feature-norm level --ctc-loss-scale 0.5 --ctc-epochs 10 "
    "--num-epochs {}"
)


@dataclass(frozen=True)
class Options:
    """Options of ``transducer prepare table``."""

    source: Annotated[Path, Positional]
    """Table (.tsv, .csv, .jsonl); folder of sound files, each with a .txt of the same name; or data folder of Kaldi
    (wav.scp, text, optionally segments and utt2spk), or a folder of such."""
    prefix: str = "table"
    """Name of the corpus, with which manifests and cuts begin."""
    audio_dir: Path | None = None
    """Folder that relative paths in the table refer to; by default, the table's folder."""
    dev_share: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    """Share of the training utterances to hold out as dev, by speaker, if there is no dev split; 0: none."""
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
    description = "Manifests, fbank features and tokens of your own data, each made once."
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
    is_new = prepare_manifests(
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
    tokens = _token_table(lang_dir, texts["train"], options, is_new)
    lacking = [line for split in splits for line in _lacking(tokens, split, texts[split])]
    if lacking:
        report = f"units that {lang_dir}/tokens.txt lacks, which the model cannot recognize:\n" + "\n".join(lacking)
        if config.strict:
            raise ValueError(f"`--strict`: {report}")
        say(report)
    _print_next_command(options, lang_dir)


def _print_next_command(options: Options, lang_dir: Path) -> None:
    """Print the command to train with; small corpora need other learning rates than the tutorial."""
    from stateless_transducer.data.manifests import read_durations

    config, usual = options.prepare, DataConfig().max_utterance_s
    originals = read_durations(config.manifest_dir, options.prefix, "train")
    durations = [duration / speed for duration in originals for speed in config.all_speeds]
    num_longer, longest = sum(duration > usual for duration in durations), math.ceil(max(durations))
    command = f"transducer train --manifest-dir {config.fbank_dir} --prefix {options.prefix} --lang-dir {lang_dir}"
    if num_longer:
        copies = " and their copies at other speeds" if len(config.all_speeds) > 1 else ""
        utterances = f"{len(durations)} training utterances{copies}"
        say(f"{num_longer} of {utterances} are longer than {usual:g} s: skipped by default")
        command += f" --max-utterance-s {longest}"
    if sum(durations) < _SMALL_S:
        num_batches = _NUM_EPOCHS * _batches_of_an_epoch(durations)
        if num_batches < _FEW_BATCHES:
            say(
                f"{_NUM_EPOCHS} epochs are {num_batches} batches, too few for most models to emit tokens: a "
                f"`--max-duration` below {DataConfig().max_duration:g}, such as 20 or 10, gives more batches, and "
                "`--init-from` starts from a trained model"
            )
        # at most a fifth of all batches
        warm_step = min(_WARM_STEP, max(10, num_batches // 50 * 10))
        command += f" \\\n  {_FOR_SMALL_CORPORA.format(warm_step, _NUM_EPOCHS)}"
    say(f"next: {command}")


def _batches_of_an_epoch(durations: Sequence[float]) -> int:
    """Return the number of batches per epoch with the default options of `transducer train`."""
    import numpy as np

    from stateless_transducer.data.plan import BatchLimits, Lengths, plan_epoch
    from stateless_transducer.features import FbankConfig
    from stateless_transducer.model.config import ModelConfig

    usual, seconds = DataConfig(), np.array(durations)
    frame_shift_s, subsampling = FbankConfig().frame_shift_s, ModelConfig(vocab_size=1).encoder.subsampling
    num_frames, num_tokens = (seconds / frame_shift_s).astype(int), np.zeros(len(seconds), int)
    lengths = Lengths(seconds, num_frames, num_tokens, frame_shift_s, subsampling)
    limits, random = BatchLimits(usual.max_duration), np.random.default_rng(0)
    return len(plan_epoch(lengths, limits, num_buckets=usual.num_buckets, random=random))


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


def _token_table(lang_dir: Path, train_texts: Sequence[str], options: Options, is_new: bool) -> TokenTable:
    if (lang_dir / "tokens.txt").exists() and not is_new:
        say(f"{lang_dir}/tokens.txt: already there - skipping")
        return TokenTable.read(lang_dir)
    kind = options.tokens
    tokens = build_token_table(train_texts, kind.token, keep_spaces=kind.token == "char", vocab_size=kind.num_pieces)
    if tokens.unit == "bpe" and any(map(has_ideographs, train_texts)):
        say("`--token bpe` is for alphabetic scripts; in Chinese, a sentence is one word: `--token char`?")
    tokens.write(lang_dir, corpus=options.prefix)
    say(f"{lang_dir}: {kind.told(len(tokens))}")
    return tokens


def _lacking(tokens: TokenTable, split: str, texts: Sequence[str]) -> list[str]:
    """Return a line about the units of a split that the table lacks, if any."""
    counts = Counter(unit for text in texts for unit in tokens.unknown_units(text))
    if not counts:
        return []
    total = sum(len(tokens.split(text)) for text in texts)
    examples = " ".join(f"{unit} ({count})" for unit, count in counts.most_common(_NUM_EXAMPLES))
    ellipsis = " ..." if len(counts) > _NUM_EXAMPLES else ""
    return [f"  {split}: {counts.total()} of {total} units, {len(counts)} distinct: {examples}{ellipsis}"]
