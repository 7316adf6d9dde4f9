"""Greedy search, all utterances at once.

Letters: N utterances, T encoder frames, D joiner width, S symbols a frame may emit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.options import PLAIN, LogitOptions, Schedule
from stateless_transducer.decoding.recognisable import Recognisable


@torch.inference_mode()
def greedy_search(
    model: Recognisable,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
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
    schedule, device = Schedule.of(encoder_out_lens), encoder_out.device
    N, T, blank = len(encoder_out), len(schedule.running), model.blank_id
    encoder_out = encoder_out[schedule.order]
    contexts = torch.full((N, model.context_size), blank, device=device)
    decoder_out = model.predict(contexts)
    symbols = torch.full((T, max_symbols_per_frame, N), blank, device=device)
    log_probs = torch.zeros(symbols.shape, device=device)
    for t, running in enumerate(schedule.running):
        frame = encoder_out[:running, t]
        is_listening = torch.ones(running, dtype=torch.bool, device=device)  # no blank on this frame so far
        for s in range(max_symbols_per_frame):
            logits = options.adjust(model.join(frame, decoder_out[:running]), blank)
            best, found = logits.max(-1)
            is_listening &= found != blank
            # a question that costs nothing on the CPU, and saves the rest of most frames
            if device.type == "cpu" and not bool(is_listening.any()):
                break
            symbols[t, s, :running] = torch.where(is_listening, found, blank)
            log_probs[t, s, :running] = best - logits.logsumexp(-1)
            shifted = torch.cat([contexts[:running, 1:], found[:, None]], dim=1)
            contexts[:running] = torch.where(is_listening[:, None], shifted, contexts[:running])
            decoder_out = model.predict(contexts)
    return schedule.unsort(_collect(symbols, log_probs, blank))


def _collect(symbols: Tensor, log_probs: Tensor, blank: int) -> list[Hypothesis]:
    """(T, S, N) each -> N hypotheses."""
    T, S, N = symbols.shape
    rows = symbols.permute(2, 0, 1).reshape(N, T * S).cpu().numpy()  # (T, S, N) -> (N, T * S)
    sure = log_probs.permute(2, 0, 1).reshape(N, T * S).cpu().numpy()
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
