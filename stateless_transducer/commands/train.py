"""``transducer train``: prepared data -> checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import Suppress, arg

from stateless_transducer.commands.shared.console import complain, say
from stateless_transducer.commands.shared.flags import named_options, parse
from stateless_transducer.commands.shared.idle import refuse_idle, refuse_idle_training
from stateless_transducer.commands.shared.sizes import replaced, sized
from stateless_transducer.data.config import DataConfig
from stateless_transducer.model.config import (
    ENCODER_CONFIGS,
    ConformerConfig,
    EncoderConfig,
    ModelConfig,
    ZipformerConfig,
)
from stateless_transducer.model.sizes import SizeName, named_sizes
from stateless_transducer.options import ADVANCED
from stateless_transducer.training.config import TrainConfig
from stateless_transducer.wording import counted

if TYPE_CHECKING:
    from stateless_transducer.data.batches import TrainingSet
    from stateless_transducer.text.tokens import TokenTable
    from stateless_transducer.training.distributed import Rank
    from stateless_transducer.training.state import Resumable
    from stateless_transducer.training.stopping import StopRequest
    from stateless_transducer.training.task import StartingModel, TransducerTask


ZipformerSize = Literal["s", "m", "l"]
_PUBLISHED_SIZES: dict[str, SizeName] = {"s": "small", "m": "medium", "l": "large"}
"""Value of ``--zipformer-size`` -> that of ``--size`` with the same sizes of the model."""


@dataclass(frozen=True)
class ModelFlags(ModelConfig):
    """Model: the sizes that a user chooses; the others follow from tokens and features."""

    vocab_size: Annotated[int, Suppress] = 4336
    feature_dim: Annotated[int, Suppress] = 80
    blank_id: Annotated[int, Suppress] = 0


@dataclass(frozen=True)
class Options:
    """Options of ``transducer train``."""

    encoder: Annotated[str, arg(metavar="{" + ",".join(ENCODER_CONFIGS) + "}"), ADVANCED] = ConformerConfig.kind
    """Kind of encoder; it decides which options set its sizes."""
    zipformer_size: Annotated[ZipformerSize | None, ADVANCED] = None
    """Published sizes of a Zipformer, by default m: the model of `--size` small, medium or large, without its batches
    and schedule. Options for single sizes override them."""
    size: Literal["auto"] | SizeName | None = None
    """Size of the model, with matching epochs, batches and learning rate; other options override them. auto: chosen by
    hours of speech, device and free memory. By default, the tutorial's numbers, for 450 hours and a GPU."""
    chosen: Annotated[tuple[str, ...], Suppress] = ()
    passed_sizes: Annotated[tuple[str, ...], Suppress] = ()
    lang_dir: Path = Path("data/lang_char")
    """Folder with tokens.txt."""
    train_split: Annotated[str, ADVANCED] = "train"
    """Split to train on."""
    dev_split: Annotated[str, ADVANCED] = "dev"
    """Split to validate on, if it is prepared."""
    dry_run: bool = False
    """Report model, batches, memory and time of the run, measured on a few batches, without training."""
    find_max_duration: bool = False
    """Try the largest batches for several values of `--max-duration` and propose one, without training."""
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelFlags = field(default_factory=ModelFlags)

    def __post_init__(self) -> None:
        if self.encoder not in ENCODER_CONFIGS:
            raise ValueError(f"`encoder` must be one of {', '.join(ENCODER_CONFIGS)}, but is {self.encoder!r}.")
        if self.size is not None and self.zipformer_size is not None:
            raise ValueError(
                f"`size` {self.size} and `zipformer_size` {self.zipformer_size} both choose the sizes: pass one."
            )


TrainOptions = TypeVar("TrainOptions", bound=Options)


def parse_options(
    options: type[TrainOptions], program: str, arguments: list[str], description: str, default: TrainOptions
) -> TrainOptions:
    """Parse the options of training, with the sizes of the encoder that ``--encoder`` names, and those of ``--size``.

    Raises:
        ValueError: An option belongs to another encoder, or no size can be chosen.
    """
    defaults = default.model.sizes()
    kind = _value_of("--encoder", arguments) or default.encoder
    config = ENCODER_CONFIGS.get(kind)
    if config is not None:
        _refuse_other_encoders(arguments, config)
        if config is not type(default.model.encoder):
            default = _with_encoder(default, config)
            defaults = {**default.model.sizes(), "encoder": defaults["encoder"]}
    size = _value_of("--zipformer-size", arguments)
    if size is not None and config is not None:
        if config is not ZipformerConfig:
            raise ValueError(
                f"`--zipformer-size` is an option of `--encoder zipformer`, not of `--encoder {config.kind}`."
            )
        # the parser reports other names
        if size in _PUBLISHED_SIZES:
            default = replaced(default, named_sizes(config.kind, _PUBLISHED_SIZES[size]))
    parsed = parse(options, program, arguments, description, default=default)
    changed = (name for name, value in parsed.model.sizes().items() if value != defaults[name])
    parsed = replace(parsed, passed_sizes=tuple(changed))
    if parsed.size is None:
        return parsed
    return with_size(parsed, arguments, tell=say if parsed.dry_run else complain)


