"""Live sound -> text with a streaming model: a causal checkpoint, or published graphs, for which torch is not needed.

Letters: S samples, T_in feature frames, F mel bins, T encoder frames, D joiner width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, overload

import numpy as np

from stateless_transducer.audio import check_rate
from stateless_transducer.decoding.alignment import align
from stateless_transducer.decoding.arrays import Array, namespace
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Scorer
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.protocols import StreamingTransducer
from stateless_transducer.decoding.search import logit_options
from stateless_transducer.decoding.stream_search import FLUSH_S, StreamSearch, num_common_tokens
from stateless_transducer.features import FbankStream, samples_until
from stateless_transducer.model_files import Precision
from stateless_transducer.recognition.config import DetailConfig
from stateless_transducer.recognition.details import aligned, segment_of
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.recognition.model import StreamingModel, open_streaming_model
from stateless_transducer.recognition.scorers import SoundScorers
from stateless_transducer.recognition.segments import Phrases
from stateless_transducer.recognition.sounds import CountedBlocks, Sound, is_one_sound, read_sound
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.text.symbols import Vocabulary
from stateless_transducer.text.tokens import UNKNOWN

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Settings:
    """Model and options that the streams of a recognizer share."""

    model: StreamingTransducer
    token_table: Vocabulary
    search: StreamSearch
    config: SearchConfig
    rules: EndpointRules
    details: DetailConfig


class Stream:
    """One sound that is received in parts; made by `StreamingRecognizer.create_stream`. For one thread at a time."""

    def __init__(self, settings: _Settings, scorer: Scorer | None) -> None:
        self._settings, self._fbank_config = settings, settings.model.fbank_config
        self._fbank = FbankStream(self._fbank_config)
        self._state, self._search = settings.model.initial_state(), settings.search.start(scorer)
        # of the segment, if begins and ends are requested
        self._features: list[np.ndarray] = []
        self._encoder_out: list[Array] = []
        self._num_processed = self._segment_start = 0  # feature frames
        self._is_finished, self._duration_s = False, math.inf
        self._final: Segment | None = None

    def accept(self, samples: np.ndarray, sample_rate: int) -> None:
        """Take the next samples, any number of them; nothing is decoded before `StreamingRecognizer.advance`.

        Args:
            samples: (S,), one channel, float in [-1, 1] or int16.
            sample_rate: 1000 to 1,000,000 Hz, the same for the whole stream; what the model does not have is resampled.

        Raises:
            ValueError: The samples or the rate are invalid, or the stream is finished; the stream is unchanged.
        """
        if self._is_finished:
            raise ValueError("The stream is finished; make a new one for more sound.")
        self._fbank.accept(as_wave(samples), check_rate(sample_rate))

    def finish(self) -> None:
        """End the sound, and append the silence that the last words need."""
        if self._is_finished:
            return
        self._is_finished = True
        self._fbank.flush()
        if not self._fbank.num_samples:
            return
        self._duration_s = self._fbank.num_samples / self._fbank_config.sample_rate
        shift, per_second = self._settings.model.chunk_shift, 1000 / self._fbank_config.frame_shift_ms
        num_frames = round((self._duration_s + FLUSH_S) * per_second)
        num_chunks = -(-num_frames // shift)
        self._fbank.pad((num_chunks - 1) * shift + self._settings.model.chunk_frames)

    @property
    def is_ready(self) -> bool:
        """Whether there is enough sound for a chunk."""
        return self._num_processed + self._settings.model.chunk_frames <= self._fbank.num_frames

    @property
    def result(self) -> Segment:
        """Result since the last `reset`; times end with the sound, not with the appended silence.

        Before the end of a segment, the result is partial: `Segment.num_stable_tokens` of its tokens are certain. After
        the last chunk, and at an endpoint, it is final, with begins, ends and confidences if they were requested.
        """
        if not (self.is_endpoint or (self._is_finished and not self.is_ready)):
            return self._segment(self._settings.search.ranked(self._search, is_final=False), is_final=False)
        if self._final is None:
            hypotheses = self._settings.search.ranked(self._search)
            segment = self._segment(hypotheses, is_final=True)
            if math.isnan(hypotheses[0].score):
                _LOG.warning("The model's output is not finite for a stream; its segment has no text.")
            elif self._encoder_out:
                segment = self._aligned(segment, hypotheses[0])
            self._final = segment
        return self._final

    @property
    def is_endpoint(self) -> bool:
        """Whether the recognizer's rules say that an utterance has ended: take `result`, then `reset`."""
        best, num_frames = self._settings.search.ranked(self._search, is_final=False)[0], self._search.num_frames
        num_silent = num_frames - 1 - best.frames[-1] if best.frames else num_frames
        factor, frame_shift_s = self._settings.model.subsampling.factor, self._fbank_config.frame_shift_s
        return self._settings.rules.are_met(factor * num_frames, factor * num_silent, frame_shift_s)

    def reset(self) -> None:
        """Begin a new segment; encoder and decoder continue from their states."""
        self._search = self._settings.search.restart(self._search)
        self._segment_start = self._num_processed
        self._features, self._encoder_out, self._final = [], [], None

    @staticmethod
    def decode_chunks(settings: _Settings, streams: Sequence[Stream]) -> None:
        """Decode the next chunk of each stream, all of which are ready; see `StreamingRecognizer.advance`.

        Raises:
            ValueError: A stream belongs to another model.
        """
        if any(stream._settings is not settings for stream in streams):
            raise ValueError("A stream belongs to another recognizer.")
        model, search = settings.model, settings.search
        features = np.stack([stream._fbank.take(stream._num_processed, model.chunk_frames) for stream in streams])
        encoder_out, states = model.encode_chunk(features, [stream._state for stream in streams])
        searches = search.advance(encoder_out, [stream._search for stream in streams])
        for n, stream in enumerate(streams):
            stream._state, stream._search, stream._final = states[n], searches[n], None
            stream._num_processed += model.chunk_shift
            if settings.details.align:
                stream._features.append(features[n, : model.chunk_shift])
                stream._encoder_out.append(encoder_out[n])

    def _segment(self, hypotheses: Sequence[Hypothesis], *, is_final: bool) -> Segment:
        segment = segment_of(
            hypotheses,
            self._settings.token_table,
            start=self._frames_s(self._segment_start),
            end=self._frames_s(self._num_processed),
            frame_s=self._frames_s(self._settings.model.subsampling.factor),
            nbest=self._settings.details.nbest,
        )
        return replace(
            segment,
            start=self._within(segment.start),
            end=self._within(segment.end),
            times=tuple(self._within(time) for time in segment.times),
            num_stable_tokens=None if is_final else num_common_tokens(hypotheses),
        )

    def _aligned(self, segment: Segment, best: Hypothesis) -> Segment:
        settings, model = self._settings, self._settings.model
        encoder_out = namespace(self._encoder_out[0]).concat(self._encoder_out)
        (alignment,) = align(
            model,
            encoder_out[None],
            np.array([len(encoder_out)]),
            [best],
            max_symbols_per_frame=1 if settings.config.is_modified else None,
            options=logit_options(settings.config),
            contexts=[self._search.context],
        )
        features = np.concatenate(self._features)
        return aligned(segment, features, alignment, settings.token_table, model.subsampling, self._fbank_config)

    def _within(self, time: float) -> float:
        """The time, or the end of the sound if that is earlier."""
        return round(min(time, self._duration_s), 3)

    def _frames_s(self, count: int) -> float:
        return count * self._fbank_config.frame_shift_ms / 1000


