# pyright: strict
"""Pruned transducer loss (Kuang et al. 2022, arXiv 2206.13236): a cheap loss selects the cells of the exact one.

Letters: N utterances, T encoder frames, U tokens (a lattice has U+1 rows, by tokens said so far), V vocabulary with
blank, D width, S rows of the band per frame.

One training step::

    simple = simple_transducer_loss(encoder_logits, encoder_out_lens, decoder_logits, tokens, token_lens)
    occupations = simple.blank_occupation, simple.symbol_occupation
    starts, width = prune_ranges(*occupations, encoder_out_lens, token_lens, width=5)
    logits = joiner(*prune_joiner_inputs(encoder_out, decoder_out, starts, width=width))  # (N, T, width, V)
    nll = pruned_transducer_loss(logits, starts, encoder_out_lens, tokens, token_lens)
    loss = (0.5 * simple.nll + nll).sum()

k2 and fast_rnnt call our standard topology "regular", and ``max_symbols_per_frame=1, last_arc_is_blank=False``
"modified".
"""

from __future__ import annotations

from typing import Literal, NamedTuple

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
from stateless_transducer.ops.lattice import differentiable_sums
from stateless_transducer.ops.linear_scores import linear_scores
from stateless_transducer.ops.logit_scores import LogitRows, nll_of_logits


class SimpleLoss(NamedTuple):
    """Loss and occupations of a joiner that only adds."""

    nll: Tensor
    """(N,), float64, differentiable once."""
    blank_occupation: Tensor
    """(N, T, U+1), float64, 0..1, without gradient: share of all paths' probability that the cell's blank carries."""
    symbol_occupation: Tensor
    """(N, T, U), the same for the next token. Both are 0 outside the lattice and where the nll is not finite."""


class PruneRanges(NamedTuple):
    """The band of cells that `pruned_transducer_loss` uses."""

    starts: Tensor
    """(N, T), int64: first row of the band on each frame; ``starts + width`` is at most U+1, on padding frames too."""
    width: int
    """Number of rows of the band on each frame."""


@never_compiled
def simple_transducer_loss(
    encoder_logits: Tensor,
    encoder_out_lens: Tensor,
    decoder_logits: Tensor,
    tokens: Tensor,
    token_lens: Tensor,
    *,
    blank: int = 0,
    max_symbols_per_frame: Literal[1] | None = None,
    last_arc_is_blank: bool = True,
    lm_only_scale: float = 0.0,
    am_only_scale: float = 0.0,
    delay_penalty: float = 0.0,
    inf_is: InfIs = "raise",
) -> SimpleLoss:
    """Transducer loss of the joiner that only adds, ``encoder_logits[t] + decoder_logits[u]``, and its occupations.

    The normalizers of all cells come from one matrix product of exponentials per utterance; no (T, U+1, V) tensor is
    ever held. They are in float64, with and without autocast, and exact where ``(encoder + decoder).max()`` of a cell
    is at most 600 below the sum of both maxima; further below, the loss is finite but too large.

    Smoothing replaces each arc's log-probability by ``(1 - lm - am) * joint + lm * lm_only + am * am_only``: lm_only is
    the log-softmax of the decoder alone, am_only that of the encoder plus the log of the batch's mean decoder
    distribution. That mean runs over the rows ``u <= token_lens`` without NaN (fast_rnnt's includes padding rows).
    Only through it does an utterance's loss depend on the rest of the batch.

    Args:
        encoder_logits: (N, T, V), padded with anything.
        encoder_out_lens: (N,), integer, 1..T.
        decoder_logits: (N, U+1, V): row u is computed from the first u tokens; padded with anything.
        tokens: (N, U), integer, without blanks, padded with anything.
        token_lens: (N,), integer, 0..U.
        blank: id of the blank; negative counts from V.
        max_symbols_per_frame: see `joint_transducer_loss`.
        last_arc_is_blank: see `joint_transducer_loss`.
        lm_only_scale: share of lm_only, 0..1.
        am_only_scale: share of am_only, 0..1; both together at most 1.
        delay_penalty: see `joint_transducer_loss`.
        inf_is: see `joint_transducer_loss`.

    Returns:
        The nll and the occupations. NaN among the logits of an utterance makes its nll NaN, with gradient zero, and
        does not affect other utterances.

    Raises:
        ValueError: a type, shape, dtype, device, length, token or option is outside its bounds.

    Example:
        >>> encoder_logits, decoder_logits = torch.randn(2, 50, 500), torch.randn(2, 11, 500)
        >>> tokens = torch.randint(1, 500, (2, 10))
        >>> lens, token_lens = torch.tensor([50, 41]), torch.tensor([10, 7])
        >>> simple = simple_transducer_loss(encoder_logits, lens, decoder_logits, tokens, token_lens)
        >>> simple.nll.shape, simple.symbol_occupation.shape
        (torch.Size([2]), torch.Size([2, 50, 10]))
    """
    topology = choose_topology(max_symbols_per_frame, last_arc_is_blank)
    check_axes("encoder_logits", encoder_logits, "N", "T", "V")
    N, T, V = encoder_logits.shape
    next_tokens = _checked_next_tokens(encoder_logits, encoder_out_lens, tokens, token_lens, V, blank)
    U = tokens.shape[1]
    check_shapes({"decoder_logits": (decoder_logits, (N, U + 1, V))})
    check_floating({"encoder_logits": encoder_logits, "decoder_logits": decoder_logits})
    check_paths(encoder_out_lens, token_lens, topology, inf_is)
    _check_scales(lm_only_scale, am_only_scale)
    check_delay_penalty(delay_penalty)

    device = encoder_logits.device
    cells = list_cells(encoder_out_lens, token_lens, T, topology, device, delay_penalty=delay_penalty)
    scales = lm_only_scale, am_only_scale
    blank_scores, symbol_scores = linear_scores(
        encoder_logits, decoder_logits, next_tokens, blank % V, cells.token_lens, scales
    )
    places = cells.frame * (U + 1) + cells.u
    sums = differentiable_sums(cells, blank_scores.flatten()[places], symbol_scores.flatten()[places])
    blank_occupation, symbol_occupation = (
        occupation.new_zeros(N * T * (U + 1)).index_copy_(0, places, occupation).view(N, T, U + 1)
        for occupation in (sums.blank, sums.symbol)
    )
    return SimpleLoss(finish_nll(sums.nll, inf_is), blank_occupation, symbol_occupation[:, :, :-1])


