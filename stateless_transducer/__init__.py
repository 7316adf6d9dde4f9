"""Stateless transducer speech recognition: data preparation, training, decoding, transcription."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> its module; loaded when asked for, since torch takes seconds. __init__.pyi tells type checkers the same
_MODULES = {
    "Alignment": "decoding.alignment",
    "Alternative": "recognition.transcript",
    "AudioError": "audio",
    "Checkpoint": "checkpoint",
    "ConformerConfig": "model.config",
    "DecoderConfig": "model.config",
    "DetailConfig": "recognition.config",
    "EncoderConfig": "model.config",
    "EndpointRules": "recognition.endpoint",
    "FbankConfig": "features",
    "HotwordPhrase": "text.hotwords",
    "Hotwords": "decoding.fusion",
    "Hypothesis": "decoding.hypothesis",
    "JoinerConfig": "model.config",
    "LanguageModel": "decoding.language_model",
    "LogitOptions": "decoding.options",
    "ModelConfig": "model.config",
    "NeuralScorer": "decoding.language_model",
    "NgramScorer": "decoding.language_model",
    "Recognizer": "recognition.recognizer",
    "Scorer": "decoding.fusion",
    "SearchConfig": "decoding.config",
    "Segment": "recognition.transcript",
    "SegmentConfig": "recognition.config",
    "Sound": "recognition.sounds",
    "StreamingRecognizer": "recognition.streaming",
    "Stretch": "recognition.sounds",
    "SumOfScorers": "decoding.fusion",
    "TokenTable": "text.tokens",
    "Transcript": "recognition.transcript",
    "Transducer": "model.transducer",
    "TransducerModel": "decoding.protocols",
    "TransducerSteps": "decoding.protocols",
    "Word": "recognition.transcript",
    "align": "decoding.alignment",
    "beam_search": "decoding.beam",
    "build_model": "model.transducer",
    "decode_features": "decoding.search",
    "decode_features_nbest": "decoding.search",
    "fbank": "features",
    "greedy_search": "decoding.greedy",
    "joint_transducer_loss": "ops.joint_loss",
    "load_checkpoint": "checkpoint",
    "load_icefall": "icefall",
    "make_scorer": "decoding.search",
    "modified_beam_search": "decoding.modified_beam",
    "prune_joiner_inputs": "ops.pruned_loss",
    "prune_ranges": "ops.pruned_loss",
    "pruned_transducer_loss": "ops.pruned_loss",
    "read_arpa": "text.ngram",
    "read_audio": "audio",
    "save_checkpoint": "checkpoint",
    "save_icefall": "icefall",
    "simple_transducer_loss": "ops.pruned_loss",
    "spell_hotwords": "text.hotwords",
    "transducer_loss": "ops.transducer_loss",
}
__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
