# pyright: strict
"""Joiner and transducer loss in one function.

Letters: N utterances, T encoder frames, U tokens, V vocabulary with blank, D joiner width.
"""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

from stateless_transducer.ops.arguments import (
    InfIs,
    check_axes,
    check_choice,
    check_delay_penalty,
    check_floating,
    check_integers,
    check_paths,
    check_shapes,
    check_tokens,
    checked_blank,
    checked_integer,
    choose_topology,
    finish_nll,
    never_compiled,
)
from stateless_transducer.ops.cells import list_cells
from stateless_transducer.ops.joiner_scores import JointOptions, nll_of_joiner
from stateless_transducer.ops.kernels import can_use_kernels, has_triton
from stateless_transducer.ops.lattice import lattice_nll

Implementation = Literal["auto", "reference", "chunked", "triton"]


@never_compiled
def joint_transducer_loss(
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    decoder_out: Tensor,
    tokens: Tensor,
    token_lens: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    blank: int = 0,
    max_symbols_per_frame: Literal[1] | None = None,
    last_arc_is_blank: bool = True,
    band: tuple[Tensor, int] | None = None,
    delay_penalty: float = 0.0,
    impl: Implementation = "auto",
    skip_below: float = 1e-6,
    inf_is: InfIs = "raise",
) -> Tensor:
    """Joiner and transducer loss in one: ``-log P(tokens | encoder_out)`` of each utterance.

    The logits of cell (t, u) are ``tanh(encoder_out[t] + decoder_out[u]) @ weight.T + bias``; they are never held all
    at once. Log-sums are in float32 at least and the lattice is in float64, with and without autocast. Under autocast,
    the matrix products use its dtype, or float32 on a CPU that would have to emulate it.

    Args:
        encoder_out: (N, T, D), padded with anything.
        encoder_out_lens: (N,), integer, 1..T.
        decoder_out: (N, U+1, D); row u is computed from the first u tokens.
        tokens: (N, U), integer, without blanks, padded with anything.
        token_lens: (N,), integer, 0..U.
        weight: (V, D).
        bias: (V,), or None for a joiner without bias.
        blank: id of the blank; negative counts from V.
        max_symbols_per_frame: None is the standard transducer (Graves 2012, arXiv 1211.3711); 1 is the modified one,
            where a symbol advances to the next frame too.
        last_arc_is_blank: for the modified transducer only. True is optimized_transducer's definition, where the last
            frame emits a blank (T-1 >= U); False is k2's, where it may emit the last token (T >= U).
        band: starts (N, T), integer, and a width, as returned by `prune_ranges`: only paths through the cells
            ``start <= u < start + width`` count, and only these cells are computed.
        delay_penalty: added to the log-probability of each symbol, times ``(length - 1) / 2 - t``: paths with early
            symbols count for more (k2's delay penalty, arXiv 2211.00490). The result is then no probability.
        impl: ``"reference"`` holds all (N, T, U+1, V) logits. ``"chunked"`` holds some MiB of them at a time, on any
            device. ``"triton"`` uses kernels for a GPU. ``"auto"`` is ``"chunked"`` on a CPU; on a GPU with Triton it
            uses the kernel for the lattice, and in half precision the kernels for the joiner.
        skip_below: the backward pass skips cells that carry a smaller share of the probability of all paths
            (docs/loss.md bounds the error); 0 skips none. The reference ignores it.
        inf_is: the result for an utterance without a path: ``"raise"`` raises a ValueError that names it; ``"inf"``
            and ``"zero"`` return that number, with gradient zero.

    Lengths and tokens may be on the CPU while the rest is on a GPU; the checks then do not wait for the GPU. With
    gradients, one wait remains: for the number of cells that the backward pass visits.

    Returns:
        (N,), float64, differentiable once in encoder_out, decoder_out, weight and bias. NaN among the logits of an
        utterance makes its nll NaN, with gradient zero, and does not affect other utterances.

    Raises:
        ValueError: a type, shape, dtype, device, length, token or option is outside its bounds.

    Example:
        >>> encoder_out = torch.randn(2, 50, 64, requires_grad=True)  # (N, T, D)
        >>> decoder_out = torch.randn(2, 11, 64, requires_grad=True)  # (N, U+1, D)
        >>> tokens = torch.randint(1, 500, (2, 10))
        >>> lens, token_lens = torch.tensor([50, 41]), torch.tensor([10, 7])
        >>> output = torch.nn.Linear(64, 500)
        >>> nll = joint_transducer_loss(encoder_out, lens, decoder_out, tokens, token_lens, output.weight, output.bias)
        >>> nll.sum().backward()
    """
    topology = choose_topology(max_symbols_per_frame, last_arc_is_blank)
    check_choice("impl", impl, ("auto", "reference", "chunked", "triton"))
    check_axes("weight", weight, "V", "D")
    blank = checked_blank(blank, len(weight))
    if bias is None:
        # adding zeros, and their gradient, is cheap compared with the matrix products
        bias = weight.new_zeros(len(weight))
    tokens = _checked_tokens(encoder_out, encoder_out_lens, decoder_out, tokens, token_lens, weight, bias, blank)
    check_paths(encoder_out_lens, token_lens, topology, inf_is)
    if band is not None:
        starts, width = band
        check_shapes({"band[0]": (starts, tuple(encoder_out.shape[:2]))})
        check_integers("band[0]", starts, 0, tokens.shape[1])
        band = starts.long(), checked_integer("band[1]", width, 1)
    check_delay_penalty(delay_penalty)
    if not 0 <= skip_below < 1:
        raise ValueError(f"`skip_below` must be in 0..1, but is {skip_below}.")

    device = encoder_out.device
    tokens = tokens.to(device, non_blocking=True)
    if impl == "reference":
        hidden = torch.tanh(encoder_out[:, :, None] + decoder_out[:, None])  # (N, T, U+1, D)
        logits = torch.nn.functional.linear(hidden, weight, bias)
        blank_scores, symbol_scores = _arc_scores(logits, tokens, blank)
        nll = lattice_nll(
            blank_scores, symbol_scores, encoder_out_lens, token_lens, topology, band, delay_penalty=delay_penalty
        )
    else:
        T = encoder_out.shape[1]
        cells = list_cells(encoder_out_lens, token_lens, T, topology, device, band, delay_penalty=delay_penalty)
        leaves = (encoder_out, decoder_out, weight, bias)
        dtype = _matmul_dtype(encoder_out, weight)
        has_lattice_kernel, has_joiner_kernels = _choose_kernels(impl, device, dtype)
        options = JointOptions(
            next_tokens=torch.nn.functional.pad(tokens, (0, 1), value=blank),
            blank=blank,
            dtype=dtype,
            skip_below=skip_below,
            has_backward=torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves),
            has_lattice_kernel=has_lattice_kernel,
            has_joiner_kernels=has_joiner_kernels,
        )
        with torch.autocast(device.type, enabled=False):
            nll = nll_of_joiner(cells, options, *leaves)
    return finish_nll(nll, inf_is)