def with_size(options: TrainOptions, arguments: Sequence[str], *, tell: Callable[[str], None]) -> TrainOptions:
    """Return the options with those that ``--size`` sets and the command line does not; report them."""

    def build_task(options: Options) -> TransducerTask:
        return _task(options, "", warn=lambda text: None, tell=lambda text: None)

    return sized(options, arguments, build_task, tell)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """Return the value of a flag on which the defaults of others depend."""
    chosen = None
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, is_joined, value = word.partition("=")
        if name.replace("_", "-") == flag:
            chosen = value if is_joined else following
    return chosen


def _with_encoder(default: TrainOptions, config: type[EncoderConfig]) -> TrainOptions:
    """Return options with another encoder, and its usual decoder and joiner."""
    model = replace(default.model, encoder=config(), decoder=config.usual_decoder, joiner=config.usual_joiner)
    return replace(default, encoder=config.kind, model=model)


def _refuse_other_encoders(arguments: list[str], config: type[EncoderConfig]) -> None:
    sizes = {size.name for size in fields(config)}
    for encoder in ENCODER_CONFIGS.values():
        for name in sorted(named_options(arguments) & {size.name for size in fields(encoder)} - sizes):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"`{flag}` is an option of `--encoder {encoder.kind}`, not of `--encoder {config.kind}`.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Train a stateless transducer; defaults are the tutorial's."
    options = parse_options(Options, program, arguments, description, Options())
    # not in `run`: recipe scripts set options for several cases
    refuse_idle_training(options.train, options.data, encoder=options.encoder)
    run(options, command=shlex.join([*program.split(), *arguments]))
    return 0


def run(options: Options, *, command: str) -> None:
    """Train on the processes of this machine, or look ahead."""
    from stateless_transducer.training.distributed import is_first_process, launch
    from stateless_transducer.training.progress import make_log_dir
    from stateless_transducer.training.run_lock import run_lock
    from stateless_transducer.training.state import find_resumable

    if options.dry_run or options.find_max_duration:
        _look_ahead(options, command)
        return
    config = options.train
    make_log_dir(config.exp_dir / "log")
    with run_lock(config.exp_dir, command, warn=complain) if is_first_process() else nullcontext():
        # before any process starts: report errors, and write the indexes once
        resumable = find_resumable(config)
        if resumable is not None:
            resumable.check()
            if config.world_size > 1:
                resumable.release()
        _task(options, command, warn=lambda text: None, tell=lambda text: None)
        launch(
            _train_on_rank, options, command, resumable, world_size=config.world_size, master_port=config.master_port
        )


def _train_on_rank(rank: Rank, options: Options, command: str, resumable: Resumable | None) -> None:
    from stateless_transducer.training.stopping import StopRequest

    with StopRequest(is_announced=rank.is_main) as stop:
        _train(rank, options, command, stop, resumable)


def _train(rank: Rank, options: Options, command: str, stop: StopRequest, resumable: Resumable | None) -> None:
    from stateless_transducer.data.manifests import noise_cuts_path
    from stateless_transducer.training.progress import describe_run, open_log
    from stateless_transducer.training.trainer import Trainer

    config, data = options.train, options.data
    log = open_log(
        config.exp_dir / "log", "log-train", rank=rank.rank, world_size=rank.world_size, to_console=rank.is_main
    )
    log.info("Training started")
    log.info(f"Device: {rank.device}")
    log.info(f"Command: {command}; all options: {config.exp_dir / 'config.json'}")
    task = _task(options, command, warn=log.warning, tell=log.info)
    if rank.is_main:
        describe_run(config.exp_dir, {**asdict(options), "model": task.start.model_config.sizes()}, command)
    noise = noise_cuts_path(data.manifest_dir)
    if data.enable_musan and not noise.exists():
        log.warning(f"No noise is mixed in: {noise} is missing. Create it with `transducer prepare musan`")
    if Trainer(task, rank, log, stop, resumable).run():
        log.info("Done!")


