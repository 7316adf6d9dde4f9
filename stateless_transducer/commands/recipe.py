"""Commands of the scripts in ``egs/aishell/ASR``: a recipe's defaults, and icefall's options.

A script sets its defaults as options of one of these commands and calls `cli.run_script`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from tyro.conf import Positional, arg

from stateless_transducer.commands import decode, train
from stateless_transducer.commands.shared.console import complain, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.icefall_sizes import IcefallSizes
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.training.averaging import Average
from stateless_transducer.training.config import TrainConfig

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint


@dataclass(frozen=True)
class IdleDataOptions:
    """Options of icefall's data without effect here."""

    bucketing_sampler: str | None = None
    """Batches always hold utterances of similar length; see `--num-buckets` of train.py."""
    concatenate_cuts: str | None = None
    """Use `--join-up-to-s` of train.py to join utterances."""
    duration_factor: str | None = None
    """See `--concatenate-cuts`."""
    gap: str | None = None
    """Use `--silence-s` of train.py to add silence around utterances."""
    return_cuts: str | None = None
    """A batch always knows its utterances."""


@dataclass(frozen=True)
class IdleTrainingOptions:
    """Options of training that icefall's decode.py takes, too: test sets are decoded whole, from long to short, as
    they are.
    """

    num_buckets: str | None = None
    shuffle: str | None = None
    drop_last: str | None = None
    enable_spec_aug: str | None = None
    spec_aug_time_warp_factor: str | None = None
    enable_musan: str | None = None


@dataclass(frozen=True)
class IdleSoundOptions:
    """Options of icefall's pretrained.py without effect here."""

    sample_rate: str | None = None
    """Sound of any sample rate is resampled to the model's."""


@dataclass(frozen=True)
class IdleSearchOptions:
    """Options of fast_beam_search, whose graphs are k2's. Here is modified_beam_search, with `--beam-size`."""

    beam: str | None = None
    max_contexts: str | None = None
    max_states: str | None = None
    num_paths: str | None = None
    nbest_scale: str | None = None


@dataclass(frozen=True)
class IdleModelOptions:
    """Sizes of a Zipformer, which icefall's scripts need again after training: a checkpoint here knows its own."""

    num_encoder_layers: str | None = None
    downsampling_factor: str | None = None
    feedforward_dim: str | None = None
    encoder_dim: str | None = None
    query_head_dim: str | None = None
    value_head_dim: str | None = None
    pos_head_dim: str | None = None
    pos_dim: str | None = None
    cnn_module_kernel: str | None = None
    decoder_dim: str | None = None
    joiner_dim: str | None = None
    causal: str | None = None


@dataclass(frozen=True)
class IdleHeadOptions:
    """Further sizes and heads of a Zipformer, which icefall's files do not show, and a checkpoint here knows."""

    num_heads: str | None = None
    encoder_unmasked_dim: str | None = None
    chunk_size: str | None = None
    """A causal model uses the widest chunks of its training. For others, see `--chunk-ms` of decode.py."""
    left_context_frames: str | None = None
    """See `--chunk-size`, and `--left-ms` of decode.py."""
    use_transducer: str | None = None
    use_ctc: str | None = None
    use_cr_ctc: str | None = None
    use_attention_decoder: str | None = None


@dataclass(frozen=True)
class IdleZipformerOptions:
    """Options of icefall's Zipformer training without effect here."""

    print_diagnostics: str | None = None
    """TensorBoard and the log have the norm of the gradient; `--dry-run` describes the run."""
    inf_check: str | None = None
    """A loss or gradient that is not finite is always found, and the batch skipped."""
    input_strategy: str | None = None
    """See `--on-the-fly-feats`."""
    blank_id: str | None = None
    """The token table knows the blank."""


