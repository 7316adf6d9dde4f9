"""What the user chooses about data. Free of torch and lhotse, so that ``--help`` need not load them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Interval, Unit

from stateless_transducer.options import check_bounds
from stateless_transducer.text import tokens


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks over features (arXiv 1904.08779), the recipe's numbers."""

    spec_aug_time_warp_factor: int = 80
    """Frames that a time warp moves at most; below 1: none."""
    num_feature_masks: Annotated[int, Ge(0)] = 2
    """Masks over mel bins."""
    features_mask_size: Annotated[int, Ge(1)] = 27
    """Bins that a mask stays below."""
    num_frame_masks: Annotated[int, Ge(0)] = 10
    """Masks over frames."""
    frames_mask_size: Annotated[int, Ge(1)] = 100
    """Frames that a mask stays below."""
    max_frames_mask_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.15
    """Share of an utterance's frames that all masks together cover at most."""
    spec_aug_probability: Annotated[float, Interval(ge=0, le=1)] = 0.9
    """Share of utterances augmented."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class DataConfig:
    """Which features to read and how to batch them."""

    manifest_dir: Path = Path("data/fbank")
    """Folder with the prepared cuts."""
    prefix: str = "aishell"
    """Name of the corpus: cuts are read from <prefix>_cuts_<split>.jsonl.gz."""
    mix_prefix: str | None = None
    """Name of a second corpus, prepared in the same folder, to mix into training; None: no other."""
    mix_prob: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of an epoch's batches that are of the second corpus; the first one is heard whole, once an epoch."""
    max_duration: Annotated[float, Gt(0), Unit("s")] = 200.0
    """Seconds of speech in a batch, padding counted: utterances times the longest one. It holds for the mean of all
    processes; of what they cannot share evenly, some get one utterance more."""
    max_cells: Annotated[int, Ge(0)] = 2_000_000
    """Places in the lattices of a batch, T x (U + 1) an utterance, padding counted, at most; 0: any number."""
    num_buckets: Annotated[int, Ge(1)] = 15
    """Groups of like length that batches are drawn from."""
    min_utterance_s: float = 1.0
    """Shorter utterances are left out of training."""
    max_utterance_s: float = 12.0
    """Longer utterances are left out of training."""
    shuffle: bool = True
    """Another order each epoch."""
    drop_last: bool = False
    """Leave out the last, smaller batches of an epoch; of small data that is a good part."""
    num_workers: Annotated[int, Ge(0)] = 2
    """Processes that load batches; 0: the training process itself."""
    enable_spec_aug: bool = True
    """SpecAugment in training."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    enable_musan: bool = True
    """Mix noise into half of the training utterances, at 10 to 20 dB, if MUSAN is prepared."""
    vtlp_range: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """Stretch the frequency axis of each training utterance by up to this share, as if others had said it (vocal tract
    length perturbation); 0.1 to 0.2 for few speakers, 0: none."""
    gain_range_db: Annotated[float, Interval(ge=0, le=40), Unit("dB")] = 0.0
    """Make each training utterance louder or softer by up to this many decibels, for level not to matter; 0: none."""
    equalizer_range_db: Annotated[float, Interval(ge=0, le=40), Unit("dB")] = 0.0
    """Change its timbre by up to this many decibels, smoothly over frequency, as other microphones would; 0: none."""
    silence_s: Annotated[float, Interval(ge=0, le=5), Unit("s")] = 0.0
    """Put silence of up to so many seconds before and behind each training utterance, made of its quietest frames or
    digital: for corpora that are cut where speech begins and ends; 0: none."""
    join_up_to_s: Annotated[float, Interval(ge=0, le=300), Unit("s")] = 0.0
    """In half of the batches, join utterances to longer ones of up to so many seconds, for models that are to hear long
    sound; 0: never."""
    lengthen_from_epoch: Annotated[int, Ge(0)] = 0
    """First epoch with either; at the beginning, a model learns to speak sooner without."""
    on_the_fly_feats: bool = False
    """Compute features from the sound while loading, instead of reading the stored ones."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.mix_prefix == self.prefix:
            raise ValueError(f"`mix_prefix` must name another corpus than `prefix`, but both are {self.prefix}.")


@dataclass(frozen=True)
class Limits:
    """What an utterance must keep to; the others are listed and left out."""

    min_utterance_s: Annotated[float, Ge(0.1), Unit("s")] = 0.1
    """Seconds; shorter utterances are left out."""
    max_utterance_s: float = 60.0
    """Seconds; longer utterances are left out."""
    max_chars_per_second: float = 40.0
    """More text than anybody says: a wrong transcript."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.min_utterance_s > self.max_utterance_s:
            raise ValueError(
                f"`min_utterance_s` must be at most `max_utterance_s` ({self.max_utterance_s:g}), but is "
                f"{self.min_utterance_s:g}."
            )


@dataclass(frozen=True)
class TokenConfig:
    """The model's tokens: those of the training texts."""

    token: tokens.Unit = "char"
    """Unit of the model's output; bpe: pieces of words."""
    vocab_size: Annotated[int, Ge(1)] | None = None
    """Number of tokens with `--token bpe`; None: 500."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.vocab_size is not None and self.token != "bpe":
            raise ValueError(
                f"`vocab_size` {self.vocab_size} needs `token=bpe`: the number of {self.token} tokens follows from the "
                "texts."
            )

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
    num_jobs: Annotated[int, Ge(1)] = min(15, os.cpu_count() or 1)
    """Processes."""
    dask: str | None = None
    """Scheduler of a Dask cluster, tcp://HOST:PORT, whose workers compute the features; None: processes here."""
    strict: bool = False
    """Any problem with the corpus is an error."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.dask is not None and not re.fullmatch(r"\w+://\S+:\d+", self.dask):
            raise ValueError(f"`dask` must look like tcp://HOST:PORT, but is {self.dask!r}.")

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
    speeds: tuple[Annotated[float, Interval(ge=0.5, le=2)], ...] = (0.9, 1.1)
    """Those other speeds; with few speakers more of them help, as they shift the formants, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 1 in self.speeds:
            raise ValueError("`speeds` must be other than 1, which the training set has, but include 1.")

    @property
    def all_speeds(self) -> tuple[float, ...]:
        """At which the training set is stored."""
        return (1.0, *self.speeds) if self.perturb_speed else (1.0,)