def _task(
    options: Options, command: str, *, warn: Callable[[str], None], tell: Callable[[str], None]
) -> TransducerTask:
    """Read the inputs of training; warn of skipped utterances, report the initial model."""
    from stateless_transducer.data.batches import cuts_path, load_index, trainable, with_loss
    from stateless_transducer.text.tokens import UNKNOWN, TokenTable
    from stateless_transducer.training.task import TrainingData, TransducerTask

    data, tokens = options.data, TokenTable.read(options.lang_dir)
    start = _start(options, tokens, tell)
    encoder = start.model_config.encoder
    if options.train.compile and not encoder.can_compile:
        raise ValueError(f"`compile` is true, but a {encoder.kind} cannot be compiled for training. Remove it.")
    if not start.model_config.is_causal:
        refuse_idle(options.train.optim, "`causal=True`", names=["whole_epochs"])
    subsampling = encoder.subsampling

    def warn_of_skipped(utterances: TrainingSet, name: str) -> None:
        for reason, numbers in utterances.left_out.items():
            left_out = counted(len(numbers), "utterance")
            warn(f"Left out {left_out} of {name} {reason}: {utterances.index.name_some(numbers)}")

    def training_utterances(prefix: str, option: str) -> TrainingSet:
        index = load_index(data.manifest_dir, prefix, options.train_split, option=option)
        utterances = trainable(index, tokens, data, subsampling)
        warn_of_skipped(utterances, prefix)
        if unknown := int(utterances.index.num_unknown(tokens)[utterances.numbers].sum()):
            warn(
                f"{unknown} of {utterances.lengths.num_tokens.sum()} tokens of {prefix} are not in {options.lang_dir} "
                f"and count as {UNKNOWN}"
            )
        return utterances

    training_set = training_utterances(data.prefix, "prefix")
    mixed_set = None if data.mix_prefix is None else training_utterances(data.mix_prefix, "mix_prefix")
    dev_set = None
    if cuts_path(data.manifest_dir, data.prefix, options.dev_split) is not None:
        dev_index = load_index(data.manifest_dir, data.prefix, options.dev_split)
        dev_set = with_loss(dev_index, tokens, subsampling)
        warn_of_skipped(dev_set, options.dev_split)
    if dev_set is None or not len(dev_set):
        warn(f"No split {options.dev_split!r} is prepared: there is no validation loss")
    has_dev_set = dev_set is not None and len(dev_set) > 0
    data_sets = TrainingData(data, training_set, mixed_set, dev_set if has_dev_set else None)
    return TransducerTask(options.train, start, data_sets, command)


def _start(options: Options, tokens: TokenTable, tell: Callable[[str], None]) -> StartingModel:
    """Return the model of ``--init-from``, or a new one with the sizes of the options."""
    from stateless_transducer.features import FbankConfig
    from stateless_transducer.training.task import StartingModel

    path = options.train.fine_tune.init_from
    if path is None:
        sizes = {**options.model.sizes(), "vocab_size": len(tokens), "blank_id": tokens.blank_id}
        return StartingModel(ModelConfig.from_sizes(sizes), FbankConfig(), tokens)
    from stateless_transducer.commands.shared.models import check_front_end, find_model
    from stateless_transducer.recognition.model import load_pretrained
    from stateless_transducer.training.finetune import adapted_config, describe_tokens

    checkpoint = load_pretrained(find_model(path, forms=("checkpoint",)))
    check_front_end("init_from", path, checkpoint.fbank_config)
    _refuse_other_sizes(options, checkpoint.model_config.sizes(), path)
    config = adapted_config(checkpoint, tokens, dropout=options.model.encoder.dropout)
    tell(f"Starting from {path}, with its sizes: {describe_tokens(checkpoint.token_table, tokens)}")
    return StartingModel(config, checkpoint.fbank_config, tokens, init_from=checkpoint)


def _refuse_other_sizes(options: Options, sizes: Mapping[str, Any], path: str) -> None:
    """Refuse sizes that are passed and differ from those of the initial model; dropout is not a size."""
    passed = options.model.sizes()
    for name in options.passed_sizes:
        value = passed[name]
        if name != "dropout" and value != sizes.get(name):
            raise ValueError(
                f"`{name}` is {value}, but the model of `init_from` {path} has {sizes.get(name, 'no such size')}. "
                "Remove the option: the sizes are those of the model."
            )


def _look_ahead(options: Options, command: str) -> None:
    """Run ``--dry-run`` or ``--find-max-duration``."""
    from stateless_transducer.training.distributed import Rank, device_of
    from stateless_transducer.training.memory import describe_task, find_max_duration
    from stateless_transducer.training.speed import describe_time

    task = _task(options, command, warn=complain, tell=complain)
    rank = Rank(0, options.train.world_size, device_of(0))
    if options.find_max_duration:
        say(find_max_duration(task, rank, say))
        return
    say(describe_task(task, rank))
    say(describe_time(task, rank))
