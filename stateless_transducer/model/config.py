"""Sizes of the network. Free of torch, so that ``--help`` stays fast.

An encoder has a configuration class of its own, with a name (``kind``) by which flags and checkpoints know it. Sizes of
encoder, decoder and joiner have different names, so that a checkpoint can list them side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval

from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.options import check_bounds
from stateless_transducer.wording import counted

FeatureNorm = Literal["none", "mean", "level"]


@dataclass(frozen=True)
class EncoderConfig(ABC):
    """Sizes of an encoder; each kind of encoder adds its own."""

    kind: ClassVar[str]
    """Name of the encoder in flags and checkpoints."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of activations dropped in training."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    @abstractmethod
    def subsampling(self) -> Subsampling:
        """Subsampling from feature frames to encoder frames."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One phrase for logs and reports, such as "conformer, 12 layers of width 512, 8 heads"."""


@dataclass(frozen=True)
class ConformerConfig(EncoderConfig):
    """Sizes of a conformer; the defaults are the tutorial's."""

    kind: ClassVar[str] = "conformer"

    num_layers: Annotated[int, Interval(ge=1, le=256)] = 12
    """Conformer layers."""
    attention_dim: Annotated[int, Ge(1)] = 512
    """Width of the encoder."""
    num_heads: Annotated[int, Ge(1)] = 8
    """Attention heads; divides the width."""
    feedforward_dim: Annotated[int, Ge(1)] = 2048
    """Width inside the feed-forward modules."""
    conv_kernel: Annotated[int, Ge(1)] = 31
    """Frames that a convolution module sees; odd."""
    subsampling_channels: Annotated[int, Ge(1)] | None = None
    """Channels of the two subsampling convolutions; None: the width of the encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `attention_dim`, but {self.attention_dim} / {self.num_heads} is not whole."
            )
        if self.attention_dim % 2:
            raise ValueError(f"`attention_dim` must be even, but is {self.attention_dim}.")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"`conv_kernel` must be odd, but is {self.conv_kernel}.")

    @property
    def subsampling(self) -> Subsampling:
        """Two convolutions over time of kernel 3 and stride 2, without padding."""
        return Subsampling(factor=4, min_frames=7)

    @property
    def summary(self) -> str:
        """Kind, layers, width and heads."""
        layers, heads = counted(self.num_layers, "layer"), counted(self.num_heads, "head")
        return f"conformer, {layers} of width {self.attention_dim}, {heads}"


ENCODER_CONFIGS: dict[str, type[EncoderConfig]] = {ConformerConfig.kind: ConformerConfig}
"""Configuration class of each encoder by its kind."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder, the prediction network."""

    context_size: Annotated[int, Ge(1)] = 2
    """Tokens that the decoder sees."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class JoinerConfig:
    """Sizes of the joiner."""

    joiner_dim: Annotated[int, Ge(1)] = 512
    """Width of encoder output, decoder output and joiner."""

    def __post_init__(self) -> None:
        check_bounds(self)


SizeName = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True)
class ModelSize:
    """Encoder and joiner of a size that users choose by name."""

    encoder: EncoderConfig
    joiner: JoinerConfig


ENCODER_SIZES: dict[str, dict[SizeName, ModelSize]] = {
    ConformerConfig.kind: {
        "tiny": ModelSize(
            ConformerConfig(
                num_layers=4,
                attention_dim=96,
                num_heads=4,
                feedforward_dim=384,
                conv_kernel=15,
                subsampling_channels=32,
                # a million parameters learn slower with more
                dropout=0.02,
            ),
            JoinerConfig(joiner_dim=128),
        ),
        "small": ModelSize(
            ConformerConfig(num_layers=8, attention_dim=176, num_heads=4, feedforward_dim=704, subsampling_channels=64),
            JoinerConfig(joiner_dim=256),
        ),
        "medium": ModelSize(
            ConformerConfig(
                num_layers=12, attention_dim=288, num_heads=4, feedforward_dim=1152, subsampling_channels=128
            ),
            JoinerConfig(joiner_dim=384),
        ),
        "large": ModelSize(ConformerConfig(), JoinerConfig()),
    },
}
"""Sizes that each kind of encoder offers for ``--size``, from small to large; an encoder may offer some or none."""


@dataclass(frozen=True)
class ModelConfig:
    """A stateless transducer; the defaults are the tutorial's, 87,939,824 parameters at vocabulary 4336."""

    vocab_size: Annotated[int, Ge(1)]
    """Number of tokens, blank included."""
    encoder: EncoderConfig = field(default_factory=ConformerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    joiner: JoinerConfig = field(default_factory=JoinerConfig)
    feature_dim: Annotated[int, Ge(7)] = 80
    """Mel bins of a feature frame."""
    feature_norm: FeatureNorm = "none"
    """Normalization of the features of each utterance. level: subtract the loudness, for small data in which a level
    identifies a speaker. mean: subtract the mean of each bin, for small data of many speakers and microphones."""
    blank_id: int = 0
    """Id of the blank."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 0 <= self.blank_id < self.vocab_size:
            raise ValueError(f"`blank_id` must be in 0..{self.vocab_size - 1}, but is {self.blank_id}.")

    @property
    def summary(self) -> str:
        """One phrase for logs and reports."""
        return f"{self.encoder.summary}; {self.vocab_size} tokens, context {self.decoder.context_size}"

    def sizes(self) -> dict[str, Any]:
        """Return all sizes by name, with the kind of the encoder as ``encoder``, for checkpoints and model cards."""
        parts = (self.encoder, self.decoder, self.joiner)
        sizes = {name: value for part in parts for name, value in asdict(part).items()}
        model_sizes = {name: getattr(self, name) for name in _names(ModelConfig) if name not in _PARTS}
        return {"encoder": self.encoder.kind, **model_sizes, **sizes}

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, Any]) -> ModelConfig:
        """Return the configuration with the given sizes, the inverse of `sizes`.

        Raises:
            ValueError: a size is unknown or out of bounds, or the encoder is unknown; the message names it.
        """
        kind = sizes.get("encoder")
        if kind not in ENCODER_CONFIGS:
            known = ", ".join(ENCODER_CONFIGS)
            raise ValueError(f"`encoder` must be one of {known}, but is {kind!r}.")
        values, parts = {name: value for name, value in sizes.items() if name != "encoder"}, {}
        for name, config in (("encoder", ENCODER_CONFIGS[kind]), ("decoder", DecoderConfig), ("joiner", JoinerConfig)):
            parts[name] = config(**{size: values.pop(size) for size in _names(config) if size in values})
        unknown = values.keys() - _names(cls)
        if unknown:
            raise ValueError(f"{', '.join(f'`{name}`' for name in sorted(unknown))} is no size of a {kind} model.")
        return cls(**parts, **values)


_PARTS = ("encoder", "decoder", "joiner")


def _names(config: type) -> list[str]:
    return [field.name for field in fields(config)]
