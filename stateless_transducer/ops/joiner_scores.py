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
    SMALLEST_EXPONENT,
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
    has_kernels: bool = False
    """Whether Triton's kernels take the logits in; they want float32 or half precision."""

    def chunks(self, num_cells: int, *, has_logits: bool = True) -> Iterator[slice]:
        """Slices of the cells; each cell has a row of logits, if any, and four of the joiner's width at the most."""
        V, D = self.weight.shape
        return chunks(num_cells, 4 * D + (V if has_logits else 0), self.weight.device)

    def decoder_rows(self, n: Tensor, u: Tensor) -> Tensor:
        """Rows of these cells in a flat (N * (U+1), ...) tensor."""
        return n * self.decoder_out.shape[1] + u

    def hidden(self, frame: Tensor, row: Tensor) -> Tensor:
        """(C, D) of the cells on these frames, n * T + t, and rows of the decoder."""
        encoder_out = self.encoder_out.flatten(0, 1).index_select(0, frame)
        hidden = encoder_out.to(wide_dtype(encoder_out.dtype))
        hidden += self.decoder_out.flatten(0, 1).index_select(0, row)
        return hidden.tanh_()

    def scores(self, hidden: Tensor, next_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the blank and the next token, log-sum of the logits: (C,), in float32 at least."""
        hidden = hidden.to(self.weight.dtype)
        if self.has_kernels:
            from stateless_transducer.ops.joiner_triton import scores_of_hidden

            # kernels are launched on the current device, which need not be the tensors'; autograd sees to it backwards
            with torch.cuda.device_of(hidden):
                return scores_of_hidden(hidden, self.weight, self.bias, self.blank, next_tokens)
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return scores_of_logits(logits.to(wide_dtype(logits.dtype)), self.blank, next_tokens)

    def logit_gradients(
        self, hidden: Tensor, next_tokens: Tensor, normalizer: Tensor, blank_share: Tensor, symbol_share: Tensor
    ) -> Tensor:
        """(C, V); see `logits_to_gradient_`. In float32 at least, or the matrix products' dtype from a kernel."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.has_kernels:
            from stateless_transducer.ops.joiner_triton import logits_to_gradient_triton_

            shift = (blank_share + symbol_share).log_().sub_(normalizer)
            return logits_to_gradient_triton_(
                logits, self.blank, next_tokens, shift, blank_share, symbol_share, SMALLEST_EXPONENT
            )
        logits = logits.to(wide_dtype(logits.dtype))
        return logits_to_gradient_(logits, self.blank, next_tokens, normalizer, blank_share, symbol_share)


def arc_scores(inputs: JoinerInputs, cells: Cells) -> Tensor:
    """Log-probability of the blank and of the next token, and the logits' log-sum, in each cell.

    Returns:
        (3, M), in float32 at least.
    """
    weight = inputs.weight
    scores = torch.empty(3, len(cells), dtype=wide_dtype(weight.dtype), device=weight.device)
    for chunk in inputs.chunks(len(cells), has_logits=not inputs.has_kernels):
        row = inputs.decoder_rows(cells.n[chunk], cells.u[chunk])
        hidden, token = inputs.hidden(cells.frame[chunk], row), inputs.next_tokens.flatten()[row]
        for score, found in zip(scores, inputs.scores(hidden, token), strict=True):
            score[chunk] = found
    return scores


def joiner_gradients(inputs: JoinerInputs, occupied: Occupied, grad_nll: Tensor) -> tuple[Tensor, ...]:
    """Gradients of ``(grad_nll * nll).sum()`` in encoder_out, decoder_out, weight and bias; in float32 at least."""
    dtype, matmul_dtype = occupied.blank.dtype, inputs.weight.dtype
    encoder_grad, decoder_grad, weight_grad, bias_grad = (
        # not zeros_like: it would keep foreign strides, and a flattened view below would become a copy
        torch.zeros(each.shape, dtype=dtype, device=each.device)
        for each in (inputs.encoder_out, inputs.decoder_out, inputs.weight, inputs.bias)
    )
    for chunk in inputs.chunks(len(occupied.n)):
        n, frame, u, normalizer, blank, symbol = (each[chunk] for each in occupied)
        row, scale = inputs.decoder_rows(n, u), grad_nll[n, None].to(dtype)
        token, hidden = inputs.next_tokens.flatten()[row], inputs.hidden(frame, row)
        grad = inputs.logit_gradients(hidden, token, normalizer, blank, symbol)
        # the scale of the utterance enters where the matrices are narrow
        bias_grad += scale[:, 0] @ grad.to(dtype)
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
    has_lattice_kernel: bool
    has_joiner_kernels: bool


class NllOfJoiner(torch.autograd.Function):
    """Cells, options, encoder_out, decoder_out, weight and bias to nll (N,), float64."""

    @staticmethod
    def forward(ctx, cells, options, encoder_out, decoder_out, weight, bias):  # noqa: D102
        inputs = _joiner_inputs(options, encoder_out, decoder_out, weight, bias)
        blank_scores, symbol_scores, normalizers = arc_scores(inputs, cells)
        sums = sum_over_paths(
            cells,
            blank_scores,
            symbol_scores,
            has_occupations=options.has_backward,
            has_kernel=options.has_lattice_kernel,
        )
        if options.has_backward:
            occupied = occupied_cells(cells, normalizers, sums, options.skip_below)
            ctx.save_for_backward(encoder_out, decoder_out, weight, bias, *occupied)
            ctx.options = options
        return sums.nll

    @staticmethod
    def backward(ctx, grad_nll):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        saved = ctx.saved_tensors  # once: checkpointing computes them again
        leaves, occupied = saved[:4], Occupied(*saved[4:])
        with torch.autocast(grad_nll.device.type, enabled=False):
            gradients = joiner_gradients(_joiner_inputs(ctx.options, *leaves), occupied, grad_nll)
        return None, None, *(gradient.to(leaf.dtype) for gradient, leaf in zip(gradients, leaves, strict=True))


def _joiner_inputs(options: JointOptions, encoder_out, decoder_out, weight, bias) -> JoinerInputs:
    weight, bias = weight.to(options.dtype), bias.to(options.dtype)
    return JoinerInputs(
        encoder_out, decoder_out, options.next_tokens, weight, bias, options.blank, options.has_joiner_kernels
    )