@dataclass(frozen=True)
class IcefallSwitches:
    """icefall's switches of losses and precision."""

    use_fp16: bool = False
    """As `--precision fp16`."""
    use_bf16: bool = False
    """As `--precision bf16`."""
    use_ctc: bool = False
    """Train with a CTC loss as well, in all epochs, with weight `--ctc-loss-scale`, or 0.2."""
    use_transducer: bool = True
    """Must be true."""
    use_cr_ctc: bool = False
    """Train with the consistency of two CTC outputs as well, with weight `--cr-loss-scale`, or 0.2; needs
    `--use-ctc`."""
    use_attention_decoder: bool = False
    """Must be false."""
    start_batch: int = 0
    """Must be 0; `--resume true` resumes from the newest checkpoint-N.pt or epoch-N.pt."""

    def __post_init__(self) -> None:
        if self.use_fp16 and self.use_bf16:
            raise ValueError("`use_fp16` and `use_bf16` choose two precisions: pass one of them.")
        if self.use_cr_ctc and not self.use_ctc:
            raise ValueError("`use_cr_ctc` needs `use_ctc=True`.")
        for name, only in (("use_transducer", True), ("use_attention_decoder", False)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"`{name}` must be {str(only).lower()}: training has the transducer loss, and `--use-ctc`."
                )
        if self.start_batch:
            raise ValueError(
                f"`start_batch` must be 0, but is {self.start_batch}. Pass `resume=True` to resume from the newest "
                "checkpoint."
            )

    def applied_to(self, config: TrainConfig) -> TrainConfig:
        """Return the options of training with the switches applied."""
        optim, precision = config.optim, config.precision
        if self.use_ctc:
            optim = replace(optim, ctc_loss_scale=optim.ctc_loss_scale or 0.2, ctc_epochs=config.num_epochs)
        if self.use_cr_ctc:
            optim = replace(optim, cr_loss_scale=optim.cr_loss_scale or 0.2)
        if self.use_fp16 or self.use_bf16:
            precision = "fp16" if self.use_fp16 else "bf16"
        return replace(config, optim=optim, precision=precision)


@dataclass(frozen=True)
class Expected:
    """Expected properties of the model: an error if it has others."""

    lang_dir: Annotated[Path | None, arg(aliases=("--tokens",))] = None
    """Folder with tokens.txt, or that file, that the model must have; by default, any."""
    context_size: int | None = None
    """Context size in tokens that the decoder must have; by default, any."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Compare a model with the expected properties.

        Raises:
            ValueError: The model has other properties.
        """
        from stateless_transducer.text.tokens import TokenTable

        if self.lang_dir is not None and TokenTable.read(self.lang_dir) != checkpoint.token_table:
            raise ValueError(f"`--lang-dir` {self.lang_dir}: the model was trained with other tokens.")
        size = checkpoint.model_config.decoder.context_size
        if self.context_size not in (None, size):
            raise ValueError(f"`--context-size` is {self.context_size}, but that of the model is {size}.")


@dataclass(frozen=True)
class TrainOptions(train.Options):
    """Options of train.py."""

    idle_data: Annotated[IdleDataOptions, ADVANCED] = field(default_factory=IdleDataOptions)


@dataclass(frozen=True)
class ZipformerTrainOptions(TrainOptions):
    """Options of Zipformer's train.py."""

    switches: IcefallSwitches = field(default_factory=IcefallSwitches)
    idle_zipformer: Annotated[IdleZipformerOptions, ADVANCED] = field(default_factory=IdleZipformerOptions)


def run_zipformer_train(script: str, arguments: list[str], numbers: ZipformerTrainOptions) -> int:
    """Run Zipformer's ``train.py``, as `run_train`."""
    options = train.parse_options(ZipformerTrainOptions, script, arguments, "Train a Zipformer.", numbers)
    _report_idle(options.idle_data, options.idle_zipformer)
    options = replace(options, train=options.switches.applied_to(options.train))
    train.run(options, command=shlex.join([script, *arguments]))
    return 0


def run_train(script: str, arguments: list[str], numbers: TrainOptions) -> int:
    """Run ``train.py``: checkpoints, logs and TensorBoard in the folder of the experiment."""
    options = train.parse_options(TrainOptions, script, arguments, "Train the recipe's model.", numbers)
    _report_idle(options.idle_data)
    train.run(options, command=shlex.join([script, *arguments]))
    return 0


@dataclass(frozen=True)
class DecodeOptions(decode.Options):
    """Options of decode.py."""

    expected: Expected = field(default_factory=Expected)
    idle_data: Annotated[IdleDataOptions, ADVANCED] = field(default_factory=IdleDataOptions)
    idle_training: Annotated[IdleTrainingOptions, ADVANCED] = field(default_factory=IdleTrainingOptions)
    idle_search: Annotated[IdleSearchOptions, ADVANCED] = field(default_factory=IdleSearchOptions)
    idle_model: Annotated[IdleModelOptions, ADVANCED] = field(default_factory=IdleModelOptions)
    idle_heads: Annotated[IdleHeadOptions, ADVANCED] = field(default_factory=IdleHeadOptions)