def prune_ranges(
    blank_occupation: Tensor,
    symbol_occupation: Tensor,
    encoder_out_lens: Tensor,
    token_lens: Tensor,
    *,
    width: int,
    max_symbols_per_frame: Literal[1] | None = None,
) -> PruneRanges:
    """Select the rows of each frame that hold most of the simple loss's paths (section 3.2 of the paper).

    A frame keeps the window of rows with the largest blank occupation, less the occupation of the symbol arc that
    enters the window from below. The starts are then adjusted so that a path always remains: they begin at row 0, end
    where the last row is U, never fall, and rise by at most ``width - 1`` per frame (1 in the modified topologies).

    Args:
        blank_occupation: (N, T, U+1), of `SimpleLoss`.
        symbol_occupation: (N, T, U), of `SimpleLoss`.
        encoder_out_lens: (N,), integer, 1..T.
        token_lens: (N,), integer, 0..U.
        width: rows to keep on each frame. It is raised if the standard topology could not emit all tokens in so few
            frames, and lowered to at most U+1.
        max_symbols_per_frame: see `joint_transducer_loss`.

    Returns:
        The starts and the adjusted width.

    Raises:
        ValueError: a type, shape, length or option is outside its bounds.

    Example:
        >>> encoder_logits, decoder_logits = torch.randn(2, 50, 500), torch.randn(2, 11, 500)
        >>> tokens = torch.randint(1, 500, (2, 10))
        >>> lens, token_lens = torch.tensor([50, 41]), torch.tensor([10, 7])
        >>> _, blanks, symbols = simple_transducer_loss(encoder_logits, lens, decoder_logits, tokens, token_lens)
        >>> starts, width = prune_ranges(blanks, symbols, lens, token_lens, width=5)
        >>> starts.shape, width
        (torch.Size([2, 50]), 5)
    """
    check_choice("max_symbols_per_frame", max_symbols_per_frame, (None, 1))
    check_axes("blank_occupation", blank_occupation, "N", "T", "U+1")
    N, T, num_rows = blank_occupation.shape
    check_shapes(
        {
            "symbol_occupation": (symbol_occupation, (N, T, num_rows - 1)),
            "encoder_out_lens": (encoder_out_lens, (N,)),
            "token_lens": (token_lens, (N,)),
        }
    )
    check_integers("encoder_out_lens", encoder_out_lens, 1, T)
    check_integers("token_lens", token_lens, 0, num_rows - 1)
    width = checked_integer("width", width, 1)

    lens, num_tokens = encoder_out_lens.long(), token_lens.to(encoder_out_lens.device).long()
    if max_symbols_per_frame is None:
        # neighboring frames share a row: U+1 rows need (width - 1) * T >= U
        width = max(width, 1 + int((num_tokens + lens - 1).div(lens, rounding_mode="floor").max()))
    width = min(width, num_rows)
    inside = blank_occupation.unfold(2, width, 1).sum(-1)
    from_below = torch.nn.functional.pad(symbol_occupation, (1, 0))[:, :, : inside.shape[2]]
    starts = (inside - from_below).argmax(2)
    lens, num_tokens = lens.to(starts, non_blocking=True), num_tokens.to(starts, non_blocking=True)
    t = torch.arange(T, device=starts.device)
    starts = torch.where(t < lens[:, None] - 1, starts, (num_tokens + 1 - width).clamp(min=0)[:, None])
    steepest = t if max_symbols_per_frame else (width - 1) * t
    starts = steepest - _never_falling(steepest - _never_falling(starts)).clamp(min=0)
    return PruneRanges(starts, width)


