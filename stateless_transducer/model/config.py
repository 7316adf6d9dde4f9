"""Sizes of the network. Free of torch, so that ``--help`` stays fast.

An encoder has a configuration class of its own, with a name (``kind``) by which flags and checkpoints know it. Sizes of
encoder, decoder and joiner have different names, so that a checkpoint can list them side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, cast

from annotated_types import Ge, Interval

from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.wording import counted

FeatureNorm = Literal["none", "mean", "level", "global"]
DecoderConv = Literal["depthwise", "grouped"]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder, the prediction network.

    Example:
        >>> ModelConfig(500, decoder=DecoderConfig(context_size=1)).summary
        'conformer, 12 layers of width 512, 8 heads; 500 tokens, context 1'
    """

    context_size: Annotated[int, Ge(1)] = 2
    """Tokens that the decoder sees."""
    decoder_dim: Annotated[int, Ge(1)] | None = None
    """Width of the decoder; by default, that of the joiner."""
    decoder_conv: Annotated[DecoderConv, ADVANCED] = "depthwise"
    """Convolution over the tokens. depthwise: the tutorial's, one weight per channel and token. grouped: the
    Zipformer's, four channels per group, then ReLU, and a learned vector for the start of an utterance."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class JoinerConfig:
    """Sizes of the joiner.

    Example:
        >>> ModelConfig(500, joiner=JoinerConfig(joiner_dim=256)).decoder_dim
        256
    """

    joiner_dim: Annotated[int, Ge(1)] = 512
    """Width of the joiner."""
    joiner_proj: Annotated[bool, ADVANCED] = False
    """Project the outputs of encoder and decoder to the width of the joiner; otherwise, they have that width
    already."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class EncoderConfig(ABC):
    """Sizes of an encoder; each kind of encoder adds its own.

    Example:
        >>> encoder: EncoderConfig = load_checkpoint("model.pt").model_config.encoder
        >>> encoder.kind
        'conformer'
    """

    kind: ClassVar[str]
    """Name of the encoder in flags and checkpoints."""
    usual_decoder: ClassVar[DecoderConfig] = DecoderConfig()
    """Decoder that this encoder is usually trained with."""
    usual_joiner: ClassVar[JoinerConfig] = JoinerConfig()
    """Joiner that this encoder is usually trained with."""
    can_compile: ClassVar[bool] = True
    """Whether torch.compile can compile the training of this encoder."""
    can_export_program: ClassVar[bool] = True
    """Whether torch.export can prove this encoder's shapes for utterances of any length."""
    needs_joiner_proj: ClassVar[bool] = False
    """Whether the width of the encoder's output is its own, so that the joiner must project it."""

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
class CausalEncoderConfig(EncoderConfig):
    """Sizes of an encoder that can be trained on chunks."""

    causal: bool = False
    """Train on chunks of several lengths, for live sound."""
    chunk_size: tuple[int, ...] = (16, 32, 64, -1)
    """Lengths of chunks to train on, in frames of 20 ms; -1: the utterance."""
    left_context_frames: tuple[int, ...] = (64, 128, 256, -1)
    """Left context of a chunk, in frames of 20 ms; -1: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk_size", "left_context_frames"):
            value = getattr(self, name)
            wrong = next((number for number in value if not 1 <= number <= _MOST_CHUNK_FRAMES and number != -1), None)
            if not value or wrong is not None:
                fault = "empty" if wrong is None else wrong
                raise ValueError(f"`{name}` must be numbers in 1..{_MOST_CHUNK_FRAMES}, or -1, but is {fault}.")
        broken = next((size for size in self.chunk_size if size > 0 and size % self.chunk_factor), None)
        if self.causal and broken is not None:
            raise ValueError(f"`chunk_size` must be a multiple of {self.chunk_factor}, but is {broken}.")

    @property
    @abstractmethod
    def chunk_factor(self) -> int:
        """Frames of 20 ms that chunk sizes must be a multiple of."""

    @property
    def _causality(self) -> str:
        return "causal " if self.causal else ""


@dataclass(frozen=True)
class ConformerConfig(CausalEncoderConfig):
    """Sizes of a conformer; the defaults are the tutorial's.

    Example:
        >>> ConformerConfig(num_layers=8, attention_dim=256, num_heads=4).summary
        'conformer, 8 layers of width 256, 4 heads'
    """

    kind: ClassVar[str] = "conformer"

    num_layers: Annotated[int, Interval(ge=1, le=256)] = 12
    """Conformer layers."""
    attention_dim: Annotated[int, Ge(1)] = 512
    """Width of the encoder."""
    num_heads: Annotated[int, Ge(1)] = 8
    """Attention heads; the width must be a multiple of their number."""
    feedforward_dim: Annotated[int, Ge(1)] = 2048
    """Width inside the feed-forward modules."""
    conv_kernel: Annotated[int, Ge(1)] = 31
    """Frames that a convolution module sees; odd."""
    causal_conv: Annotated[bool, ADVANCED] = False
    """With `causal`: let convolutions see past frames only, instead of as many on both sides, as far as the chunk."""
    subsampling_channels: Annotated[int, Ge(1)] | None = None
    """Channels of the two subsampling convolutions; by default, the width of the encoder."""

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
    def conv_past(self) -> int:
        """Frames before a chunk that a convolution sees."""
        return self.conv_kernel - 1 if self.causal and self.causal_conv else self.conv_kernel // 2

    @property
    def subsampling(self) -> Subsampling:
        """Two convolutions over time of kernel 3 and stride 2, without padding."""
        return Subsampling(factor=4, min_frames=7)

    @property
    def chunk_factor(self) -> int:
        """An encoder frame is 40 ms long."""
        return 2

    @property
    def summary(self) -> str:
        """Kind, layers, width and heads."""
        layers, heads = counted(self.num_layers, "layer"), counted(self.num_heads, "head")
        return f"{self._causality}conformer, {layers} of width {self.attention_dim}, {heads}"


@dataclass(frozen=True)
class ZipformerConfig(CausalEncoderConfig):
    """Sizes of a Zipformer: a number for each stack, separated by commas, or one for all; the defaults are icefall's M.

    `ZIPFORMER_SIZES` has the published sizes by name.
    """

    kind: ClassVar[str] = "zipformer"
    usual_decoder: ClassVar[DecoderConfig] = DecoderConfig(decoder_dim=512, decoder_conv="grouped")
    usual_joiner: ClassVar[JoinerConfig] = JoinerConfig(joiner_proj=True)
    # the corrections of gradients, which act by chance, cut each layer into dozens of graphs
    can_compile: ClassVar[bool] = False
    # at several frame rates, quotients of quotients of the length have to divide one another
    can_export_program: ClassVar[bool] = False
    needs_joiner_proj: ClassVar[bool] = True

    dropout: Annotated[float, Interval(ge=0, lt=1 / 3)] = 0.1
    """Share of activations dropped in training, after 20000 batches; three times as much at the beginning."""
    num_encoder_layers: tuple[Annotated[int, Interval(ge=1, le=256)], ...] = (2, 2, 3, 4, 3, 2)
    """Layers."""
    downsampling_factor: Annotated[tuple[Annotated[int, Interval(ge=1, le=64)], ...], ADVANCED] = (1, 2, 4, 8, 4, 2)
    """Downsampling factor: frames, at 50 per second, per frame of the stack."""
    encoder_dim: tuple[Annotated[int, Ge(1)], ...] = (192, 256, 384, 512, 384, 256)
    """Width; the largest one is that of the encoder."""
    encoder_unmasked_dim: Annotated[tuple[Annotated[int, Ge(1)], ...], ADVANCED] = (192, 192, 256, 256, 256, 192)
    """Channels that training never masks."""
    feedforward_dim: tuple[Annotated[int, Ge(4)], ...] = (512, 768, 1024, 1536, 1024, 768)
    """Width inside the second feed-forward module; the first has 3/4 of it, the third 5/4."""
    num_heads: tuple[Annotated[int, Ge(1)], ...] = (4, 4, 4, 8, 4, 4)
    """Attention heads."""
    query_head_dim: Annotated[tuple[Annotated[int, Ge(1)], ...], ADVANCED] = (32,)
    """Width of a head's queries and keys."""
    value_head_dim: Annotated[tuple[Annotated[int, Ge(1)], ...], ADVANCED] = (12,)
    """Width of a head's values."""
    pos_head_dim: Annotated[tuple[Annotated[int, Ge(1)], ...], ADVANCED] = (4,)
    """Width of a head's queries by position."""
    pos_dim: Annotated[int, Ge(2), ADVANCED] = 48
    """Features of a position; even."""
    cnn_module_kernel: Annotated[tuple[Annotated[int, Ge(1)], ...], ADVANCED] = (31, 31, 15, 15, 15, 31)
    """Frames that a convolution module sees; odd."""
    subsampling_channels: Annotated[int, Ge(16), ADVANCED] = 128
    """Channels of the last subsampling convolution, a multiple of 16; the two before it have a sixteenth and a quarter
    of them. In a small model, 32 channels save most of the time."""
    pads_like_icefall: Annotated[bool, ADVANCED] = False
    """Let the padding frames of a batch affect the ends of shorter utterances, as in icefall, to reproduce its
    results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        num_stacks = len(self.downsampling_factor)
        if not 1 <= num_stacks <= _MOST_STACKS:
            raise ValueError(f"`downsampling_factor` must have 1 to {_MOST_STACKS} numbers, but has {num_stacks}.")
        for name in _PER_STACK:
            value = getattr(self, name)
            if len(value) not in (1, num_stacks):
                raise ValueError(
                    f"`{name}` must have as many numbers as `downsampling_factor`, {num_stacks}, or 1, but has "
                    f"{len(value)}."
                )
            # one number stands for all stacks; a frozen dataclass has no other way to normalize a field
            object.__setattr__(self, name, value * (num_stacks // len(value)))
        self._check_dims()

    def _check_dims(self) -> None:
        odd = next((dim for dim in self.encoder_dim if dim % 2), None)
        if odd is not None:
            raise ValueError(f"`encoder_dim` must be even, but is {odd}.")
        even = next((value for value in self.cnn_module_kernel if value % 2 == 0), None)
        if even is not None:
            raise ValueError(f"`cnn_module_kernel` must be odd, but is {even}.")
        if self.subsampling_channels % 16:
            raise ValueError(f"`subsampling_channels` must be a multiple of 16, but is {self.subsampling_channels}.")
        if self.pos_dim % 2:
            raise ValueError(f"`pos_dim` must be even, but is {self.pos_dim}.")
        for unmasked, dim in zip(self.encoder_unmasked_dim, self.encoder_dim, strict=True):
            if unmasked > dim:
                raise ValueError(f"`encoder_unmasked_dim` must be at most `encoder_dim` {dim}, but is {unmasked}.")

    @property
    def chunk_factor(self) -> int:
        """A chunk has whole frames of all stacks, and of the output."""
        return math.lcm(2, *self.downsampling_factor)

    @property
    def subsampling(self) -> Subsampling:
        """Convolutions of stride 2 that see 9 frames, then pairs of frames, the last one with itself if it is alone."""
        return Subsampling(factor=4, min_frames=9)

    @property
    def summary(self) -> str:
        """Kind, stacks, layers and width."""
        sizes = _published_sizes(self)
        name = next((name for name, published in ZIPFORMER_SIZES.items() if _published_sizes(published) == sizes), None)
        named = "" if name is None else f" {name.upper()}"
        layers, stacks = sum(self.num_encoder_layers), len(self.num_encoder_layers)
        kind = f"{self._causality}zipformer{named}"
        return f"{kind}, {layers} layers in {stacks} stacks of width up to {max(self.encoder_dim)}"


_MOST_STACKS = 32
_MOST_CHUNK_FRAMES = 10_000
"""Frames of 20 ms; an utterance is padded to whole chunks."""
_PER_STACK = (
    "num_encoder_layers",
    "downsampling_factor",
    "encoder_dim",
    "encoder_unmasked_dim",
    "feedforward_dim",
    "num_heads",
    "query_head_dim",
    "value_head_dim",
    "pos_head_dim",
    "cnn_module_kernel",
)
"""Fields of `ZipformerConfig` with a number for each stack."""
# in which the published sizes differ
_published_sizes = attrgetter("num_encoder_layers", "encoder_dim", "feedforward_dim")

ZIPFORMER_SIZES = {
    "s": ZipformerConfig(
        num_encoder_layers=(2, 2, 2, 2, 2, 2),
        encoder_dim=(192, 256, 256, 256, 256, 256),
        encoder_unmasked_dim=(192,),
        feedforward_dim=(512, 768, 768, 768, 768, 768),
    ),
    "m": ZipformerConfig(),
    "l": ZipformerConfig(
        num_encoder_layers=(2, 2, 4, 5, 4, 2),
        encoder_dim=(192, 256, 512, 768, 512, 256),
        encoder_unmasked_dim=(192, 192, 256, 320, 256, 192),
        feedforward_dim=(512, 768, 1536, 2048, 1536, 768),
    ),
}
"""icefall's published sizes: 23, 66 and 148 million parameters with a vocabulary of 500."""


