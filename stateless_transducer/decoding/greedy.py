"""Greedy search, all utterances at once.

Letters: N utterances, T encoder frames, D joiner width, S symbols a frame may emit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stateless_transducer.decoding.arrays import (
    Array,
    device_of,
    is_on_host,
    log_sum_exp,
    namespace,
    to_numpy,
    without_gradients,
)
from stateless_transducer.decoding.hypothesis import LOST, Hypothesis
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.options import PLAIN, LogitOptions, Schedule
from stateless_transducer.decoding.protocols import TransducerSteps

# an utterance looks so many frames ahead, as long as all together do not ask for more rows
_MOST_AHEAD, _ROWS_AT_ONCE = 8, 32


@without_gradients
def greedy_search(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    *,
    max_symbols_per_frame: int = 1,
    options: LogitOptions = PLAIN,
) -> list[Hypothesis]:
    """On each frame the likeliest symbols, until a blank is likeliest or the frame has said its share.

    On a GPU nothing waits for the device from the first frame to the last.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        max_symbols_per_frame: S, 1 or more.
        options: adjustments of the logits.

    Returns:
        N hypotheses, whose score is the sum of their tokens' log-probabilities; an empty one with score NaN for an
        utterance for which the model gives no numbers.

    Raises:
        ValueError: types, shapes, lens or ``max_symbols_per_frame`` cannot be.
    """
    if max_symbols_per_frame < 1:
        raise ValueError(f"`max_symbols_per_frame` must be at least 1, but is {max_symbols_per_frame}.")
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    if is_on_host(encoder_out):
        return _search_ahead(model, encoder_out, encoder_out_lens, max_symbols_per_frame, options)
    xp, device = namespace(encoder_out), device_of(encoder_out)
    schedule = Schedule.of(encoder_out_lens)
    N, T, blank = len(schedule.lens), len(schedule.running), model.blank_id
    contexts = xp.full((N, model.context_size), blank, dtype=xp.int64, device=device)
    decoder_out = xp.asarray(model.predict(contexts), copy=True)
    symbols = xp.full((T, max_symbols_per_frame, N), blank, dtype=xp.int64, device=device)
    log_probs = xp.zeros((T, max_symbols_per_frame, N), dtype=xp.float32, device=device)
    every = xp.arange(N, device=device)
    for t, running in enumerate(schedule.running):
        rows, is_listening = every[:running], None
        for s in range(max_symbols_per_frame):
            logits = options.adjust(model.join(encoder_out[schedule.order[rows], t], decoder_out[rows]), blank)
            found = xp.argmax(logits, axis=-1)
            says = found != blank
            if is_listening is not None:
                says = says & is_listening
            is_listening = says
            symbols[t, s, rows] = xp.where(says, found, blank)
            log_probs[t, s, rows] = xp.max(logits, axis=-1) - log_sum_exp(logits)
            shifted = xp.concat([contexts[rows, 1:], found[:, None]], axis=1)
            contexts[rows] = xp.where(says[:, None], shifted, contexts[rows])
            decoder_out[rows] = model.predict(contexts[rows])
    return schedule.unsort(_collect(to_numpy(symbols), to_numpy(log_probs), blank))


def _search_ahead(
    model: TransducerSteps, encoder_out: np.ndarray, encoder_out_lens: np.ndarray, S: int, options: LogitOptions
) -> list[Hypothesis]:
    """The same in NumPy arrays: an utterance asks for several frames at once, up to the first that says something.

    Most frames say nothing, and a few rows more make a product of matrices hardly slower. Letter: R rows.
    """
    lens, blank = encoder_out_lens.astype(np.int64), model.blank_id
    contexts = np.full((len(lens), model.context_size), blank, np.int64)
    decoder_out = model.predict(contexts).copy()
    is_lost = np.zeros(len(lens), bool)
    # of each utterance: the next frame, and how many symbols it has said already
    t, said = np.zeros_like(lens), np.zeros_like(lens)
    events: list[tuple[np.ndarray, ...]] = []
    while len(running := (t < lens).nonzero()[0]):
        ahead = np.minimum(lens[running] - t[running], min(_MOST_AHEAD, max(1, _ROWS_AT_ONCE // len(running))))
        owners = running.repeat(ahead)  # (R,)
        frames = np.arange(len(owners)) + (t[running] - (ahead.cumsum() - ahead)).repeat(ahead)
        logits = options.adjust(model.join(encoder_out[owners, frames], decoder_out[owners]), blank)
        symbols = logits.argmax(1)
        # the largest of numbers and no number is no number
        is_lost[owners[~np.isfinite(logits[np.arange(len(owners)), symbols])]] = True
        says = (symbols != blank).nonzero()[0]
        speaking, first = np.unique(owners[says], return_index=True)
        says = says[first]
        frame, symbol = frames[says], symbols[says]
        count = np.where(frame == t[speaking], said[speaking], 0) + 1
        t[running] += ahead
        said[running] = 0
        if not len(speaking):
            continue
        t[speaking], said[speaking] = frame + (count == S), count % S
        contexts[speaking] = np.concatenate([contexts[speaking, 1:], symbol[:, None]], axis=1)
        decoder_out[speaking] = model.predict(contexts[speaking])
        events.append((speaking, frame, symbol, logits[says].max(1) - log_sum_exp(logits[says])))
    return [LOST if lost else own for own, lost in zip(_of_events(events, len(lens)), is_lost, strict=True)]


def _of_events(events: Sequence[tuple[np.ndarray, ...]], N: int) -> list[Hypothesis]:
    """Utterances, frames, symbols and log-probabilities, in the order of the frames -> N hypotheses."""
    if not events:
        return [Hypothesis((), (), ()) for _ in range(N)]
    utterances, *values = (np.concatenate(each) for each in zip(*events, strict=True))
    order = utterances.argsort(kind="stable")
    bounds = np.searchsorted(utterances[order], np.arange(1, N))
    parts = (np.split(each[order], bounds) for each in values)
    return [
        Hypothesis(tuple(tokens.tolist()), tuple(frames.tolist()), tuple(log_probs.tolist()), float(log_probs.sum()))
        for frames, tokens, log_probs in zip(*parts, strict=True)
    ]


def _collect(symbols: np.ndarray, log_probs: np.ndarray, blank: int) -> list[Hypothesis]:
    """(T, S, N) each -> N hypotheses."""
    T, S, N = symbols.shape
    rows = symbols.transpose(2, 0, 1).reshape(N, T * S)  # (T, S, N) -> (N, T * S)
    sure = log_probs.transpose(2, 0, 1).reshape(N, T * S)
    hypotheses = []
    for row, own in zip(rows, sure, strict=True):
        if np.isnan(own).any():
            hypotheses.append(LOST)
            continue
        (places,) = (row != blank).nonzero()
        hypotheses.append(
            Hypothesis(
                tokens=tuple(row[places].tolist()),
                frames=tuple((places // S).tolist()),
                log_probs=tuple(own[places].tolist()),
                score=float(own[places].sum()),
            )
        )
    return hypotheses
