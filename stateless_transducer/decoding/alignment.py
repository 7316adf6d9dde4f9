"""Confidences and times of a hypothesis's tokens, from all its paths through the lattice.

Letters: N utterances, T encoder frames, U tokens, D joiner width, C tokens of context, W rows of a band.

The probability that the first u tokens are y_1 .. y_u, whatever follows, is a sum over the frames of the u-th token
(Graves 2012, arXiv 1211.3711, prefix probabilities): ``P(u) = sum_t alpha(t, u-1) p(y_u | t, u-1)``. So
``P(u) / P(u-1)`` is the probability of token u given the tokens before it, over all its times, and the sum over all
paths to the end is the probability of the transcript. If the model is uncertain between frames, the log-probability of
a token on the single frame that a search chose is smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stateless_transducer.decoding.arrays import Array, gather, like, log_sum_exp, to_numpy, without_gradients
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.options import PLAIN, LogitOptions
from stateless_transducer.decoding.protocols import TransducerSteps

BAND = 3
"""Cells above and below the path of the search; cells further away carry next to nothing."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Alignment:
    """Times and confidences of a hypothesis.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model = checkpoint.model()
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> encoder_out, lens = model.encode(features, torch.tensor([features.shape[1]]))
        >>> (alignment,) = align(model, encoder_out, lens, greedy_search(model, encoder_out, lens))
        >>> len(alignment.frames), round(alignment.confidence, 1)
        (4, 0.9)
    """

    frames: tuple[int, ...]
    """Encoder frame on which each token was most likely emitted, by all paths."""
    confidences: tuple[float, ...]
    """Probability of each token given the tokens before it, 0..1."""
    confidence: float
    """Probability of the whole transcript, 0..1."""


@without_gradients
def align(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    hypotheses: Sequence[Hypothesis],
    *,
    max_symbols_per_frame: int | None = 1,
    options: LogitOptions = PLAIN,
    contexts: Sequence[Sequence[int]] | None = None,
) -> list[Alignment]:
    """Sum over the paths of each hypothesis that stay near the path of the search.

    Args:
        model: decoder and joiner.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        hypotheses: N.
        max_symbols_per_frame: 1 for paths with at most one token per frame, as in modified beam search; None for any.
        options: adjustments of the logits.
        contexts: tokens before each hypothesis, C each; None: blanks.

    Raises:
        ValueError: a type, shape or length is invalid, or a hypothesis has more tokens on a frame than paths may have.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model = checkpoint.model()
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> encoder_out, lens = model.encode(features, torch.tensor([features.shape[1]]))
        >>> (hypothesis,) = greedy_search(model, encoder_out, lens)
        >>> (alignment,) = align(model, encoder_out, lens, [hypothesis])
        >>> [round(confidence, 1) for confidence in alignment.confidences]
        [1.0, 1.0, 1.0, 1.0]
    """
    if max_symbols_per_frame == 1:
        for n, hypothesis in enumerate(hypotheses):
            if len(set(hypothesis.frames)) < len(hypothesis.frames):
                raise ValueError(
                    f"`max_symbols_per_frame` is 1, but hypothesis {n} has several tokens on a frame. "
                    "Pass `max_symbols_per_frame=None`."
                )
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    if not len(encoder_out):
        return []
    if contexts is None:
        contexts = [[model.blank_id] * model.context_size for _ in hypotheses]
    bands = [
        _Band.around(hypothesis, int(length), model, context)
        for hypothesis, length, context in zip(hypotheses, to_numpy(encoder_out_lens), contexts, strict=True)
    ]
    rows = np.concatenate([n * encoder_out.shape[1] + band.frames for n, band in enumerate(bands)])
    row_contexts = np.concatenate([band.contexts for band in bands])
    following = np.concatenate([band.following for band in bands])
    blank, symbol = _arc_scores(
        model, encoder_out.reshape(-1, encoder_out.shape[2]), rows, row_contexts, following, options
    )
    ends = np.cumsum([len(band.frames) for band in bands])
    return [
        _sums(band, band_blank, band_symbol, is_modified=max_symbols_per_frame == 1)
        for band, band_blank, band_symbol in zip(
            bands, np.split(blank, ends[:-1]), np.split(symbol, ends[:-1]), strict=True
        )
    ]