def _checked_tokens(
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    decoder_out: Tensor,
    tokens: Tensor,
    token_lens: Tensor,
    weight: Tensor,
    bias: Tensor,
    blank: int,
) -> Tensor:
    """Check the arguments against each other, and return the tokens (N, U), int64, padded with blanks."""
    check_axes("encoder_out", encoder_out, "N", "T", "D")
    check_axes("tokens", tokens, "N", "U", may_be_empty=True)
    (N, T, D), U, V = encoder_out.shape, tokens.shape[1], len(weight)
    check_shapes(
        {
            "decoder_out": (decoder_out, (N, U + 1, D)),
            "tokens": (tokens, (N, U)),
            "encoder_out_lens": (encoder_out_lens, (N,)),
            "token_lens": (token_lens, (N,)),
            "weight": (weight, (V, D)),
            "bias": (bias, (V,)),
        }
    )
    check_floating({"encoder_out": encoder_out, "decoder_out": decoder_out, "weight": weight, "bias": bias})
    check_integers("encoder_out_lens", encoder_out_lens, 1, T)
    return check_tokens("tokens", tokens, "token_lens", token_lens, V, blank)


def _matmul_dtype(encoder_out: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the matrix products: autocast's if enabled, but float32 if the CPU would emulate it."""
    device = encoder_out.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    else:
        dtype = torch.promote_types(encoder_out.dtype, weight.dtype)
    return torch.float32 if device == "cpu" and _is_emulated(dtype) else dtype


def _is_emulated(dtype: torch.dtype) -> bool:
    """Return True if this CPU has no instructions for products of the dtype, or if that is unknown."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        # private, but torch has no public query that covers all processors
        if dtype == torch.bfloat16:
            return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    except (AttributeError, NotImplementedError, RuntimeError):
        # this build or version of torch lacks the query; float32 is right everywhere
        return True


def _choose_kernels(impl: Implementation, device: torch.device, dtype: torch.dtype) -> tuple[bool, bool]:
    """Return whether to use Triton's kernel for the lattice, and whether to use its kernels for the joiner."""
    if impl == "triton":
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f'`impl="triton"` needs a GPU, but the tensors are on {device}. Use "chunked".')
        if not has_triton():
            raise ValueError(
                '`impl="triton"` needs Triton 3.4 or later, which comes with torch 2.8. Run pip install triton.'
            )
        return True, dtype != torch.float64
    if impl == "auto" and can_use_kernels(device):
        # in float32, cuBLAS is faster than the joiner kernels
        return True, dtype in (torch.float16, torch.bfloat16)
    return False, False


def _arc_scores(logits: Tensor, tokens: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the blank, (N, T, U+1), and the next token, (N, T, U), in float32 at least."""
    N, T, _, _ = logits.shape
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    normalizer = logits.logsumexp(-1)
    index = tokens[:, None, :, None].expand(N, T, -1, 1)
    symbol = logits[:, :, :-1].gather(3, index).squeeze(3)
    return logits[..., blank] - normalizer, symbol - normalizer[:, :, :-1]
