"""Streaming greedy search, chunk by chunk, for many streams at once. NumPy only.

Letters: N streams, T encoder frames of a chunk, D joiner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class StreamingTransducer(Protocol):
    """Decoder and joiner of a streaming model."""

    @property
    def context_size(self) -> int:
        """Number of tokens that the decoder sees."""
        ...

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        """(N, context_size) -> decoder_out (N, D)."""
        ...

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        """(N, D) and (N, D) -> logits (N, V)."""
        ...


@dataclass
class PartialHypothesis:
    """Hypothesis of a stream since its start or the last endpoint; it grows with each chunk."""

    context: list[int]
    """Last tokens; -1 before the first."""
    tokens: list[int] = field(default_factory=list)
    """Ids, without blanks."""
    frames: list[int] = field(default_factory=list)
    """Encoder frame on which each was emitted, from the beginning of the hypothesis."""
    log_probs: list[float] = field(default_factory=list)
    """Log-probability of each where it was emitted."""
    num_frames: int = 0
    """Number of encoder frames so far."""
    num_trailing_blanks: int = 0
    """Number of encoder frames since the last token."""
    decoder_out: np.ndarray | None = None
    """(D,), the decoder's output for the context; None before the first frame."""

    @classmethod
    def begin(cls, context_size: int, blank_id: int) -> PartialHypothesis:
        """Return an empty hypothesis; its context is a blank with nothing before it, as icefall trains."""
        return cls([-1] * (context_size - 1) + [blank_id])

    def next(self, blank_id: int) -> PartialHypothesis:
        """Return the hypothesis after an endpoint, which continues from the last tokens if this one has any.

        Otherwise its context is empty, but the decoder's output from before the endpoint scores the first token, so
        that the results equal sherpa-onnx's.
        """
        context = self.context if self.tokens else self.begin(len(self.context), blank_id).context
        return PartialHypothesis(context, decoder_out=self.decoder_out)


def greedy_search_chunk(
    model: StreamingTransducer,
    encoder_out: np.ndarray,
    hypotheses: Sequence[PartialHypothesis],
    silent: Collection[int],
) -> None:
    """Extend each hypothesis by the most likely symbol of each frame, unless that is a blank.

    Args:
        model: decoder and joiner.
        encoder_out: (N, T, D).
        hypotheses: N, which grow.
        silent: ids that are not emitted: the blank, and the unknown token, which counts as a blank.
    """
    for hypothesis in hypotheses:
        if hypothesis.decoder_out is None:
            _predict(model, [hypothesis])
    for t in range(encoder_out.shape[1]):
        decoder_out = np.stack([_known(hypothesis) for hypothesis in hypotheses])
        logits = model.join(encoder_out[:, t], decoder_out).astype(np.float32, copy=False)
        extended: list[PartialHypothesis] = []
        for hypothesis, row, symbol in zip(hypotheses, logits, logits.argmax(1).tolist(), strict=True):
            if symbol in silent:
                hypothesis.num_trailing_blanks += 1
            else:
                hypothesis.tokens.append(symbol)
                hypothesis.frames.append(hypothesis.num_frames)
                hypothesis.log_probs.append(float(row[symbol] - _log_sum(row)))
                hypothesis.context = [*hypothesis.context[1:], symbol]
                hypothesis.num_trailing_blanks = 0
                extended.append(hypothesis)
            hypothesis.num_frames += 1
        if extended:
            _predict(model, extended)


def _predict(model: StreamingTransducer, hypotheses: Sequence[PartialHypothesis]) -> None:
    rows = model.predict(np.array([hypothesis.context for hypothesis in hypotheses], np.int64))
    for hypothesis, row in zip(hypotheses, rows, strict=True):
        hypothesis.decoder_out = row


def _known(hypothesis: PartialHypothesis) -> np.ndarray:
    assert hypothesis.decoder_out is not None
    return hypothesis.decoder_out


def _log_sum(row: np.ndarray) -> float:
    """Return the log-sum-exp of (V,)."""
    largest = row.max()
    return float(largest + np.log(np.exp(row - largest).sum()))
