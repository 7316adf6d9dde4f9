"""Model configurations from sizes side by side, as checkpoints list them."""

from __future__ import annotations

import numpy as np

from stateless_transducer.data.plan import Lengths
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ConformerConfig, ModelConfig, ZipformerConfig


def conformer_model(vocab_size: int, **sizes) -> ModelConfig:
    """A model with a conformer; sizes that are not given are the defaults."""
    return ModelConfig.from_sizes({"encoder": "conformer", "vocab_size": vocab_size, **sizes})


def zipformer_model(vocab_size: int, encoder: ZipformerConfig, **sizes) -> ModelConfig:
    """A model with a Zipformer, and its usual decoder and joiner but for the sizes given."""
    usual = ModelConfig(vocab_size, encoder, encoder.usual_decoder, encoder.usual_joiner)
    return resized(usual, **sizes)


SMALL_CONFORMER = ConformerConfig(num_layers=2, attention_dim=24, num_heads=3, feedforward_dim=40, conv_kernel=7)
"""Sizes for tests."""

SMALL_ZIPFORMER = ZipformerConfig(
    num_encoder_layers=(1, 2, 1),
    downsampling_factor=(1, 4, 2),
    encoder_dim=(16, 32, 24),
    encoder_unmasked_dim=(12, 20, 16),
    feedforward_dim=(24, 32, 24),
    num_heads=(2, 4, 2),
    query_head_dim=(6,),
    value_head_dim=(4,),
    pos_head_dim=(2,),
    pos_dim=12,
    cnn_module_kernel=(7, 5, 7),
    chunk_size=(8, 16, -1),
    left_context_frames=(16, -1),
)
"""Sizes for tests, with all that differs between stacks; three utterances of a second take 20 ms."""


def resized(config: ModelConfig, **sizes) -> ModelConfig:
    """The same model with other sizes."""
    return ModelConfig.from_sizes({**config.sizes(), **sizes})


SUBSAMPLING = ConformerConfig().subsampling


def lengths(seconds: np.ndarray, num_frames: np.ndarray, num_tokens: np.ndarray) -> Lengths:
    """Utterances of these lengths, with the default front end and the conformer's subsampling."""
    return Lengths(seconds, num_frames, num_tokens, FbankConfig().frame_shift_s, SUBSAMPLING)