def prune_joiner_inputs(
    encoder_out: Tensor, decoder_out: Tensor, starts: Tensor, *, width: int
) -> tuple[Tensor, Tensor]:
    """Gather the joiner's inputs for the cells of a band: k2's `do_rnnt_pruning`.

    Args:
        encoder_out: (N, T, D).
        decoder_out: (N, U+1, D).
        starts: (N, T), integer, 0..U+1-width: first row of each frame.
        width: rows of each frame.

    Returns:
        Both as (N, T, width, D); the encoder's is a view.

    Raises:
        ValueError: a type, shape, the starts or the width is outside its bounds.

    Example:
        >>> encoder_out, decoder_out = torch.randn(2, 50, 64), torch.randn(2, 11, 64)
        >>> starts = torch.zeros(2, 50, dtype=torch.int64)
        >>> encoder_part, decoder_part = prune_joiner_inputs(encoder_out, decoder_out, starts, width=5)
        >>> decoder_part.shape
        torch.Size([2, 50, 5, 64])
    """
    check_axes("encoder_out", encoder_out, "N", "T", "D", may_be_empty=True)
    check_axes("decoder_out", decoder_out, "N", "U+1", "D", may_be_empty=True)
    (N, T, D), num_rows = encoder_out.shape, decoder_out.shape[1]
    check_shapes({"decoder_out": (decoder_out, (N, num_rows, D)), "starts": (starts, (N, T))})
    width = checked_integer("width", width, 1, num_rows)
    check_integers("starts", starts, 0, num_rows - width)
    rows = starts.to(decoder_out.device)[:, :, None] + torch.arange(width, device=decoder_out.device)
    pruned = decoder_out.gather(1, rows.flatten(1)[:, :, None].expand(-1, -1, D))
    return encoder_out[:, :, None].expand(-1, -1, width, -1), pruned.view(N, T, width, D)


