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
from stateless_transducer.ops.lattice import refuse_second_derivative, sum_over_paths
from stateless_transducer.ops.logit_scores import (
    Occupied,
    chunks,
    logits_to_gradient_,
    occupied_cells,
    scores_of_logits,
    wide_dtype,
)


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

    def chunks(self, num_cells: int) -> Iterator[slice]:
        """Slices of the cells; each cell has a row of logits and four of the joiner's width at the most."""
        V, D = self.weight.shape
        return chunks(num_cells, V + 4 * D, self.weight.device)

    def decoder_rows(self, n: Tensor, u: Tensor) -> Tensor:
        """Rows of these cells in a flat (N * (U+1), ...) tensor."""
        return n * self.decoder_out.shape[1] + u

    def hidden(self, frame: Tensor, row: Tensor) -> Tensor:
        """(C, D) of the cells on these frames, n * T + t, and rows of the decoder."""
        encoder_out = self.encoder_out.flatten(0, 1).index_select(0, frame)
        hidden = encoder_out.to(wide_dtype(encoder_out.dtype))
        hidden += self.decoder_out.flatten(0, 1).index_select(0, row)
        return hidden.tanh_()

    def logits(self, hidden: Tensor) -> Tensor:
        """(C, D) -> (C, V), in float32 at least."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits.to(wide_dtype(logits.dtype))


def arc_scores(inputs: JoinerInputs, cells: Cells) -> tuple[Tensor, Tensor]:
    """Log-probability of the blank, (M,), and of the next token, (M,), in each cell; in float32 at least."""
    weight = inputs.weight
    blank_scores = torch.empty(len(cells), dtype=wide_dtype(weight.dtype), device=weight.device)
    symbol_scores = torch.empty_like(blank_scores)
    for chunk in inputs.chunks(len(cells)):
        row = inputs.decoder_rows(cells.n[chunk], cells.u[chunk])
        logits = inputs.logits(inputs.hidden(cells.frame[chunk], row))
        token = inputs.next_tokens.flatten()[row]
        blank_scores[chunk], symbol_scores[chunk] = scores_of_logits(logits, inputs.blank, token)
    return blank_scores, symbol_scores


def joiner_gradients(inputs: JoinerInputs, occupied: Occupied, grad_nll: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``(grad_nll * nll).sum()`` in encoder_out, decoder_out, weight and bias; in float32 at least."""
    dtype, matmul_dtype = occupied.blank.dtype, inputs.weight.dtype
    encoder_grad, decoder_grad, weight_grad, bias_grad = (
        # not zeros_like: it would keep foreign strides, and a flattened view below would become a copy
        torch.zeros(each.shape, dtype=dtype, device=each.device)
        for each in (inputs.encoder_out, inputs.decoder_out, inputs.weight, inputs.bias)
    )
    for chunk in inputs.chunks(len(occupied.n)):
        n, frame, u, blank_score, blank, symbol = (each[chunk] for each in occupied)
        row, scale = inputs.decoder_rows(n, u), grad_nll[n, None].to(dtype)
        token, hidden = inputs.next_tokens.flatten()[row], inputs.hidden(frame, row)
        grad = logits_to_gradient_(inputs.logits(hidden), inputs.blank, token, blank_score, blank, symbol)
        # the scale of the utterance enters where the matrices are narrow
        bias_grad += scale[:, 0] @ grad
        grad = grad.to(matmul_dtype)
        weight_grad += grad.T @ (hidden * scale).to(matmul_dtype)
        hidden_grad = (grad @ inputs.weight).to(dtype)
        hidden_grad *= scale * (1 - hidden * hidden)
        encoder_grad.flatten(0, 1).index_add_(0, frame, hidden_grad)
        decoder_grad.flatten(0, 1).index_add_(0, row, hidden_grad)
    return encoder_grad, decoder_grad, weight_grad, bias_grad


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
            occupied = occupied_cells(cells, blank_scores, sums, options.skip_below)
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
