"""Sizes of models that users choose by name, for each kind of encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from stateless_transducer.model.config import (
    ENCODER_CONFIGS,
    ZIPFORMER_SIZES,
    ConformerConfig,
    EncoderConfig,
    JoinerConfig,
    ZipformerConfig,
)

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
    # no tiny one is published
    ZipformerConfig.kind: {
        "small": ModelSize(ZIPFORMER_SIZES["s"], ZipformerConfig.usual_joiner),
        "medium": ModelSize(ZIPFORMER_SIZES["m"], ZipformerConfig.usual_joiner),
        "large": ModelSize(ZIPFORMER_SIZES["l"], ZipformerConfig.usual_joiner),
    },
}
"""Sizes that each kind of encoder offers for ``--size``, from small to large; an encoder may offer some or none."""


def named_sizes(kind: str, size: SizeName) -> dict[str, Any]:
    """Return the sizes that a name stands for, by field: those in which some size of the kind differs from its default.

    Args:
        kind: kind of an encoder in `ENCODER_SIZES`.
        size: name of one of its sizes.
    """
    default = _fields_of(ModelSize(ENCODER_CONFIGS[kind](), ENCODER_CONFIGS[kind].usual_joiner))
    rows = {name: _fields_of(row) for name, row in ENCODER_SIZES[kind].items()}
    return {
        name: rows[size][name] for name, value in default.items() if any(row[name] != value for row in rows.values())
    }


def _fields_of(size: ModelSize) -> dict[str, Any]:
    return {**asdict(size.encoder), **asdict(size.joiner)}
