"""Stateless transducer speech recognition: data preparation, training, decoding, transcription."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stateless_transducer.audio import AudioError as AudioError
    from stateless_transducer.checkpoint import Checkpoint as Checkpoint
    from stateless_transducer.checkpoint import load_checkpoint as load_checkpoint
    from stateless_transducer.checkpoint import save_checkpoint as save_checkpoint
    from stateless_transducer.decoding.config import SearchConfig as SearchConfig
    from stateless_transducer.decoding.hypothesis import Hypothesis as Hypothesis
    from stateless_transducer.decoding.search import make_scorer as make_scorer
    from stateless_transducer.decoding.search import search as search
    from stateless_transducer.decoding.search import search_nbest as search_nbest
    from stateless_transducer.features import FbankConfig as FbankConfig
    from stateless_transducer.icefall import load_icefall as load_icefall
    from stateless_transducer.icefall import save_icefall as save_icefall
    from stateless_transducer.model.config import ModelConfig as ModelConfig
    from stateless_transducer.model.transducer import Transducer as Transducer
    from stateless_transducer.model.transducer import build_model as build_model
    from stateless_transducer.ops.joint_loss import joint_transducer_loss as joint_transducer_loss
    from stateless_transducer.ops.pruned_loss import prune as prune
    from stateless_transducer.ops.pruned_loss import prune_ranges as prune_ranges
    from stateless_transducer.ops.pruned_loss import pruned_transducer_loss as pruned_transducer_loss
    from stateless_transducer.ops.pruned_loss import simple_transducer_loss as simple_transducer_loss
    from stateless_transducer.ops.transducer_loss import transducer_loss as transducer_loss
    from stateless_transducer.serving.config import DetailConfig as DetailConfig
    from stateless_transducer.serving.config import SegmentConfig as SegmentConfig
    from stateless_transducer.serving.endpoint import EndpointRules as EndpointRules
    from stateless_transducer.serving.recognizer import Recognizer as Recognizer
    from stateless_transducer.serving.streaming import StreamingRecognizer as StreamingRecognizer
    from stateless_transducer.serving.transcript import Alternative as Alternative
    from stateless_transducer.serving.transcript import Segment as Segment
    from stateless_transducer.serving.transcript import Transcript as Transcript
    from stateless_transducer.text.tokens import TokenTable as TokenTable

__version__ = "0.1.0"

# public name -> its module; loaded when asked for, since torch takes seconds
_MODULES = {
    "Alternative": "serving.transcript",
    "AudioError": "audio",
    "Checkpoint": "checkpoint",
    "DetailConfig": "serving.config",
    "EndpointRules": "serving.endpoint",
    "FbankConfig": "features",
    "Hypothesis": "decoding.hypothesis",
    "ModelConfig": "model.config",
    "Recognizer": "serving.recognizer",
    "SearchConfig": "decoding.config",
    "Segment": "serving.transcript",
    "SegmentConfig": "serving.config",
    "StreamingRecognizer": "serving.streaming",
    "TokenTable": "text.tokens",
    "Transcript": "serving.transcript",
    "Transducer": "model.transducer",
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
