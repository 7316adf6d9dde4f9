"""What the user chooses about data. Free of torch and lhotse, so that ``--help`` need not load them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Masks over features (arXiv 1904.08779), the recipe's numbers."""

    spec_aug_time_warp_factor: int = 80
    """Frames that a time warp moves at most; below 1: none."""
    num_feature_masks: int = 2
    """Masks over mel bins."""
    features_mask_size: int = 27
    """Bins that a mask covers at most."""
    num_frame_masks: int = 10
    """Masks over frames."""
    frames_mask_size: int = 100
    """Frames that a mask covers at most."""
    max_frames_mask_fraction: float = 0.15
    """Share of an utterance's frames that all masks together cover at most."""
    spec_aug_probability: float = 0.9
    """Share of utterances augmented."""


@dataclass(frozen=True)
class DataConfig:
    """Which features to read and how to batch them."""

    manifest_dir: Path = Path("data/fbank")
    """Folder with the prepared cuts."""
    prefix: str = "aishell"
    """Name of the corpus: cuts are read from <prefix>_cuts_<split>.jsonl.gz."""
    max_duration: float = 200.0
    """Seconds of speech in a batch, padding not counted."""
    num_buckets: int = 15
    """Groups of like length that batches are drawn from."""
    min_utterance_s: float = 1.0
    """Shorter utterances are left out of training."""
    max_utterance_s: float = 12.0
    """Longer utterances are left out of training."""
    shuffle: bool = True
    """Another order each epoch."""
    drop_last: bool = True
    """Leave out the last, smaller batches of an epoch."""
    num_workers: int = 2
    """Processes that load batches; 0: the training process itself."""
    enable_spec_aug: bool = True
    """SpecAugment in training."""
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)

    def __post_init__(self) -> None:
        if self.max_duration <= 0:
            raise ValueError(f"`--max-duration` must be above 0 s, but is {self.max_duration:g}.")
        if self.num_buckets < 1:
            raise ValueError(f"`--num-buckets` must be at least 1, but is {self.num_buckets}.")
        if self.num_workers < 0:
            raise ValueError(f"`--num-workers` must be at least 0, but is {self.num_workers}.")
