"""Scores of the arcs and their gradients, through a joiner whose logits are never kept.

Letters: N utterances, T encoder frames, U tokens, V vocabulary, D joiner width, M listed cells, C cells of a chunk.

The logits of cell (t, u) are ``tanh(encoder_out[t] + decoder_out[u]) @ weight.T + bias``; the lattice wants two
numbers of them, the log-probabilities of the blank and of the next token. Both passes run over chunks of cells and
hold (C, V) logits at a time; the backward pass computes them again, for those cells only that carry probability
(docs/loss.md has the mathematics).
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


class JoinerInputs(NamedTuple):
    """What the logits are made of."""

    encoder_out: Tensor
    """(N, T, D)."""
    decoder_out: Tensor
    """(N, U+1, D)."""
    next_tokens: Tensor
    """(N, U+1), int64: the token that each row of `decoder_out` waits for; anything valid behind the last."""
    weight: Tensor
    """(V, D), in the precision of the matrix products."""
    bias: Tensor
    """(V,)."""
    blank: int

    def hidden(self, frame: Tensor, row: Tensor) -> Tensor:
        """(C, D) of the cells on these frames, n * T + t, and rows of the decoder, n * (U+1) + u."""
        encoder_out = self.encoder_out.flatten(0, 1).index_select(0, frame)
        hidden = encoder_out.to(wide_dtype(encoder_out.dtype))
        hidden += self.decoder_out.flatten(0, 1).index_select(0, row)
        return hidden.tanh_()

    def logits(self, hidden: Tensor) -> Tensor:
        """(C, D) -> (C, V), in float32 at least."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits.to(wide_dtype(logits.dtype))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over numbers of the given one: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def arc_scores(inputs: JoinerInputs, cells: Cells) -> tuple[Tensor, Tensor]:
    """Log-probability of the blank, (M,), and of the next token, (M,), in each cell; in float32 at least."""
    weight = inputs.weight
    blank_scores = torch.empty(len(cells), dtype=wide_dtype(weight.dtype), device=weight.device)
    symbol_scores = torch.empty_like(blank_scores)
    rows = _decoder_rows(inputs, cells)
    for chunk in _chunks(len(cells), weight):
        logits = inputs.logits(inputs.hidden(cells.frame[chunk], rows[chunk]))
        token = inputs.next_tokens.flatten()[rows[chunk]]
        blank_scores[chunk], symbol_scores[chunk] = logits[:, inputs.blank], logits.gather(1, token[:, None])[:, 0]
        largest = logits.amax(1, keepdim=True)
        logits.sub_(largest).clamp_(min=SMALLEST_EXPONENT).exp_()
        normaliser = logits.sum(1).log_().add_(largest[:, 0])
        blank_scores[chunk] -= normaliser
        symbol_scores[chunk] -= normaliser
    return blank_scores, symbol_scores


class Occupied(NamedTuple):
    """The cells that the backward pass visits, K of the M listed ones, and what runs through them."""

    n: Tensor
    """(K,), int64: utterance."""
    frame: Tensor
    """(K,), int64: row of encoder_out, n * T + t."""
    row: Tensor
    """(K,), int64: row of decoder_out, n * (U+1) + u."""
    blank_score: Tensor
    """(K,), log-probability of the blank: it gives the normaliser back."""
    blank: Tensor
    """(K,), occupation of the blank arc."""
    symbol: Tensor
    """(K,), occupation of the symbol arc."""


def occupied_cells(
    inputs: JoinerInputs, cells: Cells, blank_scores: Tensor, sums: PathSums, skip_below: float
) -> Occupied:
    """The cells that more than `skip_below` of the probability of all paths runs through.

    Cells from which no path leads to the end carry nothing, nor do those of an utterance without a finite nll.
    """
    kept = (sums.blank + sums.symbol > skip_below).nonzero()[:, 0]
    rows, dtype = _decoder_rows(inputs, cells), blank_scores.dtype
    return Occupied(
        n=cells.n[kept],
        frame=cells.frame[kept],
        row=rows[kept],
        blank_score=blank_scores[kept],
        blank=sums.blank[kept].to(dtype),
        symbol=sums.symbol[kept].to(dtype),
    )


