"""Greedy search, all utterances at once.

Letters: N utterances, T encoder frames, D joiner width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.recognisable import Recognisable


@torch.inference_mode()
def greedy_search(
    model: Recognisable, encoder_out: Tensor, encoder_out_lens: Tensor, *, max_symbols_per_frame: int = 1
) -> list[Hypothesis]:
    """On each frame the likeliest symbols, until a blank is likeliest or the frame has said its share.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,).
        max_symbols_per_frame: 1 or more.
    """
    N, T, _ = encoder_out.shape
    contexts = encoder_out_lens.new_full((N, model.context_size), model.blank_id)
    decoder_out = model.predict(contexts)
    said: list[list[tuple[int, int, float]]] = [[] for _ in range(N)]
    for t in range(T):
        listening = t < encoder_out_lens  # (N,): not yet at its end, and no blank on this frame so far
        for _ in range(max_symbols_per_frame):
            log_probs = model.join(encoder_out[:, t], decoder_out).log_softmax(-1)
            best, symbols = log_probs.max(-1)
            listening = listening & (symbols != model.blank_id)
            if not bool(listening.any()):
                break
            shifted = torch.cat([contexts[:, 1:], symbols[:, None]], dim=1)
            contexts = torch.where(listening[:, None], shifted, contexts)
            decoder_out = model.predict(contexts)
            for n in listening.nonzero()[:, 0].tolist():
                said[n].append((int(symbols[n]), t, float(best[n])))
    return [
        Hypothesis(
            tokens=tuple(token for token, _, _ in row),
            frames=tuple(frame for _, frame, _ in row),
            log_probs=tuple(log_prob for _, _, log_prob in row),
        )
        for row in said
    ]
