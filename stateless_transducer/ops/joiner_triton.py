"""GPU kernels for the scores of cells and for the gradients of their logits, each in one pass.

Letters: V vocabulary, D joiner width, C cells of a chunk.

`scores_of_hidden` keeps a running log-sum over blocks of the vocabulary while it multiplies, so that the logits never
leave the chip; the same idea as in Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _scores_kernel(
    hidden,
    weight,
    bias,
    next_tokens,
    blank_scores,
    symbol_scores,
    normalizers,
    C,
    V,
    D,
    blank,
    BLOCK_C: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    cell = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_cell = cell < C
    token = tl.load(next_tokens + cell, mask=is_cell, other=0)[:, None]
    k_block = tl.arange(0, BLOCK_D)
    largest = tl.full((BLOCK_C,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    blank_logit = tl.zeros((BLOCK_C,), tl.float32)
    symbol_logit = tl.zeros((BLOCK_C,), tl.float32)
    for v_start in range(0, V, BLOCK_V):
        v = (v_start + tl.arange(0, BLOCK_V)).to(tl.int64)
        logits = tl.zeros((BLOCK_C, BLOCK_V), tl.float32)
        for k_start in range(0, D, BLOCK_D):
            k = k_start + k_block
            left = tl.load(hidden + cell[:, None] * D + k[None, :], mask=is_cell[:, None] & (k < D)[None, :], other=0.0)
            right = tl.load(weight + v[None, :] * D + k[:, None], mask=(v < V)[None, :] & (k < D)[:, None], other=0.0)
            logits = tl.dot(left, right, logits, input_precision=PRECISION)
        logits += tl.load(bias + v, mask=v < V, other=0.0).to(tl.float32)[None, :]
        # rounded as in the backward pass, which stores them: otherwise its softmax would not sum to one
        logits = logits.to(hidden.dtype.element_ty).to(tl.float32)
        logits = tl.where((v < V)[None, :], logits, float("-inf"))
        blank_logit += tl.sum(tl.where(v[None, :] == blank, logits, 0.0), 1)
        symbol_logit += tl.sum(tl.where(v[None, :] == token, logits, 0.0), 1)
        before = largest
        largest = tl.maximum(before, tl.max(logits, 1))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(logits - largest[:, None]), 1)
    normalizer = largest + tl.log(total)
    tl.store(blank_scores + cell, blank_logit - normalizer, mask=is_cell)
    tl.store(symbol_scores + cell, symbol_logit - normalizer, mask=is_cell)
    tl.store(normalizers + cell, normalizer, mask=is_cell)


def scores_of_hidden(
    hidden: Tensor, weight: Tensor, bias: Tensor, blank: int, next_tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the blank and of the next token, and the logits' log-sum, (C,) each, float32.

    Args:
        hidden: (C, D), float32, bfloat16 or float16.
        weight: (V, D), of the same dtype.
        bias: (V,).
        blank: id of the blank.
        next_tokens: (C,), int64.
    """
    hidden, weight, next_tokens = hidden.contiguous(), weight.contiguous(), next_tokens.contiguous()
    (C, D), V = hidden.shape, len(weight)
    blank_scores, symbol_scores, normalizers = torch.empty(3, C, dtype=torch.float32, device=hidden.device)
    is_half = hidden.dtype != torch.float32
    block_c = 128 if is_half else 64
    _scores_kernel[(triton.cdiv(C, block_c),)](
        hidden,
        weight,
        bias.contiguous(),
        next_tokens,
        blank_scores,
        symbol_scores,
        normalizers,
        C,
        V,
        D,
        blank,
        BLOCK_C=block_c,
        BLOCK_V=128 if is_half else 64,
        BLOCK_D=64 if is_half else 32,
        PRECISION="ieee" if is_half else _float32_precision(),
        num_warps=8 if is_half else 4,  # pyright: ignore[reportCallIssue]
        num_stages=3,  # pyright: ignore[reportCallIssue]
    )
    return blank_scores, symbol_scores, normalizers


def _float32_precision() -> str:
    """Return the precision that torch's settings allow for products of float32 matrices."""
    # torch raises if the old setting is read after the new one was set
    setting = torch.backends.cuda.matmul
    if hasattr(setting, "fp32_precision"):
        return "tf32" if setting.fp32_precision == "tf32" else "ieee"
    return "tf32" if setting.allow_tf32 else "ieee"


@triton.jit
def _gradient_kernel(
    logits, next_tokens, shift, blank_share, symbol_share, V, blank, SMALLEST: tl.constexpr, BLOCK_V: tl.constexpr
):
    cell = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    place = logits + cell * V + v
    share = tl.load(place, mask=v < V, other=0.0).to(tl.float32) + tl.load(shift + cell)
    grad = tl.exp(tl.maximum(share, SMALLEST))
    grad -= tl.where(v == blank, tl.load(blank_share + cell), 0.0)
    grad -= tl.where(v == tl.load(next_tokens + cell), tl.load(symbol_share + cell), 0.0)
    tl.store(place, grad.to(logits.dtype.element_ty), mask=v < V)


def logits_to_gradient_triton_(
    logits: Tensor,
    blank: int,
    next_tokens: Tensor,
    shift: Tensor,
    blank_share: Tensor,
    symbol_share: Tensor,
    smallest_exponent: float,
) -> Tensor:
    """Overwrite logits (C, V) with ``exp(logits + shift)``, less the shares at the blank and at the next token.

    Args:
        logits: (C, V), contiguous.
        blank: id of the blank.
        next_tokens: (C,), int64, contiguous.
        shift: (C,), float32.
        blank_share: (C,), float32.
        symbol_share: (C,), float32.
        smallest_exponent: lower bound of the exponents.
    """
    C, V = logits.shape
    block = min(triton.next_power_of_2(V), 4096)
    _gradient_kernel[(C, triton.cdiv(V, block))](
        logits,
        next_tokens.contiguous(),
        shift.contiguous(),
        blank_share.contiguous(),
        symbol_share.contiguous(),
        V,
        blank,
        SMALLEST=smallest_exponent,
        BLOCK_V=block,
        num_warps=4,  # pyright: ignore[reportCallIssue]
    )
    return logits
