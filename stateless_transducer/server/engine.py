"""A common interface of the server to models of whole utterances and streaming models."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, TimeoutError
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

import numpy as np

from stateless_transducer.audio import stream_audio
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.segments import Phrases
from stateless_transducer.recognition.sounds import CountedBlocks
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.server.batcher import ClosedError
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.live import (
    LiveSession,
    PieceBatcher,
    PiecewiseSession,
    StreamingSession,
    stream_batcher,
)
from stateless_transducer.text.symbols import Vocabulary

_PIECES_AHEAD = 8
"""Pieces of one recording that may be queued at once, so that a long upload cannot starve others."""

_MOST_HOTWORD_TOKENS = 1000
"""Most tokens in the hotwords of one sound; their tables are built for every batch."""

_MOST_HOTWORD_CHARACTERS = 20_000
"""Most characters of them; spelling a megabyte takes seconds, in which the event loop would answer no one."""

_LOOKS_EVERY_S = 0.5
"""Interval of checks whether the client is still connected."""


class AbandonedError(Exception):
    """The client has disconnected."""


class TooLongError(Exception):
    """The sound is longer than the server accepts."""


@dataclass(frozen=True)
class SoundFile:
    """An uploaded sound, and how to transcribe it."""

    file: BinaryIO
    """Open, and may be read from its beginning again; its ``name`` is that of messages."""
    channel: int | None = None
    """See `Recognizer.transcribe`."""
    phrases: Phrases = ()
    """Hotwords, as `Engine.spell` gives them."""
    max_seconds: float = math.inf
    """Longest duration that is accepted."""


Tell = Callable[[Segment], object]
"""Called with each segment as soon as it is known."""


class Engine(Protocol):
    """A model that clients share; its methods may be called from any thread."""

    token_table: Vocabulary
    has_hotwords: bool
    """Whether a sound may have hotwords of its own."""

    def spell(self, hotwords: Sequence[str]) -> Phrases:
        """Hotwords in the form that `transcribe` and `live` take.

        Raises:
            ValueError: The tokens cannot spell a phrase, or the model takes no hotwords.
        """
        ...

    def transcribe(self, sound: SoundFile, is_abandoned: Callable[[], bool], tell: Tell) -> Transcript:
        """Transcribe a sound file.

        Args:
            sound: The file and its options.
            is_abandoned: Called now and then; whether to give up.
            tell: Called with each segment.

        Raises:
            AudioError: The sound cannot be read.
            AbandonedError: The client has disconnected.
            TooLongError: The sound is longer than ``sound.max_seconds``.
            ClosedError: The engine was closed.
        """
        ...

    def live(self, sample_rate: int, phrases: Phrases = ()) -> LiveSession:
        """Start a session for live sound with these hotwords."""
        ...

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait for the model."""
        ...

    def close(self) -> None:
        """Give up all work as soon as possible. More than once does no harm."""
        ...


class PiecewiseEngine:
    """A model of whole utterances; a causal one decodes live sound chunk by chunk."""

    def __init__(self, recognizer: Recognizer, config: BatchConfig, live: StreamingRecognizer | None = None) -> None:
        """Set up an engine.

        Args:
            recognizer: Recognizer that clients share.
            config: Batches of pieces.
            live: Recognizer of live sound, with the same search; None: ``recognizer`` decodes the current
                utterance anew for each result.
        """
        self._pipeline, self._live = recognizer.pipeline, live
        self.token_table: Vocabulary = recognizer.token_table
        rate = recognizer.sample_rate
        self._batcher = PieceBatcher(
            lambda pieces: recognizer.pipeline.recognize(pieces, config.batch_seconds),
            lambda piece: len(piece.samples) / rate,
            batch_seconds=config.batch_seconds,
            max_wait_ms=config.max_wait_ms,
        )
        self._streams = None if live is None else stream_batcher(live, config)
        self.has_hotwords: bool = recognizer.pipeline.scorers.has_hotwords

    def spell(self, hotwords: Sequence[str]) -> Phrases:
        """See `Engine`."""
        return _checked(self._pipeline.scorers.spell(hotwords))

    def transcribe(self, sound: SoundFile, is_abandoned: Callable[[], bool], tell: Tell) -> Transcript:
        """See `Engine`."""
        warnings: list[str] = []
        waiting: deque[Future[Segment]] = deque()
        segments: list[Segment] = []

        def take() -> None:
            segments.append(_result(waiting.popleft(), is_abandoned))
            tell(segments[-1])

        rate = self._pipeline.sample_rate
        blocks = CountedBlocks(_blocks(sound, rate, is_abandoned, warnings.append))
        try:
            for piece in self._pipeline.pieces(blocks):
                waiting.append(self._batcher.submit(replace(piece, phrases=sound.phrases)))
                if len(waiting) >= _PIECES_AHEAD:
                    take()
            while waiting:
                take()
        except CancelledError as err:
            raise AbandonedError from err
        finally:
            # after an error, the rest is not needed
            for future in waiting:
                future.cancel()
        text = self.token_table.join(segment.text for segment in segments)
        return Transcript(text, round(blocks.num_samples / rate, 3), tuple(segments), tuple(warnings))

    def live(self, sample_rate: int, phrases: Phrases = ()) -> LiveSession:
        """See `Engine`."""
        if self._live is not None and self._streams is not None:
            return StreamingSession(self._live, self._streams, sample_rate, phrases)
        pieces, model_rate = self._pipeline.live_pieces(), self._pipeline.sample_rate
        return PiecewiseSession(pieces, self._batcher, phrases, sample_rate=sample_rate, model_rate=model_rate)

    @property
    def waiting_s(self) -> float:
        """See `Engine`."""
        return self._batcher.waiting_s + (self._streams.waiting_s if self._streams is not None else 0.0)

    def close(self) -> None:
        """See `Engine`."""
        self._batcher.close()
        if self._streams is not None:
            self._streams.close()