class StreamingRecognizer:
    """A streaming model that transcribes any number of streams, or whole sounds.

    Example:
        >>> recognizer = StreamingRecognizer.from_pretrained("model.pt", chunk_ms=320)
        >>> recognizer.transcribe("a.wav").text
        '今天很好'

        The same for live sound, whose partial results a user sees while speaking:

        >>> stream = recognizer.create_stream()
        >>> for samples in np.array_split(read_audio("a.wav", 16000), 10):  # as from a microphone
        ...     stream.accept(samples, 16000)
        ...     while recognizer.advance([stream]):
        ...         partial = stream.result.text
        ...         if stream.is_endpoint:
        ...             stream.reset()
        >>> stream.finish()
        >>> while recognizer.advance([stream]):
        ...     pass
        >>> stream.result.text
        '今天很好'
    """

    def __init__(
        self,
        model: StreamingModel,
        config: SearchConfig | None = None,
        *,
        rules: EndpointRules | None = None,
        hotwords: Sequence[str] = (),
        details: DetailConfig | None = None,
    ) -> None:
        """Set up a recognizer for a model in memory.

        Args:
            model: Result of `recognition.model.open_streaming_model` or `streaming_model_of`.
            config: Search; by default greedy search.
            rules: When an utterance ends.
            hotwords: Phrases to boost, in addition to those of ``config.hotwords_file``; they need a beam search.
            details: What a final result has besides the text.

        Raises:
            ValueError: The tokens cannot spell a hotword, or the search has no beam or needs whole utterances.
        """
        config, tokens = config or SearchConfig(), model.token_table
        self.token_table: Vocabulary = tokens
        """Tokens of the model."""
        self.scorers: SoundScorers = SoundScorers(config, tokens, hotwords)
        """Hotwords and language models."""
        search = StreamSearch(model.transducer, config, unknown_id=tokens.ids.get(UNKNOWN))
        self._settings = _Settings(
            model.transducer, tokens, search, config, rules or EndpointRules(), details or DetailConfig()
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        config: SearchConfig | None = None,
        *,
        rules: EndpointRules | None = None,
        chunk_ms: int | None = None,
        left_ms: int | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        num_threads: int | None = None,
        hotwords: Sequence[str] = (),
        details: DetailConfig | None = None,
    ) -> StreamingRecognizer:
        """Open a causal checkpoint, a folder of streaming ONNX graphs, or a published model by name.

        Args:
            path: Checkpoint; or folder with encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt, for which torch
                is not needed; or ``owner/name`` of a repository of Hugging Face, see docs/models.md.
            config: Search; by default greedy search.
            rules: When an utterance ends.
            chunk_ms: Milliseconds of a chunk of a checkpoint; None: the nearest to 320 that it is trained on. Graphs
                have their own.
            left_ms: Milliseconds before a chunk that it sees, of a checkpoint; None: likewise the nearest to 2560.
            device: Device of a checkpoint: cpu, cuda, cuda:1, or auto for the first GPU. Graphs run on the CPU.
            precision: fp32; bf16 for a checkpoint; int8 for x.int8.onnx where a folder has both.
            num_threads: Threads on the CPU; None: one per graph, torch's number for a checkpoint.
            hotwords: Phrases to boost, see `StreamingRecognizer`.
            details: What a final result has besides the text.

        Raises:
            ValueError: A file is missing, ambiguous or invalid, the model needs whole utterances, or it does not
                support an argument.
        """
        model = open_streaming_model(
            path, chunk_ms=chunk_ms, left_ms=left_ms, device=device, precision=precision, num_threads=num_threads
        )
        return cls(model, config, rules=rules, hotwords=hotwords, details=details)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model, in Hz. Sounds of other rates are resampled."""
        return self._settings.model.fbank_config.sample_rate

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model."""
        return self._settings.model.vocab_size

    @property
    def chunk_s(self) -> float:
        """Seconds from the beginning of a chunk to that of the next one."""
        return self._settings.model.chunk_shift * self._settings.model.fbank_config.frame_shift_s

    @property
    def latency_s(self) -> float:
        """The most seconds from a sound to the chunk that decodes it, without computing and resampling.

        A chunk waits for its last frame; the sound at its beginning waits longest.
        """
        return samples_until(self._settings.model.chunk_frames, self._settings.model.fbank_config) / self.sample_rate

    @overload
    def transcribe(  # pyright: ignore[reportOverlappingOverload]
        self,
        sounds: Sound,
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        sounds: Iterable[Sound],
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        sounds: Sound | Iterable[Sound],
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
    ) -> Transcript | list[Transcript]:
        """Transcribe one sound, or several one after another, each chunk by chunk.

        Args:
            sounds: See `Recognizer.transcribe`.
            sample_rate: See `Recognizer.transcribe`.
            channel: See `Recognizer.transcribe`.
            hotwords: See `create_stream`.

        Returns:
            The transcript of one sound, or a list of transcripts in the order of the sounds.

        Raises:
            AudioError: A sound cannot be read.
            ValueError: An object is not a sound, or see `spell`.
        """
        phrases = self.scorers.spell(hotwords)
        if is_one_sound(sounds):
            return self._transcribe(sounds, sample_rate, channel, phrases)
        return [self._transcribe(sound, sample_rate, channel, phrases) for sound in cast("Iterable[Sound]", sounds)]

    def _transcribe(self, sound: Sound, sample_rate: int | None, channel: int | None, phrases: Phrases) -> Transcript:
        warnings: list[str] = []
        blocks = CountedBlocks(
            read_sound(sound, self.sample_rate, sample_rate=sample_rate, channel=channel, warn=warnings.append)
        )
        segments = tuple(self.recognize_blocks(blocks, self.sample_rate, phrases))
        for warning in warnings:
            _LOG.warning(warning)
        text = self.token_table.join(segment.text for segment in segments)
        return Transcript(text, round(blocks.num_samples / self.sample_rate, 3), segments, tuple(warnings))

    def stream_transcribe(
        self,
        sound: Sound,
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
    ) -> Iterator[Segment]:
        """Yield the segments of one sound in order, each as soon as it has ended; the arguments are `transcribe`'s.

        Raises:
            AudioError: The sound cannot be read, or not to its end.
        """
        blocks = read_sound(sound, self.sample_rate, sample_rate=sample_rate, channel=channel, warn=_LOG.warning)
        yield from self.recognize_blocks(blocks, self.sample_rate, self.scorers.spell(hotwords))

    def recognize_blocks(
        self, blocks: Iterable[np.ndarray], sample_rate: int, phrases: Phrases = ()
    ) -> Iterator[Segment]:
        """Yield the segments of one sound that comes in blocks, each as soon as it has ended.

        Args:
            blocks: Samples, see `Stream.accept`. Blocks of any length give the same segments.
            sample_rate: Rate of the blocks.
            phrases: See `create_stream`.
        """
        stream = self.create_stream(phrases=phrases)

        def ended() -> Iterator[Segment]:
            while self.advance([stream]):
                if stream.is_endpoint:
                    if stream.result.tokens:
                        yield stream.result
                    stream.reset()

        for block in blocks:
            stream.accept(block, sample_rate)
            yield from ended()
        stream.finish()
        yield from ended()
        if stream.result.tokens:
            yield stream.result

    def create_stream(self, hotwords: Sequence[str] = (), *, phrases: Phrases = ()) -> Stream:
        """A stream that has received no sound.

        Args:
            hotwords: Phrases to boost in this stream, in addition to the recognizer's.
            phrases: The same as token sequences, from `SoundScorers.spell`.

        Raises:
            ValueError: See `spell`.
        """
        phrases = (*self.scorers.spell(hotwords), *phrases)
        return Stream(self._settings, self.scorers.for_batch([phrases]))

    def advance(self, streams: Iterable[Stream]) -> int:
        """Decode the next chunk of each stream that is ready, all at once.

        Returns:
            how many were: call again until it is 0.
        """
        ready = [stream for stream in dict.fromkeys(streams) if stream.is_ready]
        if ready:
            Stream.decode_chunks(self._settings, ready)
        return len(ready)


def as_wave(samples: np.ndarray) -> np.ndarray:
    """Checked samples as float32 in [-1, 1]; a bad one would spoil the state of the stream for good."""
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"`samples` must be (S,), one channel, but are {samples.shape}.")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"`samples` must be floats in [-1, 1] or int16, but are {samples.dtype}.")
    wave = samples.astype(np.float32, copy=False)
    peak = np.abs(wave).max(initial=0.0)
    # a little above 1 happens to resampled or mixed sound
    if not peak <= 8:
        raise ValueError(f"`samples` must be floats in [-1, 1] or int16, but reach {peak:g}.")
    return wave
