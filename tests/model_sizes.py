"""Model configurations from sizes side by side, as checkpoints list them."""

from __future__ import annotations

import numpy as np

from stateless_transducer.data.plan import Lengths
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ConformerConfig, ModelConfig


def conformer_model(vocab_size: int, **sizes) -> ModelConfig:
    """A model with a conformer; sizes that are not given are the defaults."""
    return ModelConfig.from_sizes({"encoder": "conformer", "vocab_size": vocab_size, **sizes})


def resized(config: ModelConfig, **sizes) -> ModelConfig:
    """The same model with other sizes."""
    return ModelConfig.from_sizes({**config.sizes(), **sizes})


SUBSAMPLING = ConformerConfig().subsampling


def lengths(seconds: np.ndarray, num_frames: np.ndarray, num_tokens: np.ndarray) -> Lengths:
    """Utterances of these lengths, with the default front end and the conformer's subsampling."""
    return Lengths(seconds, num_frames, num_tokens, FbankConfig().frame_shift_s, SUBSAMPLING)