def run_decode(script: str, arguments: list[str], numbers: DecodeOptions) -> int:
    """Run ``decode.py``: results and a log in ``<exp-dir>/log/<decoding-method>/``."""
    options = parse(DecodeOptions, script, arguments, "Decode with the mean of checkpoints.", default=numbers)
    _report_idle(options.idle_data, options.idle_training, options.idle_search, options.idle_model, options.idle_heads)
    decode.run(options, accept=options.expected.check)
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Options of export.py."""

    exp_dir: Path
    """Folder with the checkpoints; the result is written there."""
    average: Average = field(default_factory=Average)
    expected: Expected = field(default_factory=Expected)
    jit: bool = False
    """Write TorchScript with methods encode, predict and join to cpu_jit.pt instead; see `transducer export --help` for
    other formats."""
    idle_model: Annotated[IdleModelOptions, ADVANCED] = field(default_factory=IdleModelOptions)
    idle_heads: Annotated[IdleHeadOptions, ADVANCED] = field(default_factory=IdleHeadOptions)


def run_export(script: str, arguments: list[str], numbers: ExportOptions) -> int:
    """Run ``export.py``: the mean of checkpoints as icefall's ``pretrained.pt``, or as TorchScript."""
    description = "Write the mean of checkpoints as <exp-dir>/pretrained.pt: weights alone, as icefall's."
    options = parse(ExportOptions, script, arguments, description, default=numbers)
    _report_idle(options.idle_model, options.idle_heads)
    from stateless_transducer.export.torch_writer import write_script
    from stateless_transducer.icefall import save_icefall

    checkpoint = options.average.of(options.exp_dir)
    options.expected.check(checkpoint)
    say(f"averaging {checkpoint.provenance['averaged']}")
    name, write = ("cpu_jit.pt", write_script) if options.jit else ("pretrained.pt", save_icefall)
    path = options.exp_dir / name
    write(path, checkpoint)
    say(f"Saved to {path}")
    return 0


@dataclass(frozen=True)
class PretrainedOptions:
    """Options of pretrained.py."""

    sound_files: Annotated[tuple[str, ...], Positional, arg(metavar="SOUND [SOUND ...]")]
    """Sound files of any length and sample rate, or folders of them."""
    model: Annotated[str, arg(aliases=("--checkpoint",), metavar="MODEL")]
    """pretrained.pt of icefall or export.py, any other model file or checkpoint, the folder of a published model, or
    its owner/name."""
    channel: Annotated[int, Ge(0)] | None = None
    """Channel to transcribe, from 0; by default, the mean of all. icefall takes channel 0."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    expected: Expected = field(default_factory=Expected)
    search: SearchConfig = field(default_factory=SearchConfig)
    sizes: Annotated[IcefallSizes, ADVANCED] = field(default_factory=IcefallSizes)
    idle_sound: Annotated[IdleSoundOptions, ADVANCED] = field(default_factory=IdleSoundOptions)
    idle_search: Annotated[IdleSearchOptions, ADVANCED] = field(default_factory=IdleSearchOptions)
    idle_model: Annotated[IdleModelOptions, ADVANCED] = field(default_factory=IdleModelOptions)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.sound_files:
            raise ValueError("Name at least one sound file.")


def run_pretrained(script: str, arguments: list[str], lang_dir: Path) -> int:
    """Run ``pretrained.py``: print the text of each sound in icefall's format; status 1 if one could not be read.

    Args:
        script: Name of the script.
        arguments: Arguments of the command line.
        lang_dir: Default folder of the tokens of a pretrained.pt.
    """
    description = (
        f"Transcribe sounds. A pretrained.pt holds no tokens: they are those of `--lang-dir`, or of {lang_dir}."
    )
    options = parse(PretrainedOptions, script, arguments, description)
    _report_idle(options.idle_sound, options.idle_search, options.idle_model)
    from stateless_transducer.audio import AudioError
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.commands.shared.sounds import find_sounds
    from stateless_transducer.files import printable
    from stateless_transducer.icefall import load_either
    from stateless_transducer.recognition.model import find_checkpoint
    from stateless_transducer.recognition.recognizer import Recognizer

    model, its_lang_dir = find_checkpoint(find_model(options.model, forms=("checkpoint",)))
    tokens_dir = options.expected.lang_dir or its_lang_dir or lang_dir
    checkpoint = load_either(model, tokens_dir, sizes=options.sizes.by_name)
    options.expected.check(checkpoint)
    sounds, problems = find_sounds(options.sound_files)
    recognizer = Recognizer(checkpoint, options.search, device="auto", segments=options.segments)
    results = recognizer.transcribe_each((sound.source for sound in sounds), channel=options.channel)
    for sound, result in zip(sounds, results, strict=True):
        if isinstance(result, AudioError):
            problems.append(str(result))
            continue
        tokens = (token for segment in result.segments for token in segment.tokens)
        say(f"{printable(sound.name)}:\n{' '.join(tokens)}\n")
    for problem in problems:
        complain(problem)
    return 1 if problems else 0


def _report_idle(*groups: object) -> None:
    """Report each option that was set without effect."""
    for group in groups:
        for option in fields(group):  # pyright: ignore[reportArgumentType]
            if getattr(group, option.name) is not None:
                complain(f"`--{option.name.replace('_', '-')}` has no effect here (see --help-all).")
