"""Stateless transducer speech recognition: data preparation, training, decoding, transcription."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> its module; loaded when asked for, since torch takes seconds. __init__.pyi tells type checkers the same
_MODULES = {
    "Alternative": "recognition.transcript",
    "AudioError": "audio",
    "Checkpoint": "checkpoint",
    "DetailConfig": "recognition.config",
    "EndpointRules": "recognition.endpoint",
    "FbankConfig": "features",
    "Hypothesis": "decoding.hypothesis",
    "ModelConfig": "model.config",
    "Recognizer": "recognition.recognizer",
    "SearchConfig": "decoding.config",
    "Segment": "recognition.transcript",
    "SegmentConfig": "recognition.config",
    "Sound": "recognition.sounds",
    "StreamingRecognizer": "recognition.streaming",
    "Stretch": "recognition.sounds",
    "TokenTable": "text.tokens",
    "Transcript": "recognition.transcript",
    "Transducer": "model.transducer",
    "Word": "recognition.transcript",
    "build_model": "model.transducer",
    "joint_transducer_loss": "ops.joint_loss",
    "load_checkpoint": "checkpoint",
    "load_icefall": "icefall",
    "make_scorer": "decoding.search",
    "prune": "ops.pruned_loss",
    "prune_ranges": "ops.pruned_loss",
    "pruned_transducer_loss": "ops.pruned_loss",
    "save_checkpoint": "checkpoint",
    "save_icefall": "icefall",
    "search": "decoding.search",
    "search_nbest": "decoding.search",
    "simple_transducer_loss": "ops.pruned_loss",
    "transducer_loss": "ops.transducer_loss",
}
__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
