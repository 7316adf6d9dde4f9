"""Options of data. Free of torch and lhotse, so that ``--help`` stays fast."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Unit

from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.threads import num_cores
from stateless_transducer.wording import counted


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment: masks over features (arXiv 1904.08779)."""

    spec_aug_time_warp_factor: int = 80
    """Largest shift of a time warp, in frames; below 1: no warp."""
    num_feature_masks: Annotated[int, Ge(0)] = 2
    """Masks over mel bins per utterance."""
    features_mask_size: Annotated[int, Ge(1)] = 27
    """Upper limit of a mask's width in mel bins, exclusive."""
    num_frame_masks: Annotated[int, Ge(0)] = 10
    """Masks over frames per utterance."""
    frames_mask_size: Annotated[int, Ge(1)] = 100
    """Upper limit of a mask's length in frames, exclusive."""
    max_frames_mask_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.15
    """Largest share of an utterance's frames that all masks cover together."""
    spec_aug_probability: Annotated[float, Interval(ge=0, le=1)] = 0.9
    """Share of utterances that are augmented."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class DataConfig:
    """Data: features, batches and augmentation."""

    manifest_dir: Path = Path("data/fbank")
    """Folder with the prepared cuts."""
    prefix: str = "aishell"
    """Name of the corpus: cuts are read from <prefix>_cuts_<split>.jsonl.gz."""
    mix_prefix: Annotated[str | None, ADVANCED] = None
    """Name of a second corpus in the same folder to mix into training."""
    mix_prob: Annotated[float, Interval(gt=0, lt=1), ADVANCED] = 0.2
    """Share of an epoch's batches from the second corpus. The first corpus is read whole, once per epoch."""
    max_duration: Annotated[float, Gt(0), Unit("s")] = 200.0
    """Seconds of speech per batch and process, padding included: the longest utterance times the number of utterances.
    Some processes may get one more utterance."""
    max_cells: Annotated[int, Ge(0), ADVANCED] = 2_000_000
    """Largest number of lattice cells per batch: T x (U + 1) per utterance, padding included; 0: no limit."""
    num_buckets: Annotated[int, Ge(1), ADVANCED] = 15
    """Groups of utterances of similar length from which batches are drawn."""
    min_utterance_s: float = 1.0
    """Shortest utterance to train on, in seconds."""
    max_utterance_s: float = 12.0
    """Longest utterance to train on, in seconds."""
    shuffle: Annotated[bool, ADVANCED] = True
    """Draw a new order of the batches for each epoch."""
    drop_last: Annotated[bool, ADVANCED] = False
    """Drop the last, smaller batches of an epoch; with little data, they are a large share."""
    num_workers: Annotated[int, Ge(0)] = 2
    """Processes that load batches; 0: the training process itself."""
    enable_spec_aug: bool = True
    """Apply SpecAugment in training."""
    spec_augment: Annotated[SpecAugmentConfig, ADVANCED] = field(default_factory=SpecAugmentConfig)
    enable_musan: bool = True
    """Mix noise into half of the training utterances at 10 to 20 dB, if MUSAN is prepared."""
    vtlp_range: Annotated[float, Interval(ge=0, lt=0.5), ADVANCED] = 0.0
    """Largest stretch of the frequency axis per training utterance, as for another speaker (vocal tract length
    perturbation). 0.1 to 0.2 for few speakers; 0: none."""
    gain_range_db: Annotated[float, Interval(ge=0, le=40), Unit("dB"), ADVANCED] = 0.0
    """Largest random change of loudness per training utterance, in dB; 0: none."""
    equalizer_range_db: Annotated[float, Interval(ge=0, le=40), Unit("dB"), ADVANCED] = 0.0
    """Largest random change of timbre per training utterance, in dB, smooth over frequency, as by another microphone;
    0: none."""
    silence_s: Annotated[float, Interval(ge=0, le=5), Unit("s"), ADVANCED] = 0.0
    """Seconds of silence, at most, added before and after each training utterance: its quietest frames or digital
    silence. For tightly cut corpora; 0: none."""
    join_up_to_s: Annotated[float, Interval(ge=0, le=300), Unit("s"), ADVANCED] = 0.0
    """Join utterances up to this length in seconds in half of the batches, for models that transcribe long sound; 0:
    never."""
    lengthen_from_epoch: Annotated[int, Ge(0), ADVANCED] = 0
    """First epoch in which silence padding and joining are applied."""
    on_the_fly_feats: Annotated[bool, ADVANCED] = False
    """Compute features from the sound while loading instead of reading the stored ones."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.mix_prefix == self.prefix:
            raise ValueError(f"`mix_prefix` must name another corpus than `prefix`, but both are {self.prefix}.")


@dataclass(frozen=True)
class Limits:
    """Limits: utterances outside are listed and skipped."""

    min_utterance_s: Annotated[float, Ge(0.1), Unit("s"), ADVANCED] = 0.1
    """Shortest utterance, in seconds."""
    max_utterance_s: Annotated[float, ADVANCED] = 60.0
    """Longest utterance, in seconds."""
    max_chars_per_second: Annotated[float, ADVANCED] = 40.0
    """Most characters per second of speech; a higher rate suggests a wrong transcript."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.min_utterance_s > self.max_utterance_s:
            raise ValueError(
                f"`min_utterance_s` must be at most `max_utterance_s` ({self.max_utterance_s:g}), but is "
                f"{self.min_utterance_s:g}."
            )


