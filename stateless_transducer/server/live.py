"""Live sound from a microphone or a network: partial and final results.

A model of whole utterances decodes the current utterance again and again until a pause ends it; a streaming model
continues where it stopped. Letters: S samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import soxr

from stateless_transducer.recognition.segments import Phrases, Piece, PieceStream
from stateless_transducer.recognition.streaming import Stream, StreamingRecognizer, as_wave
from stateless_transducer.recognition.transcript import Segment
from stateless_transducer.server.batcher import Batcher
from stateless_transducer.server.config import BatchConfig

PieceBatcher = Batcher[Piece, Segment]
"""Batcher that recognizes pieces of sounds."""
StreamBatcher = Batcher[Stream, None]
"""Batcher that decodes the next chunk of streams."""

_PARTIAL_S = 0.5
"""Least seconds of new sound between two partial results of an utterance."""
_SHARE_OF_TIME = 0.3
"""Share of the time that may be spent on partial results."""


@dataclass(frozen=True)
class Heard:
    """Result of an utterance."""

    segment: Segment
    is_final: bool
    """Whether the utterance has ended; otherwise its text may still change."""


class LiveSession(Protocol):
    """One live sound. For one thread at a time."""

    def accept(self, samples: np.ndarray) -> Iterator[Heard]:
        """Take the next samples, (S,): floats in [-1, 1] or int16.

        Raises:
            ValueError: The samples are invalid.
        """
        ...

    def finish(self) -> Iterator[Heard]:
        """End the sound; the rest is final."""
        ...


def stream_batcher(recognizer: StreamingRecognizer, config: BatchConfig) -> StreamBatcher:
    """Return a batcher of the streams of a recognizer; each item is a stream with sound for a chunk."""

    def work(streams: Sequence[Stream]) -> list[None]:
        recognizer.advance(streams)
        return [None] * len(streams)

    return StreamBatcher(
        work, lambda _: recognizer.chunk_s, batch_seconds=config.batch_seconds, max_wait_ms=config.max_wait_ms
    )


class StreamingSession:
    """Live sound with a streaming model."""

    def __init__(
        self, recognizer: StreamingRecognizer, batcher: StreamBatcher, sample_rate: int, phrases: Phrases = ()
    ) -> None:
        """Set up a session.

        Args:
            recognizer: makes the stream.
            batcher: decodes it, together with those of other sessions; see `stream_batcher`.
            sample_rate: of the sound.
            phrases: hotwords.
        """
        self._batcher, self._sample_rate = batcher, sample_rate
        self._stream = recognizer.create_stream(phrases=phrases)
        self._text = ""

    def accept(self, samples: np.ndarray) -> Iterator[Heard]:
        """See `LiveSession`."""
        self._stream.accept(samples, self._sample_rate)
        yield from self._decode()

    def finish(self) -> Iterator[Heard]:
        """See `LiveSession`."""
        self._stream.finish()
        yield from self._decode()
        if self._stream.result.tokens:
            yield Heard(self._stream.result, is_final=True)

    def _decode(self) -> Iterator[Heard]:
        stream = self._stream
        while stream.is_ready:
            self._batcher.submit(stream).result()
            result, is_final = stream.result, stream.is_endpoint
            if result.tokens and (is_final or result.text != self._text):
                yield Heard(result, is_final)
            self._text = "" if is_final else result.text
            if is_final:
                stream.reset()


class PiecewiseSession:
    """Live sound with a model of whole utterances."""

    def __init__(
        self,
        pieces: PieceStream,
        batcher: PieceBatcher,
        phrases: Phrases = (),
        *,
        sample_rate: int,
        model_rate: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up a session.

        Args:
            pieces: Cutter at the model's rate.
            batcher: recognizes.
            phrases: hotwords.
            sample_rate: of the sound.
            model_rate: Rate of the model.
            clock: tells seconds.
        """
        self._pieces, self._batcher, self._phrases, self._clock = pieces, batcher, phrases, clock
        self._model_rate = model_rate
        self._resampler = None
        if sample_rate != model_rate:
            self._resampler = soxr.ResampleStream(sample_rate, model_rate, 1, dtype="float32")
        self._heard_until = 0  # samples, at the last partial result
        self._free_at = -np.inf  # earliest time of the next partial result

    def accept(self, samples: np.ndarray) -> Iterator[Heard]:
        """See `LiveSession`."""
        wave = as_wave(samples)
        if self._resampler is not None:
            wave = self._resampler.resample_chunk(wave)
        yield from self._final(self._pieces.accept(wave))
        yield from self._so_far()

    def finish(self) -> Iterator[Heard]:
        """See `LiveSession`."""
        if self._resampler is not None:
            rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            yield from self._final(self._pieces.accept(rest))
        yield from self._final(self._pieces.finish())

    def _final(self, pieces: Iterator[Piece]) -> Iterator[Heard]:
        for piece in pieces:
            segment = self._recognize(piece)
            if segment.text:
                yield Heard(segment, is_final=True)

    def _so_far(self) -> Iterator[Heard]:
        """Partial result of the current piece, if there is enough new sound and time."""
        piece, now = self._pieces.unfinished, self._clock()
        if piece is None or now < self._free_at:
            return
        end = piece.start + len(piece.samples)
        if end - max(self._heard_until, piece.start) < _PARTIAL_S * self._model_rate:
            return
        segment = self._recognize(piece)
        self._heard_until, took = end, self._clock() - now
        self._free_at = now + took / _SHARE_OF_TIME
        if segment.text:
            yield Heard(segment, is_final=False)

    def _recognize(self, piece: Piece) -> Segment:
        return self._batcher.submit(replace(piece, phrases=self._phrases)).result()
