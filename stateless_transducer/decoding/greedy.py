"""Greedy search, all utterances at once.

Letters: N utterances, T encoder frames, D joiner width, S symbols per frame at most.
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

# largest number of frames that an utterance looks ahead, and of rows in one call of the joiner for looking ahead
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
    """Return the most likely symbols of each frame, until a blank or ``max_symbols_per_frame`` of them.

    On a GPU, nothing waits for the device between the first frame and the last.

    Args:
        model: decoder and joiner.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        max_symbols_per_frame: S, 1 or more.
        options: adjustments of the logits.

    Returns:
        N hypotheses. The score is the sum of the tokens' log-probabilities. If the model's output is not finite, the
        utterance has an empty hypothesis with score NaN.

    Raises:
        ValueError: a type, a shape, a length or ``max_symbols_per_frame`` is invalid.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model, tokens = checkpoint.model(), checkpoint.token_table
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> encoder_out, lens = model.encode(features, torch.tensor([features.shape[1]]))
        >>> (hypothesis,) = greedy_search(model, encoder_out, lens)
        >>> tokens.decode(hypothesis.tokens)
        '今天很好'
    """
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    xp, device = namespace(encoder_out), device_of(encoder_out)
    shape = (len(encoder_out), model.context_size)
    contexts = xp.full(shape, model.blank_id, dtype=xp.int64, device=device)
    return advance_greedily(
        model,
        encoder_out,
        encoder_out_lens,
        contexts,
        xp.asarray(model.predict(contexts), copy=True),
        max_symbols_per_frame=max_symbols_per_frame,
        options=options,
    )


def advance_greedily(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    contexts: Array,
    decoder_out: Array,
    *,
    max_symbols_per_frame: int,
    options: LogitOptions,
    unknown_id: int | None = None,
) -> list[Hypothesis]:
    """Return what greedy search adds to the hypotheses of N utterances; see `greedy_search`.

    Args:
        model: decoder and joiner, see `search_inputs`.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,).
        contexts: (N, C), the last tokens of each hypothesis; become those after the last frame.
        decoder_out: (N, D), output of the decoder for them; likewise.
        max_symbols_per_frame: S.
        options: adjustments of the logits.
        unknown_id: token that counts as a blank.

    Raises:
        ValueError: ``max_symbols_per_frame`` is invalid.
    """
    if max_symbols_per_frame < 1:
        raise ValueError(f"`max_symbols_per_frame` must be at least 1, but is {max_symbols_per_frame}.")
    silent = (model.blank_id,) if unknown_id is None else (model.blank_id, unknown_id)
    search = _search_ahead if is_on_host(encoder_out) else _search_in_step
    return search(model, encoder_out, encoder_out_lens, contexts, decoder_out, max_symbols_per_frame, options, silent)


def _search_in_step(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    contexts: Array,
    decoder_out: Array,
    S: int,
    options: LogitOptions,
    silent: Sequence[int],
) -> list[Hypothesis]:
    """Greedy search that waits for no device, frame by frame."""
    xp, device = namespace(encoder_out), device_of(encoder_out)
    schedule = Schedule.of(encoder_out_lens)
    N, T, blank, order = len(schedule.lens), len(schedule.running), model.blank_id, schedule.order
    symbols = xp.full((T, S, N), blank, dtype=xp.int64, device=device)
    log_probs = xp.zeros((T, S, N), dtype=xp.float32, device=device)
    for t, running in enumerate(schedule.running):
        # whether an utterance may emit another symbol on this frame; None: all may
        rows, is_active = order[:running], None
        for s in range(S):
            logits = options.adjust(model.join(encoder_out[rows, t], decoder_out[rows]), blank)
            best = xp.argmax(logits, axis=-1)
            is_token = best != blank
            for id_ in silent[1:]:
                is_token = is_token & (best != id_)
            if is_active is not None:
                is_token = is_token & is_active
            is_active = is_token
            symbols[t, s, rows] = xp.where(is_token, best, blank)
            log_probs[t, s, rows] = xp.max(logits, axis=-1) - log_sum_exp(logits)
            shifted = xp.concat([contexts[rows, 1:], best[:, None]], axis=1)
            contexts[rows] = xp.where(is_token[:, None], shifted, contexts[rows])
            decoder_out[rows] = xp.where(is_token[:, None], model.predict(contexts[rows]), decoder_out[rows])
    return _collect(to_numpy(symbols), to_numpy(log_probs), blank)


def _search_ahead(
    model: TransducerSteps,
    encoder_out: np.ndarray,
    encoder_out_lens: np.ndarray,
    contexts: np.ndarray,
    decoder_out: np.ndarray,
    S: int,
    options: LogitOptions,
    silent: Sequence[int],
) -> list[Hypothesis]:
    """Greedy search in NumPy arrays, which evaluates several frames of an utterance at once, up to its next token.

    Most frames emit no token, and a few more rows hardly slow a matrix product down. Letter: R rows.
    """
    lens, blank = encoder_out_lens.astype(np.int64), model.blank_id
    is_lost = np.zeros(len(lens), bool)
    # next frame of each utterance, and the number of symbols that it has emitted on it
    t, num_emitted = np.zeros_like(lens), np.zeros_like(lens)
    events: list[tuple[np.ndarray, ...]] = []
    while len(running := (t < lens).nonzero()[0]):
        ahead = np.minimum(lens[running] - t[running], min(_MOST_AHEAD, max(1, _ROWS_AT_ONCE // len(running))))
        owners = running.repeat(ahead)  # (R,)
        frames = np.arange(len(owners)) + (t[running] - (ahead.cumsum() - ahead)).repeat(ahead)
        logits = options.adjust(model.join(encoder_out[owners, frames], decoder_out[owners]), blank)
        symbols = logits.argmax(1)
        # the maximum over NaN and numbers is NaN
        is_lost[owners[~np.isfinite(logits[np.arange(len(owners)), symbols])]] = True
        token_rows = np.logical_and.reduce([symbols != id_ for id_ in silent]).nonzero()[0]
        emitting, first = np.unique(owners[token_rows], return_index=True)
        token_rows = token_rows[first]
        frame, symbol = frames[token_rows], symbols[token_rows]
        count = np.where(frame == t[emitting], num_emitted[emitting], 0) + 1
        t[running] += ahead
        num_emitted[running] = 0
        if not len(emitting):
            continue
        t[emitting], num_emitted[emitting] = frame + (count == S), count % S
        contexts[emitting] = np.concatenate([contexts[emitting, 1:], symbol[:, None]], axis=1)
        decoder_out[emitting] = model.predict(contexts[emitting])
        events.append((emitting, frame, symbol, logits[token_rows].max(1) - log_sum_exp(logits[token_rows])))
    hypotheses = _hypotheses_of_events(events, len(lens))
    return [LOST if lost else hypothesis for hypothesis, lost in zip(hypotheses, is_lost, strict=True)]


def _hypotheses_of_events(events: Sequence[tuple[np.ndarray, ...]], N: int) -> list[Hypothesis]:
    """Collect N hypotheses from utterances, frames, symbols and log-probabilities, in the order of the frames."""
    if not events:
        return [Hypothesis((), (), ()) for _ in range(N)]
    utterances, *values = (np.concatenate(column) for column in zip(*events, strict=True))
    order = utterances.argsort(kind="stable")
    bounds = np.searchsorted(utterances[order], np.arange(1, N))
    parts = (np.split(array[order], bounds) for array in values)
    return [
        Hypothesis(tuple(tokens.tolist()), tuple(frames.tolist()), tuple(log_probs.tolist()), float(log_probs.sum()))
        for frames, tokens, log_probs in zip(*parts, strict=True)
    ]


def _collect(symbols: np.ndarray, log_probs: np.ndarray, blank: int) -> list[Hypothesis]:
    """Collect N hypotheses from symbols and log-probabilities, (T, S, N) each."""
    T, S, N = symbols.shape
    rows = symbols.transpose(2, 0, 1).reshape(N, T * S)  # (T, S, N) -> (N, T * S)
    log_prob_rows = log_probs.transpose(2, 0, 1).reshape(N, T * S)
    hypotheses: list[Hypothesis] = []
    for row, log_prob_row in zip(rows, log_prob_rows, strict=True):
        if np.isnan(log_prob_row).any():
            hypotheses.append(LOST)
            continue
        (places,) = (row != blank).nonzero()
        hypotheses.append(
            Hypothesis(
                tokens=tuple(row[places].tolist()),
                frames=tuple((places // S).tolist()),
                log_probs=tuple(log_prob_row[places].tolist()),
                score=float(log_prob_row[places].sum()),
            )
        )
    return hypotheses
