"""Live sound -> text with a published streaming model. No torch.

Letters: S samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast, overload

import numpy as np

from stateless_transducer.decoding.greedy_streaming import PartialHypothesis, greedy_search_chunk
from stateless_transducer.export.onnx_streaming import StreamingModel
from stateless_transducer.features import FbankConfig, FbankStream, samples_until
from stateless_transducer.hub import locate
from stateless_transducer.model_files import Listing, Precision
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.recognition.sounds import CountedBlocks, Sound, is_one_sound, read_sound
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.text.symbols import Vocabulary, read_vocabulary
from stateless_transducer.text.tokens import UNKNOWN

_LOG = logging.getLogger(__name__)

FLUSH_S = 0.5
"""Seconds of silence that a finished stream is decoded beyond its end, since models emit tokens a little late."""


class Stream:
    """One sound that is received in parts; made by `StreamingRecognizer.create_stream`. For one thread at a time."""

    def __init__(
        self, model: StreamingModel, token_table: Vocabulary, fbank_config: FbankConfig, rules: EndpointRules
    ) -> None:
        self._model, self._token_table, self._rules = model, token_table, rules
        self._fbank_config, self._fbank = fbank_config, FbankStream(fbank_config)
        self._state = model.initial_state()
        self._hypothesis = PartialHypothesis.begin(model.context_size, model.blank_id)
        self._silent = {model.blank_id} | {id_ for token, id_ in token_table.ids.items() if token == UNKNOWN}
        self._num_processed = self._segment_start = 0  # feature frames
        self._is_finished, self._duration_s = False, math.inf

    def accept(self, samples: np.ndarray, sample_rate: int) -> None:
        """Take the next samples, any number of them; nothing is decoded before `StreamingRecognizer.advance`.

        Args:
            samples: (S,), one channel, float in [-1, 1] or int16.
            sample_rate: at least 1000 Hz, the same for the whole stream; what the model does not have is resampled.

        Raises:
            ValueError: The samples or the rate are invalid, or the stream is finished; the stream is unchanged.
        """
        if self._is_finished:
            raise ValueError("The stream is finished; make a new one for more sound.")
        if sample_rate < 1000:
            raise ValueError(f"`sample_rate` must be at least 1000 Hz, but is {sample_rate}.")
        self._fbank.accept(as_wave(samples), sample_rate)

    def finish(self) -> None:
        """End the sound, and append the silence that the last words need."""
        if self._is_finished:
            return
        self._is_finished = True
        self._fbank.flush()
        if not self._fbank.num_samples:
            return
        self._duration_s = self._fbank.num_samples / self._fbank_config.sample_rate
        shift, per_second = self._model.chunk_shift, 1000 / self._fbank_config.frame_shift_ms
        num_frames = round((self._duration_s + FLUSH_S) * per_second)
        num_chunks = -(-num_frames // shift)
        self._fbank.pad((num_chunks - 1) * shift + self._model.chunk_frames)

    @property
    def is_ready(self) -> bool:
        """Whether there is enough sound for a chunk."""
        return self._num_processed + self._model.chunk_frames <= self._fbank.num_frames

    @property
    def result(self) -> Segment:
        """Result since the last `reset`; times end with the sound, not with the appended silence."""
        hypothesis = self._hypothesis
        seconds_a_frame = self._model.chunk_shift / self._model.encoder_frames * self._frames_s(1)
        start = self._frames_s(self._segment_start)
        return Segment(
            text=self._token_table.decode(hypothesis.tokens),
            tokens=tuple(self._token_table.symbols[token] for token in hypothesis.tokens),
            times=tuple(self._within(start + frame * seconds_a_frame) for frame in hypothesis.frames),
            log_probs=tuple(hypothesis.log_probs),
            start=self._within(start),
            end=self._within(self._frames_s(self._num_processed)),
        )

    @property
    def is_endpoint(self) -> bool:
        """Whether the recognizer's rules say that an utterance has ended: take `result`, then `reset`."""
        a_frame = self._model.chunk_shift // self._model.encoder_frames
        silent = self._hypothesis.num_trailing_blanks * a_frame
        return self._rules.are_met(self._num_processed - self._segment_start, silent, self._fbank_config.frame_shift_s)

    def reset(self) -> None:
        """Begin a new segment; encoder and decoder continue from their states."""
        self._hypothesis = self._hypothesis.next(self._model.blank_id)
        self._segment_start = self._num_processed

    @staticmethod
    def decode_chunks(model: StreamingModel, streams: Sequence[Stream]) -> None:
        """Decode the next chunk of each stream, all of which are ready; see `StreamingRecognizer.advance`.

        Raises:
            ValueError: A stream belongs to another model.
        """
        if any(stream._model is not model for stream in streams):
            raise ValueError("A stream belongs to another recognizer.")
        features = np.stack([stream._fbank.take(stream._num_processed, model.chunk_frames) for stream in streams])
        encoder_out, states = model.encode_chunk(features, [stream._state for stream in streams])
        for stream, state in zip(streams, states, strict=True):
            stream._state = state
            stream._num_processed += model.chunk_shift
        greedy_search_chunk(model, encoder_out, [stream._hypothesis for stream in streams], streams[0]._silent)

    def _within(self, time: float) -> float:
        """The time, or the end of the sound if that is earlier."""
        return round(min(time, self._duration_s), 3)

    def _frames_s(self, count: int) -> float:
        return count * self._fbank_config.frame_shift_ms / 1000


