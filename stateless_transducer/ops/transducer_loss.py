"""The transducer loss: its public door.

Letters: N utterances, T encoder frames, U tokens, V vocabulary with blank, D joiner width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stateless_transducer.ops.lattice import Topology, lattice_nll

Implementation = Literal["auto", "reference"]


def joint_transducer_loss(
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    decoder_out: Tensor,
    tokens: Tensor,
    token_lens: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    blank: int = 0,
    max_symbols_per_frame: Literal[1] | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Joiner and transducer loss in one: ``-log P(tokens | encoder_out)`` of each utterance.

    The logits of cell (t, u) are ``tanh(encoder_out[t] + decoder_out[u]) @ weight.T + bias``. Log-sums are kept in
    float32 at least and the lattice in float64, whatever autocast says.

    Args:
        encoder_out: (N, T, D), padded with anything.
        encoder_out_lens: (N,), integer, 1..T.
        decoder_out: (N, U+1, D): row u has seen the first u tokens.
        tokens: (N, U), integer, without blanks, padded with any valid token.
        token_lens: (N,), integer, 0..U.
        weight: (V, D).
        bias: (V,).
        blank: id of the blank.
        max_symbols_per_frame: None is the standard transducer (Graves 2012, arXiv 1211.3711); 1 is the modified one
            by optimized_transducer's definition, where a symbol moves one frame on too and the last arc is a blank.
        impl: ``"reference"`` holds all (N, T, U+1, V) logits; ``"auto"`` chooses.

    Returns:
        (N,), float64, differentiable once in the first of ``encoder_out, decoder_out, weight, bias``; infinite, with
        zero gradient, for an utterance without a path (modified: fewer than U+1 frames).

    Raises:
        ValueError: a shape, length, token or option is outside its bounds.
    """
    _check_arguments(encoder_out, encoder_out_lens, decoder_out, tokens, token_lens, weight, bias, blank)
    if max_symbols_per_frame not in (None, 1):
        raise ValueError(f"`max_symbols_per_frame` must be None or 1, but is {max_symbols_per_frame}.")
    if impl not in ("auto", "reference"):
        raise ValueError(f'`impl` must be "auto" or "reference", but is "{impl}".')
    topology: Topology = "standard" if max_symbols_per_frame is None else "modified"
    hidden = torch.tanh(encoder_out[:, :, None] + decoder_out[:, None])  # (N, T, U+1, D)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    blank_scores, symbol_scores = _arc_scores(logits, tokens, blank)
    return lattice_nll(blank_scores, symbol_scores, encoder_out_lens, token_lens, topology)


def _arc_scores(logits: Tensor, tokens: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Log-probability of the blank, (N, T, U+1), and of the next token, (N, T, U), in float32 at least."""
    N, T, _, _ = logits.shape
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    normaliser = logits.logsumexp(-1)
    index = tokens.long()[:, None, :, None].expand(N, T, -1, 1)
    symbol = logits[:, :, :-1].gather(3, index).squeeze(3)
    return logits[..., blank] - normaliser, symbol - normaliser[:, :, :-1]


def _check_arguments(encoder_out, encoder_out_lens, decoder_out, tokens, token_lens, weight, bias, blank) -> None:
    if encoder_out.dim() != 3:
        raise ValueError(f"`encoder_out` must be (N, T, D), but has shape {tuple(encoder_out.shape)}.")
    if tokens.dim() != 2:
        raise ValueError(f"`tokens` must be (N, U), but has shape {tuple(tokens.shape)}.")
    (N, T, D), U, V = encoder_out.shape, tokens.shape[1], len(weight)
    wanted = {
        "decoder_out": (decoder_out, (N, U + 1, D)),
        "tokens": (tokens, (N, U)),
        "encoder_out_lens": (encoder_out_lens, (N,)),
        "token_lens": (token_lens, (N,)),
        "weight": (weight, (V, D)),
        "bias": (bias, (V,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"`{name}` must have shape {shape}, but has {tuple(tensor.shape)}.")
    if not 0 <= blank < V:
        raise ValueError(f"`blank` must be in 0..{V - 1}, but is {blank}.")
    _check_range("encoder_out_lens", encoder_out_lens, 1, T)
    _check_range("token_lens", token_lens, 0, U)
    used = torch.arange(U, device=tokens.device) < token_lens[:, None]
    _check_range("tokens", torch.where(used, tokens, 0 if blank else V - 1), 0, V - 1)
    if bool((used & (tokens == blank)).any()):
        raise ValueError(f"`tokens` must not contain the blank ({blank}).")


def _check_range(name: str, values: Tensor, low: int, high: int) -> None:
    if values.is_floating_point():
        raise ValueError(f"`{name}` must be integer, but is {values.dtype}.")
    outside = (values < low) | (values > high)
    if bool(outside.any()):
        raise ValueError(f"`{name}` must be in {low}..{high}, but holds {values[outside].flatten()[0].item()}.")
