"""What the user chooses about data. Free of torch and lhotse, so that ``--help`` need not load them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from stateless_transducer.text.tokens import Unit


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks over features (arXiv 1904.08779), the recipe's numbers."""

    spec_aug_time_warp_factor: int = 80
    """Frames that a time warp moves at most; below 1: none."""
    num_feature_masks: int = 2
    """Masks over mel bins."""
    features_mask_size: int = 27
    """Bins that a mask stays below."""
    num_frame_masks: int = 10
    """Masks over frames."""
    frames_mask_size: int = 100
    """Frames that a mask stays below."""
    max_frames_mask_fraction: float = 0.15
    """Share of an utterance's frames that all masks together cover at most."""
    spec_aug_probability: float = 0.9
    """Share of utterances augmented."""

    def __post_init__(self) -> None:
        for name in ("num_feature_masks", "num_frame_masks"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 0, but is {getattr(self, name)}.")
        for name in ("features_mask_size", "frames_mask_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {getattr(self, name)}.")
        if not 0 <= self.spec_aug_probability <= 1:
            raise ValueError(f"`--spec-aug-probability` must be in 0..1, but is {self.spec_aug_probability:g}.")
        if not 0 <= self.max_frames_mask_fraction <= 1:
            raise ValueError(f"`--max-frames-mask-fraction` must be in 0..1, but is {self.max_frames_mask_fraction:g}.")


@dataclass(frozen=True)
class DataConfig:
    """Which features to read and how to batch them."""

    manifest_dir: Path = Path("data/fbank")
    """Folder with the prepared cuts."""
    prefix: str = "aishell"
    """Name of the corpus: cuts are read from <prefix>_cuts_<split>.jsonl.gz."""
    mix_prefix: str | None = None
    """Name of a second corpus, prepared in the same folder, to mix into training; None: no other."""
    mix_prob: float = 0.2
    """Share of an epoch's batches that are of the second corpus; the first one is heard whole, once an epoch."""
    max_duration: float = 200.0
    """Seconds of speech in a batch, padding counted: utterances times the longest one. It holds for the mean of all
    processes; of what they cannot share evenly, some get one utterance more."""
    max_cells: int = 2_000_000
    """Places in the lattices of a batch, T x (U + 1) an utterance, padding counted, at most; 0: any number."""
    num_buckets: int = 15
    """Groups of like length that batches are drawn from."""
    min_utterance_s: float = 1.0
    """Shorter utterances are left out of training."""
    max_utterance_s: float = 12.0
    """Longer utterances are left out of training."""
    shuffle: bool = True
    """Another order each epoch."""
    drop_last: bool = False
    """Leave out the last, smaller batches of an epoch; of small data that is a good part."""
    num_workers: int = 2
    """Processes that load batches; 0: the training process itself."""
    enable_spec_aug: bool = True
    """SpecAugment in training."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    enable_musan: bool = True
    """Mix noise into half of the training utterances, at 10 to 20 dB, if MUSAN is prepared."""
    vtlp_range: float = 0.0
    """Stretch the frequency axis of each training utterance by up to this share, as if others had said it (vocal tract
    length perturbation); 0.1 to 0.2 for few speakers, 0: none."""
    gain_range_db: float = 0.0
    """Make each training utterance louder or softer by up to this many decibels, for level not to matter; 0: none."""
    equalizer_range_db: float = 0.0
    """Change its timbre by up to this many decibels, smoothly over frequency, as other microphones would; 0: none."""
    silence_s: float = 0.0
    """Put silence of up to so many seconds before and behind each training utterance, made of its quietest frames or
    digital: for corpora that are cut where speech begins and ends; 0: none."""
    join_up_to_s: float = 0.0
    """In half of the batches, join utterances to longer ones of up to so many seconds, for models that are to hear long
    sound; 0: never."""
    lengthen_from_epoch: int = 0
    """First epoch with either; at the beginning, a model learns to speak sooner without."""
    on_the_fly_feats: bool = False
    """Compute features from the sound while loading, instead of reading the stored ones."""

    def __post_init__(self) -> None:
        if not 0 < self.mix_prob < 1:
            raise ValueError(f"`--mix-prob` must be above 0 and below 1, but is {self.mix_prob:g}.")
        if self.mix_prefix == self.prefix:
            raise ValueError(f"`--mix-prefix` must be another corpus than `--prefix`, but both are {self.prefix}.")
        if self.max_duration <= 0:
            raise ValueError(f"`--max-duration` must be above 0 s, but is {self.max_duration:g}.")
        if not 0 <= self.vtlp_range < 0.5:
            raise ValueError(f"`--vtlp-range` must be in [0, 0.5), but is {self.vtlp_range:g}.")
        for name in ("gain_range_db", "equalizer_range_db"):
            if not 0 <= getattr(self, name) <= 40:
                raise ValueError(f"`--{name.replace('_', '-')}` must be in 0..40, but is {getattr(self, name):g}.")
        for name, most in (("silence_s", 5), ("join_up_to_s", 300)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"`--{name.replace('_', '-')}` must be in 0..{most}, but is {getattr(self, name):g}.")
        if self.lengthen_from_epoch < 0:
            raise ValueError(f"`--lengthen-from-epoch` must be at least 0, but is {self.lengthen_from_epoch}.")
        if self.max_cells < 0:
            raise ValueError(f"`--max-cells` must be at least 0, but is {self.max_cells}.")
        if self.num_buckets < 1:
            raise ValueError(f"`--num-buckets` must be at least 1, but is {self.num_buckets}.")
        if self.num_workers < 0:
            raise ValueError(f"`--num-workers` must be at least 0, but is {self.num_workers}.")


@dataclass(frozen=True)
class Limits:
    """What an utterance must keep to; the others are listed and left out."""

    min_utterance_s: float = 0.1
    """Seconds; shorter utterances are left out."""
    max_utterance_s: float = 60.0
    """Seconds; longer utterances are left out."""
    max_chars_per_second: float = 40.0
    """More text than anybody says: a wrong transcript."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.min_utterance_s <= self.max_utterance_s:
            raise ValueError(
                f"`--min-utterance-s` must be at least 0.1 and at most `--max-utterance-s` ({self.max_utterance_s:g}), "
                f"but is {self.min_utterance_s:g}."
            )


@dataclass(frozen=True)
class TokenConfig:
    """The model's tokens: those of the training texts."""

    token: Unit = "char"
    """Unit of the model's output; bpe: pieces of words."""
    vocab_size: int | None = None
    """Number of tokens with `--token bpe`; None: 500."""

    def __post_init__(self) -> None:
        if self.vocab_size is None:
            return
        if self.token != "bpe":
            raise ValueError(
                f"`--vocab-size` is for `--token bpe`; the number of {self.token} tokens follows from the texts."
            )
        if self.vocab_size < 1:
            raise ValueError(f"`--vocab-size` must be at least 1, but is {self.vocab_size}.")

    @property
    def num_pieces(self) -> int:
        """Of words, with `--token bpe`."""
        return 500 if self.vocab_size is None else self.vocab_size

    def told(self, num_tokens: int) -> str:
        """So many tokens, for the user; with a reason if they are fewer than were asked for."""
        if self.token != "bpe" or num_tokens >= self.num_pieces:
            return f"{num_tokens} tokens"
        return f"{num_tokens} tokens, not `--vocab-size` {self.num_pieces}: the texts have no more pieces to offer"

    @property
    def name(self) -> str:
        """As in the name of the folder: char, word, bpe_500."""
        return f"bpe_{self.num_pieces}" if self.token == "bpe" else self.token


@dataclass(frozen=True)
class WorkConfig:
    """Where prepared data go, and who does the work."""

    data_dir: Path = Path("data")
    """Folder for manifests/, fbank/ and lang_char/ (or lang_word/)."""
    num_jobs: int = min(15, os.cpu_count() or 1)
    """Processes."""
    dask: str | None = None
    """Scheduler of a Dask cluster, tcp://HOST:PORT, whose workers compute the features; None: processes here."""
    strict: bool = False
    """Any problem with the corpus is an error."""

    def __post_init__(self) -> None:
        if self.num_jobs < 1:
            raise ValueError(f"`--num-jobs` must be at least 1, but is {self.num_jobs}.")
        if self.dask is not None and not re.fullmatch(r"\w+://\S+:\d+", self.dask):
            raise ValueError(f"`--dask` must look like tcp://HOST:PORT, but is {self.dask!r}.")

    @property
    def manifest_dir(self) -> Path:
        """Recordings and supervisions."""
        return self.data_dir / "manifests"

    @property
    def fbank_dir(self) -> Path:
        """Cuts and features."""
        return self.data_dir / "fbank"


@dataclass(frozen=True)
class PrepareConfig(WorkConfig):
    """The same for speech."""

    perturb_speed: bool = True
    """Add the training set at other speeds."""
    speeds: tuple[float, ...] = (0.9, 1.1)
    """Those other speeds; with few speakers more of them help, as they shift the formants, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for speed in self.speeds:
            if not 0.5 <= speed <= 2 or speed == 1:
                raise ValueError(f"`--speeds` must be in 0.5..2 and other than 1, but hold {speed:g}.")

    @property
    def all_speeds(self) -> tuple[float, ...]:
        """At which the training set is stored."""
        return (1.0, *self.speeds) if self.perturb_speed else (1.0,)
