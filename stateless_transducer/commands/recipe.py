"""Commands of the scripts in ``egs/aishell/ASR``: a recipe's defaults, and icefall's options.

A script sets its defaults as options of one of these commands and calls `cli.run_script`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from tyro.conf import Positional, arg

from stateless_transducer.commands import decode, train
from stateless_transducer.commands.shared.console import complain, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.training.averaging import Average

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


def run_decode(script: str, arguments: list[str], numbers: DecodeOptions) -> int:
    """Run ``decode.py``: results and a log in ``<exp-dir>/log/<decoding-method>/``."""
    options = parse(DecodeOptions, script, arguments, "Decode with the mean of checkpoints.", default=numbers)
    _report_idle(options.idle_data, options.idle_training, options.idle_search)
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


def run_export(script: str, arguments: list[str], numbers: ExportOptions) -> int:
    """Run ``export.py``: the mean of checkpoints as icefall's ``pretrained.pt``, or as TorchScript."""
    description = "Write the mean of checkpoints as <exp-dir>/pretrained.pt: weights alone, as icefall's."
    options = parse(ExportOptions, script, arguments, description, default=numbers)
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
    idle_sound: Annotated[IdleSoundOptions, ADVANCED] = field(default_factory=IdleSoundOptions)
    idle_search: Annotated[IdleSearchOptions, ADVANCED] = field(default_factory=IdleSearchOptions)

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
    _report_idle(options.idle_sound, options.idle_search)
    from stateless_transducer.audio import AudioError
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.commands.shared.sounds import find_sounds
    from stateless_transducer.files import printable
    from stateless_transducer.icefall import load_either
    from stateless_transducer.recognition.model import find_checkpoint
    from stateless_transducer.recognition.recognizer import Recognizer

    model, its_lang_dir = find_checkpoint(find_model(options.model, forms=("checkpoint",)))
    checkpoint = load_either(model, options.expected.lang_dir or its_lang_dir or lang_dir)
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
                complain(f"`--{option.name.replace('_', '-')}` has no effect here (see --help).")