ENCODER_CONFIGS: dict[str, type[EncoderConfig]] = {
    ConformerConfig.kind: ConformerConfig,
    ZipformerConfig.kind: ZipformerConfig,
}
"""Configuration class of each encoder by its kind."""


@dataclass(frozen=True)
class ModelConfig:
    """A stateless transducer; the defaults are the tutorial's, 87,939,824 parameters at vocabulary 4336.

    Example:
        >>> config = ModelConfig(500, ConformerConfig(num_layers=8), feature_norm="level")
        >>> config == ModelConfig.from_sizes(config.sizes())
        True
    """

    vocab_size: Annotated[int, Ge(1)]
    """Number of tokens, blank included."""
    encoder: EncoderConfig = field(default_factory=ConformerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    joiner: JoinerConfig = field(default_factory=JoinerConfig)
    feature_dim: Annotated[int, Ge(7)] = 80
    """Mel bins of a feature frame."""
    feature_norm: FeatureNorm = "none"
    """Normalization of the features. level: subtract the loudness of the utterance. mean: subtract the mean of each bin
    over the utterance. global: use mean and standard deviation of each bin in the training data, also for causal
    models."""
    blank_id: int = 0
    """Id of the blank."""

    def __post_init__(self) -> None:
        check_bounds(self)
        self._check_widths()
        if self.feature_norm in ("mean", "level") and self.is_causal:
            raise ValueError(
                f"`feature_norm={self.feature_norm}` needs whole utterances, which a causal model does not wait for. "
                "Set `feature_norm` to global, or `causal` to false; `gain_range_db=10` prepares for other levels."
            )
        if not 0 <= self.blank_id < self.vocab_size:
            raise ValueError(f"`blank_id` must be in 0..{self.vocab_size - 1}, but is {self.blank_id}.")

    def _check_widths(self) -> None:
        """Check that decoder and encoder are as wide as the joiner, or projected, and that groups fill the decoder."""
        kind, joiner_dim = self.encoder.kind, self.joiner.joiner_dim
        if self.encoder.needs_joiner_proj and not self.joiner.joiner_proj:
            raise ValueError(f"`joiner_proj` must be true for a {kind}, whose output is not as wide as the joiner.")
        if not self.joiner.joiner_proj and self.decoder_dim != joiner_dim:
            raise ValueError(
                f"`decoder_dim` must be `joiner_dim` {joiner_dim} without `joiner_proj`, but is {self.decoder_dim}."
            )
        if self.decoder.decoder_conv == "grouped" and self.decoder_dim % 4:
            raise ValueError(
                f"`decoder_dim` must be a multiple of 4 for a grouped `decoder_conv`, but is {self.decoder_dim}."
            )

    @property
    def decoder_dim(self) -> int:
        """Width of the decoder, P."""
        return self.decoder.decoder_dim or self.joiner.joiner_dim

    @property
    def is_causal(self) -> bool:
        """Whether the model can recognize live sound."""
        return isinstance(self.encoder, CausalEncoderConfig) and self.encoder.causal

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
        # JSON has no tuples
        values: dict[str, Any] = {
            name: tuple(cast("list[Any]", value)) if isinstance(value, list) else value for name, value in sizes.items()
        }
        del values["encoder"]
        if kind == ConformerConfig.kind:
            # causal models from before there was a choice
            values.setdefault("causal_conv", values.get("causal", False))
        parts: dict[str, Any] = {}
        for name, config in (("encoder", ENCODER_CONFIGS[kind]), ("decoder", DecoderConfig), ("joiner", JoinerConfig)):
            parts[name] = config(**{size: values.pop(size) for size in _names(config) if size in values})
        unknown = values.keys() - _names(cls)
        if unknown:
            raise ValueError(f"{', '.join(f'`{name}`' for name in sorted(unknown))} is no size of a {kind} model.")
        return cls(**parts, **values)


_PARTS = ("encoder", "decoder", "joiner")


def _names(config: type) -> list[str]:
    return [field.name for field in fields(config)]
