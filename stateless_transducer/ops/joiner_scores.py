"""Scores of the arcs and their gradients, through a joiner whose logits are never stored as a whole.

Letters: N utterances, T encoder frames, U tokens, V vocabulary, D joiner width, M listed cells, C cells of a chunk.

The logits of cell (t, u) are ``tanh(encoder_out[t] + decoder_out[u]) @ weight.T + bias``; the lattice needs two
numbers of them, the log-probabilities of the blank and of the next token. Both passes run over chunks of cells and
hold (C, V) logits at a time. The backward pass recomputes them for the cells that carry probability
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
    """Tensors and options from which the logits are computed."""

    encoder_out: Tensor
    """(N, T, D)."""
    decoder_out: Tensor
    """(N, U+1, D)."""
    next_tokens: Tensor
    """(N, U+1), int64: the next token of each row of `decoder_out`; any valid token after the last."""
    weight: Tensor
    """(V, D), in the precision of the matrix products."""
    bias: Tensor
    """(V,)."""
    blank: int
    has_kernels: bool = False
    """Whether to use Triton's kernels, which support float32 and half precision."""

    def chunks(self, num_cells: int, *, has_logits: bool = True) -> Iterator[slice]:
        """Split the cells into slices; a cell takes at most a row of logits and four rows of the joiner's width."""
        V, D = self.weight.shape
        return chunks(num_cells, 4 * D + (V if has_logits else 0), self.weight.device)

    def decoder_rows(self, n: Tensor, u: Tensor) -> Tensor:
        """Return the rows of cells in a flat (N * (U+1), ...) tensor."""
        return n * self.decoder_out.shape[1] + u

    def hidden(self, frame: Tensor, row: Tensor) -> Tensor:
        """Return ``tanh(encoder_out + decoder_out)``, (C, D), of cells given by frame, n * T + t, and decoder row."""
        encoder_out = self.encoder_out.flatten(0, 1).index_select(0, frame)
        hidden = encoder_out.to(wide_dtype(encoder_out.dtype))
        hidden += self.decoder_out.flatten(0, 1).index_select(0, row)
        return hidden.tanh_()

    def scores(self, hidden: Tensor, next_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities of blank and next token, and the logits' log-sum: (C,), in float32 at least."""
        hidden = hidden.to(self.weight.dtype)
        if self.has_kernels:
            from stateless_transducer.ops.joiner_triton import scores_of_hidden

            # kernels are launched on the current device, which may not be the tensors'; in backward, autograd sets it
            with torch.cuda.device_of(hidden):
                return scores_of_hidden(hidden, self.weight, self.bias, self.blank, next_tokens)
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return scores_of_logits(logits.to(wide_dtype(logits.dtype)), self.blank, next_tokens)

    def logit_gradients(
        self, hidden: Tensor, next_tokens: Tensor, normalizer: Tensor, blank_share: Tensor, symbol_share: Tensor
    ) -> Tensor:
        """Return the gradients of the logits, (C, V); see `logits_to_gradient_`.

        They are in float32 at least, or from a kernel in the dtype of the matrix products.
        """
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
    """Return the log-probability of the blank and of the next token, and the logits' log-sum, of each cell.

    Returns:
        (3, M), in float32 at least.
    """
    weight = inputs.weight
    scores = torch.empty(3, len(cells), dtype=wide_dtype(weight.dtype), device=weight.device)
    for chunk in inputs.chunks(len(cells), has_logits=not inputs.has_kernels):
        row = inputs.decoder_rows(cells.n[chunk], cells.u[chunk])
        hidden, token = inputs.hidden(cells.frame[chunk], row), inputs.next_tokens.flatten()[row]
        for all_scores, chunk_scores in zip(scores, inputs.scores(hidden, token), strict=True):
            all_scores[chunk] = chunk_scores
    return scores


def joiner_gradients(inputs: JoinerInputs, occupied: Occupied, grad_nll: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of ``(grad_nll * nll).sum()``, in float32 at least.

    They belong to encoder_out, decoder_out, weight and bias.
    """
    dtype, matmul_dtype = occupied.blank.dtype, inputs.weight.dtype
    encoder_grad, decoder_grad, weight_grad, bias_grad = (
        # not zeros_like: it keeps the input's strides, and flattening could then copy instead of view
        torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
        for tensor in (inputs.encoder_out, inputs.decoder_out, inputs.weight, inputs.bias)
    )
    for chunk in inputs.chunks(len(occupied.n)):
        n, frame, u, normalizer, blank, symbol = (column[chunk] for column in occupied)
        row, scale = inputs.decoder_rows(n, u), grad_nll[n, None].to(dtype)
        token, hidden = inputs.next_tokens.flatten()[row], inputs.hidden(frame, row)
        grad = inputs.logit_gradients(hidden, token, normalizer, blank, symbol)
        # apply the utterance's scale to the (C, D) matrices, which are smaller than the (C, V) ones
        bias_grad += scale[:, 0] @ grad.to(dtype)
        grad = grad.to(matmul_dtype)
        weight_grad += grad.T @ (hidden * scale).to(matmul_dtype)
        hidden_grad = (grad @ inputs.weight).to(dtype)
        hidden_grad *= scale * (1 - hidden * hidden)
        encoder_grad.flatten(0, 1).index_add_(0, frame, hidden_grad)
        decoder_grad.flatten(0, 1).index_add_(0, row, hidden_grad)
    return encoder_grad, decoder_grad, weight_grad, bias_grad


class JointOptions(NamedTuple):
    """Arguments of `nll_of_joiner` other than the differentiated tensors."""

    next_tokens: Tensor
    blank: int
    dtype: torch.dtype
    """Dtype of the matrix products."""
    skip_below: float
    has_backward: bool
    has_lattice_kernel: bool
    has_joiner_kernels: bool


def nll_of_joiner(
    cells: Cells, options: JointOptions, encoder_out: Tensor, decoder_out: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Return the nll of each utterance, (N,), float64, differentiable once in the last four arguments."""
    return _NllOfJoiner.apply(cells, options, encoder_out, decoder_out, weight, bias)


class _NllOfJoiner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells, options, encoder_out, decoder_out, weight, bias):
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
    def backward(ctx, grad_nll):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        saved = ctx.saved_tensors  # read once: gradient checkpointing recomputes them on each access
        leaves, occupied = saved[:4], Occupied(*saved[4:])
        with torch.autocast(grad_nll.device.type, enabled=False):
            gradients = joiner_gradients(_joiner_inputs(ctx.options, *leaves), occupied, grad_nll)
        return None, None, *(gradient.to(leaf.dtype) for gradient, leaf in zip(gradients, leaves, strict=True))


def _joiner_inputs(options: JointOptions, encoder_out, decoder_out, weight, bias) -> JoinerInputs:
    weight, bias = weight.to(options.dtype), bias.to(options.dtype)
    return JoinerInputs(
        encoder_out, decoder_out, options.next_tokens, weight, bias, options.blank, options.has_joiner_kernels
    )
