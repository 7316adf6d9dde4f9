"""Pieces of sound -> segments of text: cutting, features, search, alignment.

`Recognizer` and the server are built on it. Letters: S samples, T_in feature frames, F mel bins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from stateless_transducer.decoding.alignment import Alignment, align
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.search import decode_encoder_out, encode, logit_options
from stateless_transducer.features import PADDING_VALUE, fbank
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.details import aligned, segment_of
from stateless_transducer.recognition.model import Model
from stateless_transducer.recognition.scorers import SoundScorers
from stateless_transducer.recognition.segments import Piece, PieceStream, cut, make_voice_activity
from stateless_transducer.recognition.transcript import Segment
from stateless_transducer.text.symbols import Vocabulary

_LOG = logging.getLogger(__name__)
# share of its row that the shortest piece of a batch fills at least: padding costs as much as speech
_LEAST_FILLED = 0.75
# frames of live sound between two runs of voice activity detection: a quarter of a second
_LIVE_FRAMES = 8


class Pipeline:
    """A model with its voice activity detector, search and alignment; threads may share it, since it never changes."""

    def __init__(
        self,
        model: Model,
        config: SearchConfig | None = None,
        *,
        hotwords: Sequence[str] = (),
        segments: SegmentConfig | None = None,
        details: DetailConfig | None = None,
    ) -> None:
        """Set up the stages; the arguments are `Recognizer`'s.

        Raises:
            ValueError: The tokens cannot spell a hotword, the search has no beam, or silero-vad is not installed.
        """
        self._config = config or SearchConfig()
        self._segments = segments or SegmentConfig()
        self._details = details or DetailConfig()
        self._voice = make_voice_activity(self._segments.vad)
        self._model = model
        self.token_table: Vocabulary = model.token_table
        self.scorers: SoundScorers = SoundScorers(self._config, self.token_table, hotwords)
        """Hotwords and language models."""

    @property
    def sample_rate(self) -> int:
        """Sample rate of pieces, in Hz."""
        return self._model.fbank_config.sample_rate

    def pieces(self, blocks: Iterable[np.ndarray]) -> Iterator[Piece]:
        """The pieces of one sound that contain speech, in order; blocks are (S,) at `sample_rate`."""
        return cut(blocks, self.sample_rate, self._segments, self._voice)

    def live_pieces(self) -> PieceStream:
        """A cutter for live sound at `sample_rate`; pieces end at pauses."""
        return PieceStream(self.sample_rate, self._segments.max_segment_s, self._voice, _LIVE_FRAMES)

    def features(self, wave: np.ndarray) -> np.ndarray:
        """The model's input for a wave: (S,) -> (T_in, F)."""
        return fbank(wave, self._model.fbank_config)

    def recognize(self, pieces: Sequence[Piece], batch_seconds: float = 100.0) -> list[Segment]:
        """Return the segment of each piece, of one sound or of several."""
        segments = dict(result for batch in self.batches(pieces, batch_seconds) for result in batch)
        return [segments[place] for place in range(len(pieces))]

    def batches(self, pieces: Sequence[Piece], batch_seconds: float) -> Iterator[list[tuple[int, Segment]]]:
        """Recognize pieces in batches of similar length, the longest first.

        Yields:
            For each batch, the places of its pieces and their segments.
        """
        by_length = sorted(range(len(pieces)), key=lambda place: -len(pieces[place].samples))
        while by_length:
            longest = len(pieces[by_length[0]].samples)
            most = max(1, int(batch_seconds * self.sample_rate / longest))
            size = sum(len(pieces[place].samples) >= _LEAST_FILLED * longest for place in by_length[:most])
            batch, by_length = by_length[:size], by_length[size:]
            yield list(zip(batch, self._search([pieces[place] for place in batch]), strict=True))

    def _search(self, pieces: Sequence[Piece]) -> list[Segment]:
        """The segments of one batch."""
        features = [self.features(piece.samples) for piece in pieces]
        model, config = self._model, self._config
        padded, lens = _padded(features)
        encoded = encode(model.transducer, model.place(padded), model.place(lens))
        scorer = self.scorers.for_batch([piece.phrases for piece in pieces])
        ranked = decode_encoder_out(model.transducer, *encoded, config, scorer)
        segments = [self._segment(piece, hypotheses) for piece, hypotheses in zip(pieces, ranked, strict=True)]
        best = [hypotheses[0] for hypotheses in ranked]
        is_lost = [math.isnan(hypothesis.score) for hypothesis in best]
        if any(is_lost):
            _LOG.warning(
                f"The model's output is not finite for {sum(is_lost)} of {len(pieces)} pieces of sound; their segments "
                "have no text."
            )
        if not self._details.align:
            return segments
        options, per_frame = logit_options(config), 1 if config.is_modified else None
        alignments = align(model.transducer, *encoded, best, max_symbols_per_frame=per_frame, options=options)
        return [
            segment if lost else self._aligned(segment, frames, alignment)
            for segment, frames, alignment, lost in zip(segments, features, alignments, is_lost, strict=True)
        ]

    def _segment(self, piece: Piece, ranked: Sequence[Hypothesis]) -> Segment:
        return segment_of(
            ranked,
            self.token_table,
            start=piece.start / self.sample_rate,
            end=(piece.start + len(piece.samples)) / self.sample_rate,
            frame_s=self._model.transducer.subsampling.factor * self._model.fbank_config.frame_shift_s,
            nbest=self._details.nbest,
        )

    def _aligned(self, segment: Segment, features: np.ndarray, alignment: Alignment) -> Segment:
        subsampling, fbank_config = self._model.transducer.subsampling, self._model.fbank_config
        return aligned(segment, features, alignment, self.token_table, subsampling, fbank_config)


def _padded(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """N arrays (T_in, F) -> (N, T_in, F) and lengths (N,)."""
    lens = np.array([len(frames) for frames in features])
    padded = np.full((len(features), lens.max(), features[0].shape[1]), PADDING_VALUE, np.float32)
    for row, frames in zip(padded, features, strict=True):
        row[: len(frames)] = frames
    return padded, lens
