"""The transducer loss by brute force: every path is walked, nothing is shared. For T, U <= 4."""

from __future__ import annotations

import torch
from torch import Tensor


def nll_by_enumeration(
    log_probs: Tensor, tokens: list[int], topology: str, blank: int = 0, delay_penalty: float = 0.0
) -> Tensor:
    """Negative log of the summed probability of all paths of one utterance.

    Args:
        log_probs: (T, U+1, V).
        tokens: U ids.
        topology: "standard": a symbol stays on its frame; "modified": it moves one frame on, and the last arc of a path
            is a blank on the last frame; "modified_open": the same, but the last frame may say the last token instead.
        blank: id of the blank.
        delay_penalty: added to each symbol's log-probability, times (T-1)/2 - t.
    """
    T, U = log_probs.shape[0], len(tokens)
    totals = []

    def symbol(t: int, u: int):
        return log_probs[t, u, tokens[u]] + delay_penalty * ((T - 1) / 2 - t)

    def walk(t: int, u: int, total) -> None:
        if t == T - 1 and u == U:
            totals.append(total + log_probs[t, u, blank])
        if t + 1 < T:
            walk(t + 1, u, total + log_probs[t, u, blank])
        if u < U and topology == "standard":
            walk(t, u + 1, total + symbol(t, u))
        if u < U and topology != "standard" and t + 1 < T:
            walk(t + 1, u + 1, total + symbol(t, u))
        if u == U - 1 and topology == "modified_open" and t == T - 1:
            totals.append(total + symbol(t, u))

    walk(0, 0, torch.zeros((), dtype=log_probs.dtype))
    if not totals:
        return log_probs.new_tensor(torch.inf)
    return -torch.logsumexp(torch.stack(totals), 0)