def joiner_gradients(inputs: JoinerInputs, occupied: Occupied, grad_nll: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``(grad_nll * nll).sum()`` in encoder_out, decoder_out, weight and bias; in float32 at least.

    With gamma the occupation of a cell, its logits have the gradient ``gamma * softmax(logits)``, less the occupation
    of the blank at the blank, and less that of the symbol at the next token.
    """
    dtype = occupied.blank.dtype
    encoder_grad, decoder_grad, weight_grad, bias_grad = (
        # not zeros_like: it would keep foreign strides, and a flattened view below would become a copy
        torch.zeros(each.shape, dtype=dtype, device=each.device)
        for each in (inputs.encoder_out, inputs.decoder_out, inputs.weight, inputs.bias)
    )
    log_gamma = (occupied.blank + occupied.symbol).log_()
    scale = grad_nll.to(dtype)
    for chunk in _chunks(len(occupied.n), inputs.weight):
        frame, row = occupied.frame[chunk], occupied.row[chunk]
        hidden = inputs.hidden(frame, row)
        grad = inputs.logits(hidden)
        # gamma * exp(logit - normaliser), where blank_score = logit of the blank - normaliser
        grad += (log_gamma[chunk] + occupied.blank_score[chunk] - grad[:, inputs.blank])[:, None]
        grad.clamp_(min=SMALLEST_EXPONENT).exp_()
        token = inputs.next_tokens.flatten()[row]
        grad[:, inputs.blank] -= occupied.blank[chunk]
        grad.scatter_add_(1, token[:, None], -occupied.symbol[chunk][:, None])
        # the scale of the utterance enters where the matrices are narrow
        row_scale = scale[occupied.n[chunk], None]
        grad_ = grad.to(inputs.weight.dtype)
        hidden_grad = (grad_ @ inputs.weight).to(dtype)
        weight_grad += grad_.T @ (hidden * row_scale).to(grad_.dtype)
        bias_grad += row_scale[:, 0] @ grad
        hidden_grad *= row_scale * (1 - hidden * hidden)
        encoder_grad.flatten(0, 1).index_add_(0, frame, hidden_grad)
        decoder_grad.flatten(0, 1).index_add_(0, row, hidden_grad)
    return encoder_grad, decoder_grad, weight_grad, bias_grad


def _decoder_rows(inputs: JoinerInputs, cells: Cells) -> Tensor:
    return cells.n * inputs.decoder_out.shape[1] + cells.u


def _chunks(num_cells: int, weight: Tensor) -> Iterator[slice]:
    """Slices of so many cells that their logits fit the caches of a CPU, or fill a GPU."""
    budget = 2**28 if weight.is_cuda else 2**23
    size = min(max(budget // (4 * len(weight)), 256), 2**16)
    return (slice(start, start + size) for start in range(0, num_cells, size))


class JointOptions(NamedTuple):
    """What `NllOfJoiner` needs beside the tensors that it differentiates."""

    next_tokens: Tensor
    blank: int
    dtype: torch.dtype
    """Of the matrix products."""
    skip_below: float
    has_backward: bool


class NllOfJoiner(torch.autograd.Function):
    """Cells, options, encoder_out, decoder_out, weight and bias to nll (N,), float64."""

    @staticmethod
    def forward(ctx, cells, options, encoder_out, decoder_out, weight, bias):  # noqa: D102
        inputs = _joiner_inputs(options, encoder_out, decoder_out, weight, bias)
        blank_scores, symbol_scores = arc_scores(inputs, cells)
        sums = sum_over_paths(cells, blank_scores, symbol_scores, has_occupations=options.has_backward)
        if options.has_backward:
            occupied = occupied_cells(inputs, cells, blank_scores, sums, options.skip_below)
            ctx.save_for_backward(encoder_out, decoder_out, weight, bias, *occupied)
            ctx.options = options
        return sums.nll

    @staticmethod
    def backward(ctx, grad_nll):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        leaves, occupied = ctx.saved_tensors[:4], Occupied(*ctx.saved_tensors[4:])
        with torch.autocast(grad_nll.device.type, enabled=False):
            gradients = joiner_gradients(_joiner_inputs(ctx.options, *leaves), occupied, grad_nll)
        return None, None, *(gradient.to(leaf.dtype) for gradient, leaf in zip(gradients, leaves, strict=True))


def _joiner_inputs(options: JointOptions, encoder_out, decoder_out, weight, bias) -> JoinerInputs:
    weight, bias = weight.to(options.dtype), bias.to(options.dtype)
    return JoinerInputs(encoder_out, decoder_out, options.next_tokens, weight, bias, options.blank)
