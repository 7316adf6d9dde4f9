"""Sum over all paths of a transducer lattice: the reference, in plain PyTorch.

Letters: N utterances, T encoder frames, U tokens (the lattice has U+1 rows of labels already said).

A path walks from cell (0, 0) to cell (T-1, U) and leaves it by a blank. A blank moves one frame on; a symbol
says the next token. In the *standard* topology (Graves 2012, arXiv 1211.3711) a symbol stays on its frame; in
the *modified* one, optimized_transducer's definition, a symbol moves one frame on as well, so that a frame says
one token at most, and T-1 >= U is needed.

Both are one recursion over a clock d that each arc advances by one: d = t + u in the standard topology
(anti-diagonals), d = t in the modified one (frames)::

    alpha[d, u] = logaddexp(alpha[d-1, u] + blank[d-1, u], alpha[d-1, u-1] + symbol[d-1, u-1])

The work is done in float64: it is cheap beside the joiner, and long lattices lose digits in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Topology = Literal["standard", "modified"]


def lattice_nll(
    blank_scores: Tensor,
    symbol_scores: Tensor,
    encoder_out_lens: Tensor,
    token_lens: Tensor,
    topology: Topology = "standard",
) -> Tensor:
    """Negative log of the summed probability of all paths, for each utterance.

    Args:
        blank_scores: (N, T, U+1), log-probability of a blank in each cell.
        symbol_scores: (N, T, U), log-probability of the next token in each cell. Rows and columns behind an
            utterance's own lengths may hold anything, NaN included.
        encoder_out_lens: (N,), 1 <= length <= T.
        token_lens: (N,), 0 <= length <= U.
        topology: see the module's text.

    Returns:
        (N,), float64, differentiable once in both scores; infinite (with gradient zero) where no path exists.
    """
    return _LatticeNll.apply(blank_scores, symbol_scores, encoder_out_lens, token_lens, topology)


class _LatticeNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blank_scores, symbol_scores, encoder_out_lens, token_lens, topology):  # noqa: D102
        blank, symbol = _valid_arcs(blank_scores, symbol_scores, encoder_out_lens, token_lens, topology)
        end = encoder_out_lens - 1
        if topology == "standard":
            blank, symbol = _skew(blank), _skew(symbol)
            end = end + token_lens
        # (N, clocks, U+1) -> (clocks, N, U+1): one step of the clock is one slice
        blank, symbol = blank.transpose(0, 1), symbol.transpose(0, 1)
        alpha = _forward_scores(blank, symbol)
        n = torch.arange(len(end), device=end.device)
        log_like = alpha[end, n, token_lens] + blank[end, n, token_lens]
        if any(ctx.needs_input_grad):
            after = _scores_after(blank, symbol, end, token_lens)
            # occupation of an arc: the share of all paths' probability that runs through it
            has_path = (log_like != -torch.inf)[:, None]
            before = torch.where(has_path[..., None].transpose(0, 1), alpha - log_like[:, None], -torch.inf)
            blank_occupation = (before + blank + after).exp()
            symbol_occupation = (before[..., :-1] + symbol[..., :-1] + after[..., 1:]).exp()
            T = blank_scores.shape[1]
            occupations = (blank_occupation.transpose(0, 1), symbol_occupation.transpose(0, 1))
            if topology == "standard":
                occupations = (_unskew(occupations[0], T), _unskew(occupations[1], T))
            ctx.save_for_backward(*(each.to(blank_scores.dtype) for each in occupations))
        return -log_like

    @staticmethod
    def backward(ctx, grad_nll):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        # create_graph=True: torch's own `once_differentiable` lets it pass where the incoming gradient is a constant
        if torch.is_grad_enabled():
            raise RuntimeError("The transducer loss is differentiable once; call backward without create_graph.")
        scale = -grad_nll[:, None, None]
        blank, symbol = (scale.to(each) * each for each in ctx.saved_tensors)
        return blank, symbol, None, None, None


def _valid_arcs(blank, symbol, encoder_out_lens, token_lens, topology) -> tuple[Tensor, Tensor]:
    """Both (N, T, U+1), float64, -inf where an arc starts outside its utterance or leads out of it.

    Only the blank of cell (T-1, U) leads out; the modified topology has no symbol on the last frame.
    """
    _, T, num_rows = blank.shape
    t = torch.arange(T, device=blank.device)[:, None]
    u = torch.arange(num_rows, device=blank.device)
    in_time = t < encoder_out_lens[:, None, None]
    blank_valid = in_time & (u <= token_lens[:, None, None])
    may_say = in_time if topology == "standard" else t < encoder_out_lens[:, None, None] - 1
    symbol_valid = may_say & (u < token_lens[:, None, None])
    symbol = torch.nn.functional.pad(symbol.double(), (0, 1))
    return (
        torch.where(blank_valid, blank.double(), -torch.inf),
        torch.where(symbol_valid, symbol, -torch.inf),
    )


def _forward_scores(blank: Tensor, symbol: Tensor) -> Tensor:
    """alpha, (clocks, N, U+1): log-probability of having come to a cell."""
    alpha = torch.full_like(blank, -torch.inf)
    alpha[0, :, 0] = 0
    for d in range(1, len(alpha)):
        stay = alpha[d - 1] + blank[d - 1]
        move = alpha[d - 1] + symbol[d - 1]
        alpha[d, :, 0] = stay[:, 0]
        torch.logaddexp(stay[:, 1:], move[:, :-1], out=alpha[d, :, 1:])
    return alpha


def _scores_after(blank: Tensor, symbol: Tensor, end: Tensor, token_lens: Tensor) -> Tensor:
    """(clocks, N, U+1): log-probability of finishing from the cell of the next clock, same u; that is beta[d+1].

    The exit behind the last blank counts as such a cell, so that no arc is a special case.
    """
    after = torch.full_like(blank, -torch.inf)
    after[end, torch.arange(len(end), device=end.device), token_lens] = 0
    for d in range(len(after) - 1, 0, -1):
        beta = blank[d] + after[d]
        beta[:, :-1] = torch.logaddexp(beta[:, :-1], symbol[d, :, :-1] + after[d, :, 1:])
        after[d - 1] = torch.logaddexp(after[d - 1], beta)
    return after


def _skew(scores: Tensor) -> Tensor:
    """(N, T, U+1) -> (N, T+U, U+1), where row d holds the cells with t + u = d, and -inf elsewhere."""
    N, T, num_rows = scores.shape
    skewed = scores.new_full((N, T + num_rows - 1, num_rows), -torch.inf)
    t = torch.arange(T, device=scores.device)[:, None]
    u = torch.arange(num_rows, device=scores.device)
    skewed[:, t + u, u] = scores
    return skewed


def _unskew(skewed: Tensor, T: int) -> Tensor:
    """(N, T+U, C) -> (N, T, C): the inverse of `_skew`."""
    t = torch.arange(T, device=skewed.device)[:, None]
    u = torch.arange(skewed.shape[2], device=skewed.device)
    return skewed[:, t + u, u]
