"""Sizes of the network. Free of torch, so that ``--help`` need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FeatureNorm = Literal["none", "mean", "level"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a stateless transducer; the defaults are the tutorial's, 87,939,824 parameters at vocabulary 4336."""

    vocab_size: int
    """Number of tokens, blank included."""
    feature_dim: int = 80
    """Mel bins of a feature frame."""
    num_layers: int = 12
    """Conformer layers."""
    attention_dim: int = 512
    """Width of the encoder."""
    num_heads: int = 8
    """Attention heads; divides the width."""
    feedforward_dim: int = 2048
    """Width inside the feed-forward modules."""
    conv_kernel: int = 31
    """Frames that a convolution module sees; odd."""
    feature_norm: FeatureNorm = "none"
    """What the encoder takes from the mel bins of an utterance. level: its loudness; for small data, in which a level
    means a speaker. mean: the mean of each bin; for small data of many speakers, levels and microphones."""
    subsampling_channels: int | None = None
    """Channels of the two subsampling convolutions; None is the width of the encoder."""
    joiner_dim: int = 512
    """Width of encoder output, decoder output and joiner."""
    context_size: int = 2
    """Tokens that the decoder sees."""
    dropout: float = 0.1
    """Share of activations dropped in training."""
    blank_id: int = 0
    """Id of the blank."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "attention_dim", "num_heads", "feedforward_dim", "joiner_dim")
        for name in (*sizes, "context_size", "conv_kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)}.")
        if self.subsampling_channels is not None and self.subsampling_channels < 1:
            raise ValueError(f"`subsampling_channels` must be at least 1, but is {self.subsampling_channels}.")
        if self.feature_norm not in get_args(FeatureNorm):
            raise ValueError(f'`feature_norm` must be "none", "mean" or "level", but is {self.feature_norm!r}.')
        if self.feature_dim < 7:
            raise ValueError(f"`feature_dim` must be at least 7, but is {self.feature_dim}.")
        if self.attention_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `attention_dim`, but {self.attention_dim} / {self.num_heads} is not whole."
            )
        if self.attention_dim % 2:
            raise ValueError(f"`attention_dim` must be even, but is {self.attention_dim}.")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"`conv_kernel` must be odd, but is {self.conv_kernel}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), but is {self.dropout}.")
        if not 0 <= self.blank_id < self.vocab_size:
            raise ValueError(f"`blank_id` must be in 0..{self.vocab_size - 1}, but is {self.blank_id}.")
