"""Segments of text from hypotheses; their begins, ends, confidences and words, from an alignment and the loudness.

Letters: T_in feature frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stateless_transducer.decoding.alignment import Alignment
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.features import FbankConfig
from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.recognition.spans import separate_spans, token_spans
from stateless_transducer.recognition.transcript import Alternative, Segment
from stateless_transducer.recognition.words import timed_words
from stateless_transducer.text.symbols import Vocabulary


def segment_of(
    ranked: Sequence[Hypothesis], token_table: Vocabulary, *, start: float, end: float, frame_s: float, nbest: int
) -> Segment:
    """Return the segment of the hypotheses of a piece of sound, without what `aligned` adds.

    Args:
        ranked: Hypotheses, best first.
        token_table: Tokens of the model.
        start: Seconds at the begin of the piece, rounded like all times to milliseconds.
        end: Seconds at its end.
        frame_s: Seconds of an encoder frame.
        nbest: Number of hypotheses to report, the best one included.
    """
    best = ranked[0]
    return Segment(
        start=round(start, 3),
        end=round(end, 3),
        text=token_table.decode(best.tokens),
        tokens=tuple(token_table.symbols[token] for token in best.tokens),
        times=tuple(round(start + frame * frame_s, 3) for frame in best.frames),
        log_probs=tuple(round(log_prob, 5) for log_prob in best.log_probs),
        alternatives=tuple(
            Alternative(token_table.decode(other.tokens), round(other.score, 5)) for other in ranked[1:nbest]
        ),
    )


def aligned(
    segment: Segment,
    features: np.ndarray,
    alignment: Alignment,
    token_table: Vocabulary,
    subsampling: Subsampling,
    fbank_config: FbankConfig,
) -> Segment:
    """Return the segment with begin, end and confidence of each token and word.

    Args:
        segment: Segment without these.
        features: (T_in, F), log mel energies from the begin of the segment on.
        alignment: Alignment of its tokens.
        token_table: Tokens of the model.
        subsampling: Feature frames of an encoder frame.
        fbank_config: Front end of the model.
    """
    shift_ms = fbank_config.frame_shift_ms
    spans = token_spans(features, [subsampling.center(frame) for frame in alignment.frames], subsampling.factor)
    first_ms, last_ms = round(1000 * segment.start), round(1000 * segment.end)
    spans_ms = separate_spans(
        [(first_ms + round(start * shift_ms), first_ms + round(end * shift_ms)) for start, end in spans],
        first=first_ms,
        last=last_ms,
        shortest=round(subsampling.factor * shift_ms),
    )
    detailed = replace(
        segment,
        starts=tuple(start / 1000 for start, _ in spans_ms),
        ends=tuple(end / 1000 for _, end in spans_ms),
        confidences=tuple(round(confidence, 5) for confidence in alignment.confidences),
        confidence=round(_confidence_per_token(alignment), 5),
    )
    return replace(detailed, words=timed_words(detailed, token_table))


def _confidence_per_token(alignment: Alignment) -> float:
    """Return the geometric mean, which does not shrink with the length of the text as its probability does."""
    if not alignment.confidences:
        return alignment.confidence
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(alignment.confidences).mean()))
