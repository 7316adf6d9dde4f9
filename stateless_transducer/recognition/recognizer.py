"""Sound files or waves of any length -> text, with a trained model.

Sounds are read block by block and cut where nobody speaks (`segments`). Pieces of several sounds wait in a pool until
there is enough for batches of like length; then they are recognized and leave the pool in their order. So memory does
not grow with the length of a sound.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from stateless_transducer.audio import AudioError, one_channel, read_audio, stream_audio
from stateless_transducer.decoding.alignment import Alignment, align
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.search import Scorers, encode, logit_options, search_encoded
from stateless_transducer.features import PADDING_VALUE, fbank
from stateless_transducer.ops.masks import MIN_FEATURE_FRAMES, SUBSAMPLING
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig, check_batch_seconds
from stateless_transducer.recognition.model import Model, Precision, model_of, open_model
from stateless_transducer.recognition.segments import Phrases, Piece, PieceStream, cut, make_voice_activity
from stateless_transducer.recognition.spans import separate_spans, token_spans
from stateless_transducer.recognition.transcript import Alternative, Segment, Transcript
from stateless_transducer.recognition.words import timed_words
from stateless_transducer.text.tokens import TokenTable

if TYPE_CHECKING:
    import torch

    from stateless_transducer.checkpoint import Checkpoint

_LOG = logging.getLogger(__name__)
# batches that the pool holds at most; the first ones leave early, so that there is something to see
_POOL_BATCHES = 4
# of a batch, what the shortest piece fills of its row at least: padding is worked on like speech
_LEAST_FILLED = 0.75
# of live sound, what is listened to together: a quarter of a second
_LIVE_FRAMES = 8


@dataclass(frozen=True)
class Stretch:
    """Part of a sound file."""

    path: str | Path
    start_s: float = 0.0
    duration_s: float = math.inf


Sound = str | Path | BinaryIO | Stretch | np.ndarray
"""A file, an open binary file (a pipe, too), part of a file, or a wave (S,): float in [-1, 1] at the model's rate."""


@dataclass(frozen=True)
class _End:
    """Behind the last piece of a sound."""

    duration: float
    warnings: tuple[str, ...]