class StreamingEngine:
    """A streaming model: sound files are decoded from front to back, too."""

    def __init__(self, recognizer: StreamingRecognizer, config: BatchConfig) -> None:
        """Set up an engine for a recognizer, with batches of live streams."""
        self._recognizer, self._is_closed = recognizer, False
        self._streams = stream_batcher(recognizer, config)
        self.token_table: Vocabulary = recognizer.token_table
        self.has_hotwords: bool = recognizer.scorers.has_hotwords

    def spell(self, hotwords: Sequence[str]) -> Phrases:
        """See `Engine`."""
        return _checked(self._recognizer.scorers.spell(hotwords))

    def transcribe(self, sound: SoundFile, is_abandoned: Callable[[], bool], tell: Tell) -> Transcript:
        """See `Engine`."""
        rate, warnings = self._recognizer.sample_rate, []
        blocks = CountedBlocks(_blocks(sound, rate, is_abandoned, warnings.append))
        segments = []
        for segment in self._recognizer.recognize_blocks(self._until_closed(blocks), rate, sound.phrases):
            segments.append(segment)
            tell(segment)
        text = self.token_table.join(segment.text for segment in segments)
        return Transcript(text, round(blocks.num_samples / rate, 3), tuple(segments), tuple(warnings))

    def _until_closed(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            if self._is_closed:
                raise ClosedError("The model is being closed.")
            yield block

    def live(self, sample_rate: int, phrases: Phrases = ()) -> LiveSession:
        """See `Engine`."""
        return StreamingSession(self._recognizer, self._streams, sample_rate, phrases)

    @property
    def waiting_s(self) -> float:
        """See `Engine`."""
        return self._streams.waiting_s

    def close(self) -> None:
        """See `Engine`."""
        self._is_closed = True
        self._streams.close()


def hotwords_in(fields: Sequence[str]) -> list[str]:
    """Return the hotwords in the fields of a request, one per line.

    Raises:
        ValueError: They are too long.
    """
    num_characters = sum(map(len, fields))
    if num_characters > _MOST_HOTWORD_CHARACTERS:
        raise ValueError(
            f"The hotwords of one sound have {num_characters} characters, but {_MOST_HOTWORD_CHARACTERS} are the most; "
            "the server's `--hotwords-file` may have more."
        )
    return [line for field in fields for line in field.splitlines()]


def _checked(phrases: Phrases) -> Phrases:
    """Return the hotwords of one sound, unless they are too many."""
    num_tokens = sum(len(tokens) for tokens, _ in phrases)
    if num_tokens > _MOST_HOTWORD_TOKENS:
        raise ValueError(
            f"The hotwords of one sound have {num_tokens} tokens, but {_MOST_HOTWORD_TOKENS} are the most; the "
            "server's `--hotwords-file` may have more."
        )
    return phrases


def _blocks(
    sound: SoundFile, rate: int, is_abandoned: Callable[[], bool], warn: Callable[[str], None]
) -> Iterator[np.ndarray]:
    """The sound in blocks of a second, until it is too long or the client has disconnected."""
    seconds = 0.0
    for block in stream_audio(sound.file, rate, channel=sound.channel, warn=warn, block_s=1.0):
        if is_abandoned():
            raise AbandonedError
        seconds += len(block) / rate
        if seconds > sound.max_seconds:
            raise TooLongError(f"The sound is longer than {sound.max_seconds:g} s.")
        yield block


def _result(future: Future[Segment], is_abandoned: Callable[[], bool]) -> Segment:
    while True:
        try:
            return future.result(timeout=_LOOKS_EVERY_S)
        except TimeoutError:
            if is_abandoned():
                raise AbandonedError from None