@never_compiled
def pruned_transducer_loss(
    logits: Tensor,
    starts: Tensor,
    encoder_out_lens: Tensor,
    tokens: Tensor,
    token_lens: Tensor,
    *,
    blank: int = 0,
    max_symbols_per_frame: Literal[1] | None = None,
    last_arc_is_blank: bool = True,
    delay_penalty: float = 0.0,
    inf_is: InfIs = "raise",
) -> Tensor:
    """Transducer loss over the paths that stay within a band: ``-log P(tokens, path in the band)``.

    It is at least the loss over all paths, and equal to it if the band holds all of them. The lattice is in
    float64 and the log-sums in float32 at least.

    Args:
        logits: (N, T, S, V) of cells (t, starts[t]), ..., (t, starts[t] + S - 1); padded with anything.
        starts: (N, T), integer, 0..U, padded with anything.
        encoder_out_lens: (N,), integer, 1..T.
        tokens: (N, U), integer, without blanks, padded with anything.
        token_lens: (N,), integer, 0..U.
        blank: id of the blank; negative counts from V.
        max_symbols_per_frame: see `joint_transducer_loss`.
        last_arc_is_blank: see `joint_transducer_loss`.
        delay_penalty: see `joint_transducer_loss`.
        inf_is: see `joint_transducer_loss`; ``"raise"`` checks the lengths only. A custom band that no path stays
            in has an infinite loss; `prune_ranges` returns no such band.

    Returns:
        (N,), float64, differentiable once. NaN among the logits of an utterance makes its nll NaN, with gradient zero,
        and does not affect other utterances.

    Raises:
        ValueError: a type, shape, dtype, device, length, start, token or option is outside its bounds.

    Example:
        >>> tokens = torch.randint(1, 500, (2, 10))
        >>> lens, token_lens = torch.tensor([50, 41]), torch.tensor([10, 7])
        >>> starts = torch.arange(50).div(8, rounding_mode="floor").expand(2, 50)  # see `prune_ranges`
        >>> logits = torch.randn(2, 50, 5, 500, requires_grad=True)
        >>> nll = pruned_transducer_loss(logits, starts, lens, tokens, token_lens)
        >>> nll.sum().backward()
    """
    topology = choose_topology(max_symbols_per_frame, last_arc_is_blank)
    check_axes("logits", logits, "N", "T", "S", "V")
    N, T, S, V = logits.shape
    next_tokens = _checked_next_tokens(logits, encoder_out_lens, tokens, token_lens, V, blank)
    U = tokens.shape[1]
    check_shapes({"starts": (starts, (N, T))})
    check_floating({"logits": logits})
    used = torch.arange(T, device=starts.device) < encoder_out_lens.to(starts.device)[:, None]
    starts = torch.where(used, starts, 0)
    check_integers("starts", starts, 0, U)
    check_paths(encoder_out_lens, token_lens, topology, inf_is)
    check_delay_penalty(delay_penalty)

    starts = starts.to(logits.device).long()
    rows = LogitRows(
        of_frame=torch.arange(N * T, device=logits.device) * S - starts.flatten(),
        next_tokens=next_tokens,
        blank=blank % V,
        is_normalized=False,
    )
    cells = list_cells(
        encoder_out_lens, token_lens, T, topology, logits.device, (starts, S), delay_penalty=delay_penalty
    )
    return finish_nll(nll_of_logits(cells, rows, logits.flatten(0, 2)), inf_is)


def _checked_next_tokens(
    logits: Tensor, encoder_out_lens: Tensor, tokens: Tensor, token_lens: Tensor, vocab_size: int, blank: int
) -> Tensor:
    """Check the arguments, and return each row's next token on the logits' device, (N, U+1), int64, blank-padded."""
    N, T = logits.shape[:2]
    check_axes("tokens", tokens, "N", "U", may_be_empty=True)
    check_shapes(
        {
            "tokens": (tokens, (N, tokens.shape[1])),
            "encoder_out_lens": (encoder_out_lens, (N,)),
            "token_lens": (token_lens, (N,)),
        }
    )
    blank = checked_blank(blank, vocab_size)
    check_integers("encoder_out_lens", encoder_out_lens, 1, T)
    tokens = check_tokens("tokens", tokens, "token_lens", token_lens, vocab_size, blank)
    return torch.nn.functional.pad(tokens.to(logits.device, non_blocking=True), (0, 1), value=blank)


def _check_scales(lm_only_scale: float, am_only_scale: float) -> None:
    """Raise ValueError unless the scales are in 0..1 and add up to at most 1."""
    for name, scale in (("lm_only_scale", lm_only_scale), ("am_only_scale", am_only_scale)):
        if not 0 <= scale <= 1:
            raise ValueError(f"`{name}` must be in 0..1, but is {scale}.")
    if lm_only_scale + am_only_scale > 1:
        raise ValueError(
            f"`lm_only_scale` + `am_only_scale` must be at most 1, but is {lm_only_scale} + {am_only_scale}."
        )


def _never_falling(rows: Tensor) -> Tensor:
    """Return the largest rows (N, T) that never fall over time and are nowhere above the given ones."""
    return rows.flip(1).cummin(1).values.flip(1)