@dataclass(frozen=True)
class TokenConfig:
    """Tokens: those of the training texts."""

    token: Literal["char", "word", "bpe", "bbpe"] = "char"
    """Unit of the model's output: characters, words, pieces of words (bpe), or pieces of the UTF-8 bytes of words and
    ideographs (bbpe), for Chinese with fewer tokens than characters."""
    vocab_size: Annotated[int, Ge(1)] | None = None
    """Number of tokens with `--token bpe` or `bbpe`; by default, 500."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.vocab_size is not None and not self._has_pieces:
            raise ValueError(
                f"`vocab_size` {self.vocab_size} needs `token=bpe` or `bbpe`: the number of {self.token} tokens "
                "follows from the texts."
            )

    @property
    def _has_pieces(self) -> bool:
        return self.token in ("bpe", "bbpe")

    @property
    def num_pieces(self) -> int:
        """Number of tokens with `--token bpe` or `bbpe`."""
        return 500 if self.vocab_size is None else self.vocab_size

    def told(self, num_tokens: int) -> str:
        """Describe the number of tokens for the user, with a reason if it is smaller than `--vocab-size`."""
        if not self._has_pieces or num_tokens >= self.num_pieces:
            return counted(num_tokens, "token")
        return f"{counted(num_tokens, 'token')}, not `--vocab-size` {self.num_pieces}: the texts have no more pieces"

    @property
    def name(self) -> str:
        """Name of the unit in the name of the folder: char, word, bpe_500, bbpe_500."""
        return f"{self.token}_{self.num_pieces}" if self._has_pieces else self.token


@dataclass(frozen=True)
class WorkConfig:
    """Output and processes."""

    data_dir: Path = Path("data")
    """Folder for manifests/, fbank/ and lang_char/ (or lang_word/)."""
    num_jobs: Annotated[int, Ge(1)] = min(15, num_cores())
    """Processes that prepare data."""
    dask: Annotated[str | None, ADVANCED] = None
    """Scheduler of a Dask cluster that computes the features, tcp://HOST:PORT; by default, processes of this
    machine."""
    strict: bool = False
    """Treat any problem with the corpus as an error."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.dask is not None and not re.fullmatch(r"\w+://\S+:\d+", self.dask):
            raise ValueError(f"`dask` must look like tcp://HOST:PORT, but is {self.dask!r}.")

    @property
    def manifest_dir(self) -> Path:
        """Folder of the recordings and supervisions."""
        return self.data_dir / "manifests"

    @property
    def fbank_dir(self) -> Path:
        """Folder of the cuts and features."""
        return self.data_dir / "fbank"


@dataclass(frozen=True)
class PrepareConfig(WorkConfig):
    """Output, processes and speed perturbation."""

    perturb_speed: bool = True
    """Add copies of the training set at other speeds."""
    speeds: tuple[Annotated[float, Interval(ge=0.5, le=2)], ...] = (0.9, 1.1)
    """Speeds of the copies. More speeds help with few speakers, because they also shift the formants."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 1 in self.speeds:
            raise ValueError("`speeds` must not include 1, the speed of the training set itself.")

    @property
    def all_speeds(self) -> tuple[float, ...]:
        """Speeds at which the training set is stored."""
        return (1.0, *self.speeds) if self.perturb_speed else (1.0,)
