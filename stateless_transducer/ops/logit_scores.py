"""Scores of arcs from logits, their gradients, and the loss of logits that the caller computed.

Letters: N utterances, T encoder frames, U tokens, V vocabulary, M listed cells, C cells of a chunk, R rows of logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stateless_transducer.ops.cells import Cells
from stateless_transducer.ops.lattice import PathSums, refuse_second_derivative, sum_over_paths

SMALLEST_EXPONENT = -60.0
"""exp of less is taken as exp of this, 9e-27: products with it stay normal numbers, and denormal ones are slow."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over numbers of a dtype: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def chunks(num_cells: int, numbers_per_cell: int, device: torch.device) -> Iterator[slice]:
    """Split cells into slices that fit a CPU's caches or fill a GPU."""
    budget = 2**25 if device.type == "cuda" else 3 * 2**20
    size = min(max(budget // numbers_per_cell, 256), 2**16)
    return (slice(start, start + size) for start in range(0, num_cells, size))


def scores_of_logits(logits: Tensor, blank: int, next_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the blank and of the next token, and the logits' log-sum, (C,) each.

    The logits, (C, V), are overwritten.
    """
    blank_logit, symbol_logit = logits[:, blank].clone(), logits.gather(1, next_tokens[:, None])[:, 0]
    largest = logits.amax(1, keepdim=True)
    logits.sub_(largest).clamp_(min=SMALLEST_EXPONENT).exp_()
    normalizer = logits.sum(1).log_().add_(largest[:, 0])
    return blank_logit.sub_(normalizer), symbol_logit.sub_(normalizer), normalizer


class Occupied(NamedTuple):
    """The cells that the backward pass visits, K of the M listed ones, with their occupations."""

    n: Tensor
    """(K,), int64: utterance."""
    frame: Tensor
    """(K,), int64: row n * T + t of a padded (N, T, ...) tensor."""
    u: Tensor
    """(K,), int64: tokens said so far."""
    normalizer: Tensor
    """(K,), log-sum of the logits."""
    blank: Tensor
    """(K,), occupation of the blank arc."""
    symbol: Tensor
    """(K,), occupation of the symbol arc."""


def occupied_cells(cells: Cells, normalizers: Tensor, sums: PathSums, skip_below: float) -> Occupied:
    """Select the cells whose share of the probability of all paths exceeds `skip_below`.

    Cells from which no path reaches the end carry nothing, nor do cells of an utterance without a finite nll.
    """
    places = (sums.blank + sums.symbol > skip_below).nonzero()[:, 0]
    dtype = normalizers.dtype
    return Occupied(
        n=cells.n[places],
        frame=cells.frame[places],
        u=cells.u[places],
        normalizer=normalizers[places],
        blank=sums.blank[places].to(dtype),
        symbol=sums.symbol[places].to(dtype),
    )


def logits_to_gradient_(
    logits: Tensor, blank: int, next_tokens: Tensor, normalizers: Tensor, blank_share: Tensor, symbol_share: Tensor
) -> Tensor:
    """Overwrite the logits (C, V) with the gradient of the nll in them.

    The gradient is the cell's occupation times their softmax, less the occupation of the blank arc at the blank, and
    less that of the symbol arc at the next token.

    Args:
        logits: (C, V), as in the forward pass.
        blank: id of the blank.
        next_tokens: (C,), int64.
        normalizers: (C,), their log-sums.
        blank_share: (C,), occupation of the blank arc; the cell's, together with `symbol_share`, is above 0.
        symbol_share: (C,), occupation of the symbol arc.
    """
    # gamma * exp(logit - normalizer)
    logits += (blank_share + symbol_share).log_().sub_(normalizers)[:, None]
    logits.clamp_(min=SMALLEST_EXPONENT).exp_()
    logits[:, blank] -= blank_share
    return logits.scatter_add_(1, next_tokens[:, None], -symbol_share[:, None])


class LogitRows(NamedTuple):
    """Places of the cells' logits in a matrix of R rows, and the next token of each cell."""

    of_frame: Tensor
    """(N * T,), int64: row of the frame's cell with no tokens said, whether or not it exists."""
    next_tokens: Tensor
    """(N, U+1), int64; any valid token after the last."""
    blank: int
    is_normalized: bool
    """Whether the logits are log-probabilities already."""


def nll_of_logits(cells: Cells, rows: LogitRows, logits: Tensor) -> Tensor:
    """Return the nll of each utterance, (N,), float64, differentiable once in the logits (R, V)."""
    has_backward = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return _NllOfLogits.apply(cells, rows, has_backward, logits)


class _NllOfLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells, rows, has_backward, logits):
        scores = torch.zeros(3, len(cells), dtype=wide_dtype(logits.dtype), device=logits.device)
        for chunk in chunks(len(cells), logits.shape[1], logits.device):
            n, u = cells.n[chunk], cells.u[chunk]
            row, token = rows.of_frame[cells.frame[chunk]] + u, rows.next_tokens[n, u]
            if rows.is_normalized:
                scores[0, chunk], scores[1, chunk] = logits[row, rows.blank], logits[row, token]
            else:
                cell_logits = logits.index_select(0, row).to(scores.dtype)
                for all_scores, chunk_scores in zip(
                    scores, scores_of_logits(cell_logits, rows.blank, token), strict=True
                ):
                    all_scores[chunk] = chunk_scores
        blank_scores, symbol_scores, normalizers = scores
        sums = sum_over_paths(cells, blank_scores, symbol_scores, has_occupations=has_backward)
        if has_backward:
            ctx.rows = rows
            ctx.save_for_backward(logits, *occupied_cells(cells, normalizers, sums, skip_below=0.0))
        return sums.nll

    @staticmethod
    def backward(ctx, grad_nll):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        logits, *saved = ctx.saved_tensors
        occupied, rows = Occupied(*saved), ctx.rows
        gradient = torch.zeros_like(logits)
        for chunk in chunks(len(occupied.n), logits.shape[1], logits.device):
            n, frame, u, normalizer, blank, symbol = (column[chunk] for column in occupied)
            row, token, scale = rows.of_frame[frame] + u, rows.next_tokens[n, u], grad_nll[n].to(blank)
            if rows.is_normalized:
                gradient[row, rows.blank] -= (blank * scale).to(gradient.dtype)
                gradient[row, token] -= (symbol * scale).to(gradient.dtype)
            else:
                cell_logits = logits.index_select(0, row).to(blank.dtype)
                cell_gradient = logits_to_gradient_(cell_logits, rows.blank, token, normalizer, blank, symbol)
                gradient[row] = cell_gradient.mul_(scale[:, None]).to(gradient.dtype)
        return None, None, None, gradient