@dataclass(frozen=True)
class _Band:
    """Cells (t, u) near a path: W on each frame, from the lowest."""

    num_frames: int
    num_tokens: int
    width: int
    """W."""
    lowest: np.ndarray
    """(T,): the fewest tokens said on each frame."""
    frames: np.ndarray
    """(T * W,)."""
    contexts: np.ndarray
    """(T * W, C)."""
    following: np.ndarray
    """(T * W,): the next token; the blank where all are said."""

    def near(self, t: int) -> range:
        """Return the cells of a frame that a token may follow."""
        first = int(self.lowest[t])
        return range(first, min(self.num_tokens, first + self.width))

    @classmethod
    def around(cls, hypothesis: Hypothesis, num_frames: int, model: TransducerSteps, context: Sequence[int]) -> _Band:
        tokens = np.array(hypothesis.tokens, np.int64)
        U, T, C = len(tokens), num_frames, model.context_size
        said = np.searchsorted(np.array(hypothesis.frames, np.int64), np.arange(T + 1), side="left")
        # wide enough for all tokens that the path emits on a frame
        most = int(np.diff(said).max(initial=1))
        said, width = said[:-1], min(2 * BAND + most, U + 1)
        lowest = (said - BAND).clip(0, U + 1 - width)
        u = (lowest[:, None] + np.arange(width)).reshape(-1)
        padded = np.concatenate([np.array(context, np.int64), tokens, [model.blank_id]])
        # the context of cell u is the C tokens before place u of the padded row
        contexts = padded[u[:, None] + np.arange(C)]
        return cls(T, U, width, lowest, np.repeat(np.arange(T), width), contexts, padded[u + C])


def _arc_scores(
    model: TransducerSteps,
    frames: Array,
    rows: np.ndarray,
    contexts: np.ndarray,
    following: np.ndarray,
    options: LogitOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities of the blank and of the following token of each cell, float64."""
    blank, symbol = np.empty(len(rows)), np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        here, context, token = (like(values[part], frames) for values in (rows, contexts, following))
        logits = options.adjust(model.join(frames[here], model.predict(context)), model.blank_id)
        normalizer = log_sum_exp(logits)
        blank[part] = to_numpy(logits[:, model.blank_id] - normalizer)
        symbol[part] = to_numpy(gather(logits, token[:, None])[:, 0] - normalizer)
    return blank, symbol


def _sums(band: _Band, blank: np.ndarray, symbol: np.ndarray, *, is_modified: bool) -> Alignment:
    """Compute alpha and beta over the band, and the alignment from them."""
    T, U = band.num_frames, band.num_tokens
    if not T:
        return Alignment((), (), 1.0)
    blank, symbol = (_widened(band, scores) for scores in (blank, symbol))
    # one more frame, where all paths end
    alpha, beta = (np.full((T + 1, U + 2), -np.inf) for _ in range(2))
    alpha[0, 0], beta[T, U] = 0.0, 0.0
    with np.errstate(invalid="ignore"):
        if is_modified:
            for t in range(T):
                alpha[t + 1, :-1] = alpha[t, :-1] + blank[t]
                alpha[t + 1, 1:-1] = np.logaddexp(alpha[t + 1, 1:-1], alpha[t, :U] + symbol[t, :U])
            for t in range(T - 1, -1, -1):
                beta[t, :-1] = np.logaddexp(blank[t] + beta[t + 1, :-1], symbol[t] + beta[t + 1, 1:])
            emitted = alpha[:T, :U] + symbol[:, :U]
            after = beta[1:, 1 : U + 1]
        else:
            for t in range(T):
                for u in band.near(t):
                    alpha[t, u + 1] = np.logaddexp(alpha[t, u + 1], alpha[t, u] + symbol[t, u])
                alpha[t + 1, :-1] = alpha[t, :-1] + blank[t]
            for t in range(T - 1, -1, -1):
                beta[t, :-1] = blank[t] + beta[t + 1, :-1]
                for u in reversed(band.near(t)):
                    beta[t, u] = np.logaddexp(beta[t, u], symbol[t, u] + beta[t, u + 1])
            emitted = alpha[:T, :U] + symbol[:, :U]
            after = beta[:T, 1 : U + 1]
    prefixes = np.concatenate([[0.0], log_sum_exp(emitted.T.copy())]) if U else np.zeros(1)
    confidences = np.exp(np.diff(prefixes).clip(max=0.0))
    frames = (emitted + after).argmax(0)
    return Alignment(tuple(frames.tolist()), tuple(confidences.tolist()), float(np.exp(min(0.0, alpha[T, U]))))


def _widened(band: _Band, scores: np.ndarray) -> np.ndarray:
    """Spread the scores of a band over the lattice: (T * W,) to (T, U+1), -inf outside the band."""
    whole = np.full((band.num_frames, band.num_tokens + 1), -np.inf)
    rows = scores.reshape(band.num_frames, -1)
    np.put_along_axis(whole, band.lowest[:, None] + np.arange(rows.shape[1]), rows, axis=1)
    return whole
