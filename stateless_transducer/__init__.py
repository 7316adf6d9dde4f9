"""Stateless transducer speech recognition: data preparation, training, decoding, transcription."""

__version__ = "0.1.0"
