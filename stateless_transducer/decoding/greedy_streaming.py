"""Greedy search that goes on from chunk to chunk, many streams at once. NumPy only.

Letters: N streams, T encoder frames of a chunk, D joiner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class StreamingTransducer(Protocol):
    """What the search needs of a model."""

    @property
    def context_size(self) -> int:
        """Tokens that the decoder sees."""
        ...

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        """(N, context_size) -> decoder_out (N, D)."""
        ...

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        """(N, D) and (N, D) -> logits (N, V)."""
        ...


@dataclass
class PartialHypothesis:
    """What a stream has said since it began, or since an endpoint; grows."""

    context: list[int]
    """The last tokens, -1 where there are none yet."""
    tokens: list[int] = field(default_factory=list)
    """Ids, without blanks."""
    frames: list[int] = field(default_factory=list)
    """Encoder frame on which each was emitted, from the beginning of the hypothesis."""
    log_probs: list[float] = field(default_factory=list)
    """Log-probability of each where it was emitted."""
    num_frames: int = 0
    """Encoder frames heard."""
    num_trailing_blanks: int = 0
    """Encoder frames heard since the last token."""
    decoder_out: np.ndarray | None = None
    """(D,), the decoder's output for the context, once it is known."""

    @classmethod
    def begin(cls, context_size: int, blank_id: int) -> PartialHypothesis:
        """Nothing said: the context is a blank, and nothing before it, as icefall trains."""
        return cls([-1] * (context_size - 1) + [blank_id])

    def next(self, blank_id: int) -> PartialHypothesis:
        """The hypothesis behind an endpoint: it goes on from the last tokens if this one has any.

        If it has none, the context begins anew, but with the token after next: the next one is judged by the decoder's
        output of before the silence, since sherpa-onnx does so, and its users should read the same words here.
        """
        context = self.context if self.tokens else self.begin(len(self.context), blank_id).context
        return PartialHypothesis(context, decoder_out=self.decoder_out)


def greedy_search_chunk(
    model: StreamingTransducer,
    encoder_out: np.ndarray,
    hypotheses: Sequence[PartialHypothesis],
    silent: Collection[int],
) -> None:
    """Add to each hypothesis the likeliest symbol of each frame, unless that is a blank.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        hypotheses: N, which grow.
        silent: ids that are not said: the blank, and the unknown token, which counts as one.
    """
    for hypothesis in hypotheses:
        if hypothesis.decoder_out is None:
            _predict(model, [hypothesis])
    for t in range(encoder_out.shape[1]):
        decoder_out = np.stack([_known(hypothesis) for hypothesis in hypotheses])
        logits = model.join(encoder_out[:, t], decoder_out).astype(np.float32, copy=False)
        spoke = []
        for hypothesis, row, found in zip(hypotheses, logits, logits.argmax(1).tolist(), strict=True):
            if found in silent:
                hypothesis.num_trailing_blanks += 1
            else:
                hypothesis.tokens.append(found)
                hypothesis.frames.append(hypothesis.num_frames)
                hypothesis.log_probs.append(float(row[found] - _log_sum(row)))
                hypothesis.context = [*hypothesis.context[1:], found]
                hypothesis.num_trailing_blanks = 0
                spoke.append(hypothesis)
            hypothesis.num_frames += 1
        if spoke:
            _predict(model, spoke)


def _predict(model: StreamingTransducer, hypotheses: Sequence[PartialHypothesis]) -> None:
    rows = model.predict(np.array([hypothesis.context for hypothesis in hypotheses], np.int64))
    for hypothesis, row in zip(hypotheses, rows, strict=True):
        hypothesis.decoder_out = row


def _known(hypothesis: PartialHypothesis) -> np.ndarray:
    assert hypothesis.decoder_out is not None
    return hypothesis.decoder_out


def _log_sum(row: np.ndarray) -> float:
    """Logarithm of the sum of exp over (V,)."""
    largest = row.max()
    return float(largest + np.log(np.exp(row - largest).sum()))