class StreamingRecognizer:
    """A streaming model that transcribes any number of streams, or whole sounds.

    ```python
    recognizer = StreamingRecognizer.from_pretrained("folder")
    print(recognizer.transcribe("a.wav").text)

    stream = recognizer.create_stream()
    for samples in microphone:
        stream.accept(samples, 16000)
        while recognizer.advance([stream]):
            print(stream.result.text)
            if stream.is_endpoint:
                stream.reset()
    stream.finish()  # and advance until it returns 0
    ```
    """

    def __init__(self, model: StreamingModel, token_table: Vocabulary, rules: EndpointRules | None = None) -> None:
        """Set up a recognizer for a model, every id of which must have a symbol."""
        self._model, self._rules = model, rules or EndpointRules()
        self.token_table = token_table
        """Tokens of the model."""
        self._fbank_config = model.fbank_config

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        rules: EndpointRules | None = None,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        num_threads: int | None = None,
    ) -> StreamingRecognizer:
        """Open a folder with encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt, or a published model by name.

        Args:
            path: The folder; or ``owner/name`` of a repository of Hugging Face, see docs/models.md.
            rules: When an utterance ends.
            device: auto or cpu. Graphs run on the CPU.
            precision: fp32, or int8 for x.int8.onnx where the folder has both.
            num_threads: Threads of a graph; None: one, since a chunk is too short to share.

        Raises:
            ValueError: A file is missing, ambiguous or invalid, or the model has no such precision or device.
        """
        if device not in ("auto", "cpu") or precision == "bf16":
            raise ValueError(f"{path} is a streaming model: it runs on the CPU, in fp32 or int8.")
        folder = locate(path, forms=("graphs",), precision=precision)
        tokens = folder / Listing.of_folder(folder).choose(("graphs",), precision).tokens
        model = StreamingModel.open(folder, num_threads=num_threads or 1, prefer_int8=precision == "int8")
        return cls(model, read_vocabulary(tokens, model.vocab_size), rules)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model, in Hz. Sounds of other rates are resampled."""
        return self._fbank_config.sample_rate

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model."""
        return self._model.vocab_size

    @property
    def latency_s(self) -> float:
        """The most seconds from a sound to the chunk that decodes it, without computing and resampling.

        A chunk waits for its last frame; the sound at its beginning waits longest.
        """
        return samples_until(self._model.chunk_frames, self._fbank_config) / self.sample_rate

    @overload
    def transcribe(  # pyright: ignore[reportOverlappingOverload]
        self, sounds: Sound, *, sample_rate: int | None = None, channel: int | None = None
    ) -> Transcript: ...

    @overload
    def transcribe(
        self, sounds: Iterable[Sound], *, sample_rate: int | None = None, channel: int | None = None
    ) -> list[Transcript]: ...

    def transcribe(
        self, sounds: Sound | Iterable[Sound], *, sample_rate: int | None = None, channel: int | None = None
    ) -> Transcript | list[Transcript]:
        """Transcribe one sound, or several one after another, each chunk by chunk.

        Args:
            sounds: See `Recognizer.transcribe`.
            sample_rate: See `Recognizer.transcribe`.
            channel: See `Recognizer.transcribe`.

        Returns:
            The transcript of one sound, or a list of transcripts in the order of the sounds.

        Raises:
            AudioError: A sound cannot be read.
            ValueError: An object is not a sound.
        """
        if is_one_sound(sounds):
            return self._transcribe(sounds, sample_rate, channel)
        return [self._transcribe(sound, sample_rate, channel) for sound in cast("Iterable[Sound]", sounds)]

    def _transcribe(self, sound: Sound, sample_rate: int | None, channel: int | None) -> Transcript:
        warnings: list[str] = []
        blocks = CountedBlocks(
            read_sound(sound, self.sample_rate, sample_rate=sample_rate, channel=channel, warn=warnings.append)
        )
        segments = tuple(self.recognize_blocks(blocks, self.sample_rate))
        for warning in warnings:
            _LOG.warning(warning)
        text = self.token_table.join(segment.text for segment in segments)
        return Transcript(text, round(blocks.num_samples / self.sample_rate, 3), segments, tuple(warnings))

    def stream_transcribe(
        self, sound: Sound, *, sample_rate: int | None = None, channel: int | None = None
    ) -> Iterator[Segment]:
        """Yield the segments of one sound in order, each as soon as it has ended; the arguments are `transcribe`'s.

        Raises:
            AudioError: The sound cannot be read, or not to its end.
        """
        blocks = read_sound(sound, self.sample_rate, sample_rate=sample_rate, channel=channel, warn=_LOG.warning)
        yield from self.recognize_blocks(blocks, self.sample_rate)

    def recognize_blocks(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Iterator[Segment]:
        """Yield the segments of one sound that comes in blocks, each as soon as it has ended.

        Args:
            blocks: Samples, see `Stream.accept`. Blocks of any length give the same segments.
            sample_rate: Rate of the blocks.
        """
        stream = self.create_stream()

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

    def create_stream(self) -> Stream:
        """A stream that has received no sound."""
        return Stream(self._model, self.token_table, self._fbank_config, self._rules)

    def advance(self, streams: Iterable[Stream]) -> int:
        """Decode the next chunk of each stream that is ready, all at once.

        Returns:
            how many were: call again until it is 0.
        """
        ready = [stream for stream in dict.fromkeys(streams) if stream.is_ready]
        if ready:
            Stream.decode_chunks(self._model, ready)
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
