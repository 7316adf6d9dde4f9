"""Sounds of any form and length -> transcripts, with a trained model.

Pieces of several sounds wait in a pool until they fill batches of similar length, so that memory does not grow with the
length of a sound. `sounds` reads, `segments` cuts, `pipeline` recognizes the pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, overload

import numpy as np

from stateless_transducer.audio import AudioError, read_audio
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig, check_batch_seconds
from stateless_transducer.recognition.model import Model, Precision, model_of, open_model
from stateless_transducer.recognition.pipeline import Pipeline
from stateless_transducer.recognition.segments import Phrases, Piece
from stateless_transducer.recognition.sounds import CountedBlocks, Sound, is_one_sound, read_sound
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.text.symbols import Vocabulary

if TYPE_CHECKING:
    import torch

    from stateless_transducer.checkpoint import Checkpoint

_LOG = logging.getLogger(__name__)
# most batches in the pool; the first pools are smaller, so that the first results come early
_POOL_BATCHES = 4
# most pieces and ends of sounds in the pool, and most sounds without speech that wait for one with speech
_POOL_ITEMS, _POOL_SILENT = 4096, 64


@dataclass(frozen=True)
class _End:
    """Follows the last piece of a sound."""

    duration: float
    warnings: tuple[str, ...]


class Recognizer:
    """A trained model that transcribes sounds. Threads may share it, since it never changes.

    Example:
        >>> recognizer = Recognizer.from_pretrained("model.pt")
        >>> recognizer.transcribe("a.wav").text
        '今天很好'
    """

    def __init__(
        self,
        model: Model | Checkpoint,
        config: SearchConfig | None = None,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        hotwords: Sequence[str] = (),
        segments: SegmentConfig | None = None,
        details: DetailConfig | None = None,
    ) -> None:
        """Set up a recognizer for a model in memory.

        Args:
            model: A checkpoint, or the result of `recognition.model.open_model`.
            config: Search; by default greedy search.
            device: Device for a checkpoint: cpu, cuda, cuda:1, or auto for the first GPU if there is one.
            precision: fp32 or bf16, for the matrix products of a checkpoint. bf16 pays on a GPU, and on a CPU with AMX.
            hotwords: Phrases to boost, in addition to those of ``config.hotwords_file``; they need a beam search.
            segments: How long sound is cut.
            details: What the result has besides the text.

        Raises:
            ValueError: The tokens cannot spell a hotword, the search has no beam, the device does not exist, or
                silero-vad is requested by name and not installed.
        """
        opened = model if isinstance(model, Model) else model_of(model, device=device, precision=precision)
        self.pipeline: Pipeline = Pipeline(opened, config, hotwords=hotwords, segments=segments, details=details)
        """Stages of recognition, for servers and benchmarks."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        config: SearchConfig | None = None,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "fp32",
        num_threads: int | None = None,
        hotwords: Sequence[str] = (),
        segments: SegmentConfig | None = None,
        details: DetailConfig | None = None,
    ) -> Recognizer:
        """Open a checkpoint, a folder of ONNX graphs (for which torch is not needed), or a published model by name.

        Args:
            path: The checkpoint; a folder with encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt, or one with
                a checkpoint and tokens.txt; or ``owner/name`` of a repository of Hugging Face, see docs/models.md.
            config: See the constructor.
            device: See the constructor. Graphs run on the CPU.
            precision: fp32; for a checkpoint also bf16, for a folder int8 (x.int8.onnx).
            num_threads: Threads on the CPU; None: torch or onnxruntime decides. For a checkpoint, this sets torch's
                number, which holds for the whole process.
            hotwords: See the constructor.
            segments: See the constructor.
            details: See the constructor.

        Raises:
            ValueError: The model cannot be opened; and see the constructor.
        """
        model = open_model(path, device=device, precision=precision, num_threads=num_threads)
        return cls(model, config, hotwords=hotwords, segments=segments, details=details)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the model, in Hz. Sounds of other rates are resampled."""
        return self.pipeline.sample_rate

    @property
    def token_table(self) -> Vocabulary:
        """Tokens of the model."""
        return self.pipeline.token_table

    @overload
    def transcribe(  # pyright: ignore[reportOverlappingOverload]
        self,
        sounds: Sound,
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
        batch_seconds: float = 100.0,
    ) -> Transcript: ...

    @overload
    def transcribe(
        self,
        sounds: Iterable[Sound],
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
        batch_seconds: float = 100.0,
    ) -> list[Transcript]: ...

    def transcribe(
        self,
        sounds: Sound | Iterable[Sound],
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
        batch_seconds: float = 100.0,
    ) -> Transcript | list[Transcript]:
        """Transcribe one sound, or several in batches.

        Args:
            sounds: One sound or several. A sound is a file name, an open binary file, the bytes of a file, a `Stretch`
                of a file, or samples: a NumPy array or torch tensor of floats in [-1, 1], int16, int32 or uint8, alone
                or with their rate as ``(samples, rate)`` or ``{"array": samples, "sampling_rate": rate}``.
            sample_rate: Rate of samples that come without one; None: the model's. Files state their own.
            channel: Channel to use, from 0; None: the mean of all.
            hotwords: Phrases to boost in these sounds, in addition to the recognizer's.
            batch_seconds: Seconds of audio per batch, padding included.

        Returns:
            The transcript of one sound, or a list of transcripts in the order of the sounds.

        Raises:
            AudioError: A sound cannot be read.
            ValueError: An object is not a sound, ``batch_seconds`` is not positive and finite, or the tokens cannot
                spell a hotword.
        """
        is_one = is_one_sound(sounds)
        transcripts: list[Transcript] = []
        for result in self.transcribe_each(
            cast("Iterable[Sound]", [sounds] if is_one else sounds),
            sample_rate=sample_rate,
            channel=channel,
            hotwords=hotwords,
            batch_seconds=batch_seconds,
        ):
            if isinstance(result, AudioError):
                raise result
            transcripts.append(result)
        return transcripts[0] if is_one else transcripts

    def transcribe_each(
        self,
        sounds: Iterable[Sound],
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
        batch_seconds: float = 100.0,
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[Transcript | AudioError]:
        """Yield the transcript of each sound as soon as it is known, in order; for an unreadable sound, the error.

        Args:
            sounds: Sounds, see `transcribe`. They are requested as they are needed.
            sample_rate: See `transcribe`.
            channel: See `transcribe`.
            hotwords: See `transcribe`.
            batch_seconds: See `transcribe`.
            progress: Called with the seconds of audio that are done.

        Raises:
            ValueError: See `transcribe`.
        """
        if is_one_sound(sounds):
            raise ValueError(f"`sounds` must be several, [...], but are one: {sounds!r:.80}.")
        segments: list[Segment] = []
        finished_s = done_s = 0.0
        for item in self._recognize(sounds, sample_rate, channel, hotwords, batch_seconds):
            if isinstance(item, Segment):
                segments.append(item)
                done_s = finished_s + item.end
            elif isinstance(item, _End):
                text = self.token_table.join(segment.text for segment in segments)
                yield Transcript(text, item.duration, tuple(segments), item.warnings)
                segments, finished_s = [], finished_s + item.duration
                done_s = finished_s
            else:
                yield item
                segments, done_s = [], finished_s
            if progress is not None:
                progress(done_s)

    def stream_transcribe(
        self,
        sound: Sound,
        *,
        sample_rate: int | None = None,
        channel: int | None = None,
        hotwords: Sequence[str] = (),
        batch_seconds: float = 100.0,
    ) -> Iterator[Segment]:
        """Yield the segments of one sound in order, each as soon as it is known; the arguments are `transcribe`'s.

        Raises:
            AudioError: The sound cannot be read, or not to its end.
        """
        for item in self._recognize([sound], sample_rate, channel, hotwords, batch_seconds):
            if isinstance(item, AudioError):
                raise item
            if isinstance(item, Segment):
                yield item

    def read(self, path: str | Path) -> np.ndarray:
        """Read a sound file as a wave at `sample_rate`, (S,).

        Raises:
            AudioError: The file cannot be read, or not to its end.
        """
        return read_audio(path, self.sample_rate)

    def features(self, wave: np.ndarray) -> np.ndarray:
        """The model's input for a wave at `sample_rate`: (S,) -> (T_in, F)."""
        return self.pipeline.features(wave)

    def _recognize(
        self,
        sounds: Iterable[Sound],
        sample_rate: int | None,
        channel: int | None,
        hotwords: Sequence[str],
        batch_seconds: float,
    ) -> Iterator[Segment | _End | AudioError]:
        """For each sound its segments and its end, or the error."""
        check_batch_seconds(batch_seconds)
        pool: list[Piece | _End | AudioError] = []
        pooled_s, num_silent, pool_s = 0.0, 0, batch_seconds
        for item in self._cut(sounds, sample_rate, channel, self.pipeline.scorers.spell(hotwords)):
            if not pool and not isinstance(item, Piece):
                yield item
                continue
            if isinstance(item, Piece):
                pooled_s += len(item.samples) / self.sample_rate
            else:
                num_silent += not isinstance(pool[-1], Piece)
            pool.append(item)
            if pooled_s >= pool_s or num_silent >= _POOL_SILENT or len(pool) >= _POOL_ITEMS:
                yield from self._drain(pool, batch_seconds)
                pool_s = min(2 * pool_s, _POOL_BATCHES * batch_seconds)
                pool, pooled_s, num_silent = [], 0.0, 0
        yield from self._drain(pool, batch_seconds)

    def _cut(
        self, sounds: Iterable[Sound], sample_rate: int | None, channel: int | None, phrases: Phrases
    ) -> Iterator[Piece | _End | AudioError]:
        """The pieces of each sound, followed by its end or the error."""
        for sound in sounds:
            warnings: list[str] = []
            try:
                blocks = CountedBlocks(
                    read_sound(sound, self.sample_rate, sample_rate=sample_rate, channel=channel, warn=warnings.append)
                )
                for piece in self.pipeline.pieces(blocks):
                    yield replace(piece, phrases=phrases)
            except AudioError as err:
                yield err
                continue
            for warning in warnings:
                _LOG.warning(warning)
            yield _End(round(blocks.num_samples / self.sample_rate, 3), tuple(warnings))

    def _drain(
        self, pool: Sequence[Piece | _End | AudioError], batch_seconds: float
    ) -> Iterator[Segment | _End | AudioError]:
        """Yield the items of the pool in order, recognized; each as soon as the items before it are known."""
        batches = self.pipeline.batches([item for item in pool if isinstance(item, Piece)], batch_seconds)
        segments: dict[int, Segment] = {}
        place = 0
        for item in pool:
            if not isinstance(item, Piece):
                yield item
                continue
            while place not in segments:
                segments.update(next(batches))
            yield segments.pop(place)
            place += 1
