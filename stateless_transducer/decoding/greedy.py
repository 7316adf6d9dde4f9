"""Greedy search, all utterances at once.

Letters: N utterances, T encoder frames, D joiner width, S symbols a frame may emit.
"""

from __future__ import annotations

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
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.options import PLAIN, LogitOptions, Schedule
from stateless_transducer.decoding.recognisable import Steps, on_host


@without_gradients
def greedy_search(
    model: Steps,
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
        encoder_out_lens: (N,).
        max_symbols_per_frame: S, 1 or more.
        options: adjustments of the logits.

    Returns:
        N hypotheses, whose score is the sum of their tokens' log-probabilities.
    """
    model, encoder_out, encoder_out_lens = on_host(model, encoder_out, encoder_out_lens)
    xp, device, is_cheap_to_ask = namespace(encoder_out), device_of(encoder_out), is_on_host(encoder_out)
    schedule = Schedule.of(encoder_out_lens)
    N, T, blank = len(schedule.lens), len(schedule.running), model.blank_id
    contexts = xp.full((N, model.context_size), blank, dtype=xp.int64, device=device)
    decoder_out = model.predict(contexts)
    symbols = xp.full((T, max_symbols_per_frame, N), blank, dtype=xp.int64, device=device)
    log_probs = xp.zeros((T, max_symbols_per_frame, N), dtype=xp.float32, device=device)
    every = xp.arange(N, device=device)
    for t, running in enumerate(schedule.running):
        rows, is_listening = every[:running], None
        for s in range(max_symbols_per_frame):
            logits = options.adjust(model.join(encoder_out[schedule.order[rows], t], decoder_out[rows]), blank)
            found = xp.argmax(logits, axis=-1)
            says = found != blank
            if is_cheap_to_ask:
                # most frames say nothing; those that do are few
                speaking = xp.nonzero(says)[0]
                if not len(speaking):
                    break
                rows, logits, found, says = rows[speaking], logits[speaking], found[speaking], says[speaking]
            elif is_listening is not None:
                says = says & is_listening
            is_listening = says
            symbols[t, s, rows] = xp.where(says, found, blank)
            log_probs[t, s, rows] = xp.max(logits, axis=-1) - log_sum_exp(logits)
            shifted = xp.concat([contexts[rows, 1:], found[:, None]], axis=1)
            contexts[rows] = xp.where(says[:, None], shifted, contexts[rows])
            decoder_out[rows] = model.predict(contexts[rows])
    return schedule.unsort(_collect(to_numpy(symbols), to_numpy(log_probs), blank))


def _collect(symbols: np.ndarray, log_probs: np.ndarray, blank: int) -> list[Hypothesis]:
    """(T, S, N) each -> N hypotheses."""
    T, S, N = symbols.shape
    rows = symbols.transpose(2, 0, 1).reshape(N, T * S)  # (T, S, N) -> (N, T * S)
    sure = log_probs.transpose(2, 0, 1).reshape(N, T * S)
    hypotheses = []
    for row, own in zip(rows, sure, strict=True):
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