class Recognizer:
    """A model that transcribes; safe to call from several threads, since it never changes."""

    def __init__(
        self,
        model: Model | Checkpoint,
        config: SearchConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        hotwords: Sequence[str] = (),
        precision: Precision = "fp32",
        segments: SegmentConfig | None = None,
        details: DetailConfig | None = None,
    ) -> None:
        """A recognizer of a model.

        Args:
            model: what `recognition.model.open_model` gives, or a checkpoint.
            config: which search; greedy search by default.
            device: where to compute with a checkpoint: cpu, cuda, cuda:1, or auto, the first GPU if there is one.
            hotwords: wanted phrases, besides those of the configuration's file; they need a search with a beam.
            precision: of matrix products with a checkpoint; bf16 pays on a GPU, and on a CPU with instructions for it
                (AMX).
            segments: how long sound is cut.
            details: what is found out besides the text.

        Raises:
            ValueError: the model's tokens cannot spell a hotword, the search has no beam, there is no such device, or
                silero-vad is asked for by name and not installed.
        """
        self._config = config or SearchConfig()
        self._segments = segments or SegmentConfig()
        self._details = details or DetailConfig()
        self._voice = make_voice_activity(self._segments.vad)
        if hotwords and self._config.decoding_method == "greedy_search":
            raise ValueError('Hotwords need a beam: SearchConfig(decoding_method="modified_beam_search").')
        self._model = model if isinstance(model, Model) else model_of(model, device=device, precision=precision)
        self.token_table = self._model.token_table
        self._scorers = self._read_scorers(hotwords)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        config: SearchConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        hotwords: Sequence[str] = (),
        precision: Precision = "fp32",
        segments: SegmentConfig | None = None,
        details: DetailConfig | None = None,
        num_threads: int | None = None,
    ) -> Recognizer:
        """Read a checkpoint of this project, or open a folder of ONNX graphs, for which no torch is needed.

        Args:
            path: the file; or a folder with encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt, written by
                `transducer export onnx` or somebody else.
            config: see the constructor.
            device: see the constructor; graphs run on the CPU.
            hotwords: see the constructor.
            precision: fp32, of a checkpoint also bf16, of a folder int8 (x.int8.onnx).
            segments: see the constructor.
            details: see the constructor.
            num_threads: of graphs; None: as many as there are cores. Torch has a setting for all its models.

        Raises:
            ValueError: it cannot be read.
        """
        model = open_model(Path(path), device=device, precision=precision, num_threads=num_threads)
        return cls(model, config, hotwords=hotwords, segments=segments, details=details)

    def _read_scorers(self, hotwords: Sequence[str]) -> Scorers | None:
        config, tokens = self._config, self.token_table
        if isinstance(tokens, TokenTable):
            return Scorers(config, tokens, hotwords)
        if hotwords or config.scorer_files:
            raise ValueError(
                "Hotwords and language models need tokens that spell a text: characters, words, or pieces of words "
                "with their scores in bpe.vocab, <unk> among them; those of this model's tokens.txt do not."
            )
        return None

    @property
    def has_hotwords(self) -> bool:
        """Whether pieces may have hotwords of their own."""
        return self._scorers is not None and self._config.decoding_method != "greedy_search"

    def spell(self, hotwords: Sequence[str]) -> Phrases:
        """Wanted phrases, for pieces of a sound that has some of its own.

        Raises:
            ValueError: the tokens cannot spell one, or the search has no beam.
        """
        if not hotwords:
            return ()
        if not self.has_hotwords or self._scorers is None:
            raise ValueError("Hotwords need a search with a beam and a model whose tokens spell a text.")
        return self._scorers.spell(hotwords)

    @property
    def sample_rate(self) -> int:
        """At which waves must come."""
        return self._model.fbank_config.sample_rate

    def transcribe(
        self,
        sounds: Iterable[Sound],
        *,
        hotwords: Sequence[str] = (),
        channel: int | None = None,
        batch_seconds: float = 100.0,
    ) -> list[Transcript]:
        """Transcripts in the order of the sounds.

        Args:
            sounds: files of any rate and length, or waves at `sample_rate`.
            hotwords: wanted phrases of these sounds, besides the recognizer's.
            channel: of the files, from 0; None: the mean of all.
            batch_seconds: audio worked on at once, padding counted.

        Raises:
            AudioError: a sound cannot be read.
            ValueError: there is one sound, not several; one is of another kind; ``batch_seconds`` cannot be; hotwords:
                see `spell`.
        """
        transcripts = []
        for found in self.transcribe_each(sounds, hotwords=hotwords, channel=channel, batch_seconds=batch_seconds):
            if isinstance(found, AudioError):
                raise found
            transcripts.append(found)
        return transcripts

    def transcribe_each(
        self,
        sounds: Iterable[Sound],
        *,
        hotwords: Sequence[str] = (),
        channel: int | None = None,
        batch_seconds: float = 100.0,
        progress: Callable[[float], None] | None = None,
    ) -> Iterator[Transcript | AudioError]:
        """A transcript for each sound, in order and as soon as it is known; for what cannot be read, the error.

        Args:
            sounds: see `transcribe`; they are asked for as they are needed.
            hotwords: see `transcribe`.
            channel: see `transcribe`.
            batch_seconds: see `transcribe`.
            progress: called with the seconds of audio that are done.

        Raises:
            ValueError: see `transcribe`.
        """
        if _is_one_sound(sounds):
            raise ValueError(f"`sounds` must be several, [...], but are one: {sounds!r:.80}.")
        segments: list[Segment] = []
        behind = 0.0  # seconds of the sounds before
        for found in self._recognize(sounds, self.spell(hotwords), channel, batch_seconds):
            if isinstance(found, Segment):
                segments.append(found)
                done = behind + found.end
            elif isinstance(found, _End):
                text = self.token_table.join(segment.text for segment in segments)
                yield Transcript(text, found.duration, tuple(segments), found.warnings)
                segments, behind = [], behind + found.duration
                done = behind
            else:
                yield found
                segments, done = [], behind
            if progress is not None:
                progress(done)

    def stream_transcribe(
        self,
        sound: Sound,
        *,
        hotwords: Sequence[str] = (),
        channel: int | None = None,
        batch_seconds: float = 100.0,
    ) -> Iterator[Segment]:
        """The segments of one sound, in order and as soon as they are known; the arguments are `transcribe`'s.

        Raises:
            AudioError: it cannot be read, or not to its end.
        """
        for found in self._recognize([sound], self.spell(hotwords), channel, batch_seconds):
            if isinstance(found, AudioError):
                raise found
            if isinstance(found, Segment):
                yield found

    def read(self, path: str | Path) -> np.ndarray:
        """A sound file as a wave at `sample_rate`, (S,).

        Raises:
            AudioError: it cannot be read, or not to its end.
        """
        return read_audio(path, self.sample_rate)

    def features(self, wave: np.ndarray) -> np.ndarray:
        """What the model sees of a wave: (S,) -> (T_in, F)."""
        return fbank(wave, self._model.fbank_config)

    def _recognize(
        self, sounds: Iterable[Sound], phrases: Phrases, channel: int | None, batch_seconds: float
    ) -> Iterator[Segment | _End | AudioError]:
        """What `_cut` yields, with segments for pieces."""
        check_batch_seconds(batch_seconds)
        pool: list[Piece | _End | AudioError] = []
        waiting_s, wanted_s = 0.0, batch_seconds
        for item in self._cut(sounds, channel):
            pool.append(replace(item, phrases=phrases) if isinstance(item, Piece) else item)
            waiting_s += len(item.samples) / self.sample_rate if isinstance(item, Piece) else 0.0
            if waiting_s >= wanted_s:
                yield from self._drain(pool, batch_seconds)
                pool, waiting_s, wanted_s = [], 0.0, min(2 * wanted_s, _POOL_BATCHES * batch_seconds)
        yield from self._drain(pool, batch_seconds)

    def _cut(self, sounds: Iterable[Sound], channel: int | None) -> Iterator[Piece | _End | AudioError]:
        """The pieces of each sound, and behind them its end or what is wrong with it."""
        for sound in sounds:
            warnings: list[str] = []
            try:
                duration = yield from self.pieces(sound, channel=channel, warn=warnings.append)
            except AudioError as err:
                yield err
                continue
            for warning in warnings:
                _LOG.warning(warning)
            yield _End(duration, tuple(warnings))

    def pieces(
        self, sound: Sound, *, channel: int | None = None, warn: Callable[[str], None]
    ) -> Generator[Piece, None, float]:
        """The pieces of one sound that are to be recognized, as `recognize` takes them.

        Args:
            sound: see `transcribe`.
            channel: see `transcribe`.
            warn: called with what is odd about the sound.

        Returns:
            The seconds of the sound.

        Raises:
            AudioError: it cannot be read.
        """
        num_samples = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal num_samples
            for block in self._blocks(sound, channel, warn):
                num_samples += len(block)
                yield block

        yield from cut(counted(), self.sample_rate, self._segments, self._voice)
        return round(num_samples / self.sample_rate, 3)

    def live_pieces(self) -> PieceStream:
        """For sound that is still coming in, at `sample_rate`: pieces end at pauses."""
        return PieceStream(self.sample_rate, self._segments.max_segment_s, self._voice, _LIVE_FRAMES)

    def _blocks(self, sound: Sound, channel: int | None, warn: Callable[[str], None]) -> Iterable[np.ndarray]:
        if isinstance(sound, np.ndarray):
            blocks = one_channel([(_checked(sound)[:, None], self.sample_rate)], "wave", None, warn)
            return (samples for samples, _ in blocks)
        if not isinstance(sound, str | Path | Stretch) and not hasattr(sound, "read"):
            raise ValueError(
                "A sound must be the name of a file, an open binary file, a Stretch, or a wave, which is a NumPy array "
                f"(S,) of floats at {self.sample_rate} samples a second, but is a {type(sound).__name__}."
            )
        if not isinstance(sound, Stretch):
            return stream_audio(sound, self.sample_rate, channel=channel, warn=warn)
        start_s, duration_s = sound.start_s, sound.duration_s
        return stream_audio(
            sound.path, self.sample_rate, channel=channel, start_s=start_s, duration_s=duration_s, warn=warn
        )

    def _drain(
        self, pool: Sequence[Piece | _End | AudioError], batch_seconds: float
    ) -> Iterator[Segment | _End | AudioError]:
        """The pool in its order, with segments for pieces."""
        segments = iter(self.recognize([item for item in pool if isinstance(item, Piece)], batch_seconds))
        for item in pool:
            yield next(segments) if isinstance(item, Piece) else item

    def recognize(self, pieces: Sequence[Piece], batch_seconds: float = 100.0) -> list[Segment]:
        """What is said in each piece, of one sound or of many; they are recognized in batches of like length."""
        by_length = sorted(range(len(pieces)), key=lambda place: -len(pieces[place].samples))
        segments: dict[int, Segment] = {}
        while by_length:
            longest = len(pieces[by_length[0]].samples)
            most = max(1, int(batch_seconds * self.sample_rate / longest))
            size = sum(len(pieces[place].samples) >= _LEAST_FILLED * longest for place in by_length[:most])
            batch, by_length = by_length[:size], by_length[size:]
            segments.update(zip(batch, self._search([pieces[place] for place in batch]), strict=True))
        return [segments[place] for place in range(len(pieces))]

    def _search(self, pieces: Sequence[Piece]) -> list[Segment]:
        features = [self.features(piece.samples) for piece in pieces]
        lens = np.array([len(each) for each in features])
        padded = np.full((len(features), lens.max(), features[0].shape[1]), PADDING_VALUE, np.float32)
        for row, each in zip(padded, features, strict=True):
            row[: len(each)] = each
        model, config = self._model, self._config
        encoded = encode(model.recognizable, model.place(padded), model.place(lens))
        scorer = None
        if self._scorers is not None:
            scorer = self._scorers.of_each([piece.phrases for piece in pieces])
        ranked = search_encoded(model.recognizable, *encoded, config, scorer)
        segments = [self._segment(piece, found) for piece, found in zip(pieces, ranked, strict=True)]
        best = [found[0] for found in ranked]
        is_lost = [math.isnan(each.score) for each in best]
        if any(is_lost):
            _LOG.warning(
                f"For {sum(is_lost)} of {len(pieces)} pieces of sound the model gives no numbers, and no text."
            )
        if not self._details.align:
            return segments
        options, per_frame = logit_options(config), 1 if config.is_modified else None
        aligned = align(model.recognizable, *encoded, best, max_symbols_per_frame=per_frame, options=options)
        return [
            segment if lost else self._aligned(segment, own, alignment)
            for segment, own, alignment, lost in zip(segments, features, aligned, is_lost, strict=True)
        ]

    def _aligned(self, segment: Segment, features: np.ndarray, alignment: Alignment) -> Segment:
        """With the begin, end and confidence of each token and word."""
        shift_ms = self._model.fbank_config.frame_shift_ms
        spans = token_spans(features, [SUBSAMPLING * frame + MIN_FEATURE_FRAMES // 2 for frame in alignment.frames])
        first_ms, last_ms = round(1000 * segment.start), round(1000 * segment.end)
        spans_ms = separate_spans(
            [(first_ms + round(start * shift_ms), first_ms + round(end * shift_ms)) for start, end in spans],
            first=first_ms,
            last=last_ms,
            shortest=round(SUBSAMPLING * shift_ms),
        )
        starts = tuple(start / 1000 for start, _ in spans_ms)
        ends = tuple(end / 1000 for _, end in spans_ms)
        confidences = tuple(round(confidence, 5) for confidence in alignment.confidences)
        confidence = round(_confidence_a_token(alignment), 5)
        known = replace(segment, starts=starts, ends=ends, confidences=confidences, confidence=confidence)
        return replace(known, words=timed_words(known, self.token_table))

    def _segment(self, piece: Piece, ranked: Sequence[Hypothesis]) -> Segment:
        hypothesis = ranked[0]
        start = piece.start / self.sample_rate
        seconds_a_frame = SUBSAMPLING * self._model.fbank_config.frame_shift_ms / 1000
        return Segment(
            start=round(start, 3),
            end=round((piece.start + len(piece.samples)) / self.sample_rate, 3),
            text=self.token_table.decode(hypothesis.tokens),
            tokens=tuple(self.token_table.symbols[token] for token in hypothesis.tokens),
            times=tuple(round(start + frame * seconds_a_frame, 3) for frame in hypothesis.frames),
            log_probs=tuple(round(log_prob, 5) for log_prob in hypothesis.log_probs),
            alternatives=tuple(
                Alternative(self.token_table.decode(other.tokens), round(other.score, 5))
                for other in ranked[1 : self._details.nbest]
            ),
        )


def _confidence_a_token(alignment: Alignment) -> float:
    """The geometric mean, which does not shrink with the length of the text as its probability does."""
    if not alignment.confidences:
        return alignment.confidence
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(alignment.confidences).mean()))


def _is_one_sound(sounds: object) -> bool:
    """Names, files and waves can be iterated, too: over letters, lines and samples."""
    is_wave = isinstance(sounds, np.ndarray) and sounds.ndim == 1 and sounds.dtype.kind in "fiu"
    return is_wave or isinstance(sounds, str | Path | Stretch) or hasattr(sounds, "read")


def _checked(wave: np.ndarray) -> np.ndarray:
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise ValueError(
            f"A wave must be (S,) of floats in [-1, 1], but is {wave.shape} of {wave.dtype}; "
            "16-bit integers are to be divided by 32768."
        )
    return wave.astype(np.float32, copy=False)
