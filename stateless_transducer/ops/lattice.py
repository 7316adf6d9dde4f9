"""Summed probability of all paths through the lattices, and the share of it that each arc carries, in plain PyTorch.

Letters: N utterances, T encoder frames, U tokens (a lattice has U+1 rows, by tokens said so far), M listed cells.

Every topology of `cells.py` is one recursion over a clock d that each arc advances by one::

    alpha[d, u] = logaddexp(alpha[d-1, u] + blank[d-1, u], alpha[d-1, u-1] + symbol[d-1, u-1])

beta, the log-probability of finishing from a cell, is the same recursion over the reversed lattice, so both run side
by side in one loop over clocks. The recursion runs in float64: it is cheap compared with the joiner, and long lattices
lose digits in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stateless_transducer.ops.cells import Cells, Topology, list_cells
from stateless_transducer.ops.kernels import can_use_kernels


class PathSums(NamedTuple):
    """Result of both passes over the lattices."""

    nll: Tensor
    """(N,), float64: negative log of the summed probability of all paths; inf without a path, NaN if a score is NaN."""
    blank: Tensor
    """(M,), float64, 0..1: occupation of each cell's blank arc, its share of that probability."""
    symbol: Tensor
    """(M,), float64, 0..1: occupation of each cell's symbol arc. Both are 0 where the nll is not finite."""


def sum_over_paths(
    cells: Cells,
    blank_scores: Tensor,
    symbol_scores: Tensor,
    *,
    has_occupations: bool = True,
    has_kernel: bool | None = None,
) -> PathSums:
    """Return the nll and the arc occupations of each lattice.

    Args:
        cells: the cells that the scores belong to.
        blank_scores: (M,), log-probability of a blank in each cell.
        symbol_scores: (M,), log-probability of the next token in each cell; ignored where all tokens are said.
        has_occupations: whether to compute the occupations; if False, they are empty.
        has_kernel: whether to use the GPU kernel (`lattice_triton.py`); None: if `can_use_kernels`.
    """
    # copies, since they are modified in place
    blank, symbol = blank_scores.to(torch.float64, copy=True), symbol_scores.to(torch.float64, copy=True)
    if cells.delay_penalty:
        symbol += cells.delay_reward()
    symbol.masked_fill_(cells.u == cells.token_lens.index_select(0, cells.n), -torch.inf)
    is_invalid = _mask_invalid_(cells, blank, symbol)
    walk = _walk
    if can_use_kernels(blank.device) if has_kernel is None else has_kernel:
        from stateless_transducer.ops.lattice_triton import walk_triton as walk
    sums = PathSums(*walk(cells, blank, symbol, has_occupations))
    return sums._replace(nll=torch.where(is_invalid, torch.nan, sums.nll))


def _mask_invalid_(cells: Cells, blank: Tensor, symbol: Tensor) -> Tensor:
    """Set all scores of utterances with a NaN or +inf score to -inf, and return these utterances, (N,), bool.

    Otherwise such scores would spread to neighboring utterances in memory.
    """
    is_bad = ~(blank + symbol < torch.inf)
    # early exit: free on the CPU, but it would force a synchronization on a GPU
    if is_bad.device.type == "cpu" and not bool(is_bad.any()):
        return torch.zeros_like(cells.token_lens, dtype=torch.bool)
    num_bad = torch.zeros(len(cells.token_lens), device=is_bad.device).index_add_(0, cells.n, is_bad.float())
    is_invalid = num_bad > 0
    is_masked = is_invalid.index_select(0, cells.n)
    blank.masked_fill_(is_masked, -torch.inf)
    symbol.masked_fill_(is_masked, -torch.inf)
    return is_invalid


def _walk(cells: Cells, blank: Tensor, symbol: Tensor, has_occupations: bool) -> PathSums:
    """Run both passes over scores (M,), float64, below inf, which are overwritten."""
    grid = _Grid(cells, is_two_way=has_occupations)
    scores = _forward_scores(grid, blank, symbol)
    log_like = scores[grid.exit_places]
    if grid.reversed_places is None:
        return PathSums(-log_like, blank[:0], symbol[:0])
    # an arc's occupation: reach its cell, take it, finish from its end; all relative to the sum over all paths
    before = scores.index_select(0, grid.places)
    before -= torch.where(log_like > -torch.inf, log_like, torch.inf).index_select(0, cells.n)
    after_blank = grid.reversed_places - grid.clock_size
    blank += before
    blank += scores.index_select(0, after_blank)
    symbol += before
    symbol += scores.index_select(0, after_blank.sub_(1).clamp_(min=0))
    return PathSums(-log_like, blank.exp_(), symbol.exp_())


def lattice_nll(
    blank_scores: Tensor,
    symbol_scores: Tensor,
    encoder_out_lens: Tensor,
    token_lens: Tensor,
    topology: Topology = "standard",
    band: tuple[Tensor, int] | None = None,
    *,
    delay_penalty: float = 0.0,
) -> Tensor:
    """Return the negative log of the summed probability of all paths, of each utterance.

    Args:
        blank_scores: (N, T, U+1), log-probability of a blank in each cell.
        symbol_scores: (N, T, U), log-probability of the next token in each cell. Padding rows and columns may
            hold anything, NaN included.
        encoder_out_lens: (N,), 1 <= length <= T.
        token_lens: (N,), 0 <= length <= U.
        topology: see `cells.py`.
        band: see `list_cells`.
        delay_penalty: see `list_cells`.

    Returns:
        (N,), float64, differentiable once in both scores; infinite (with gradient zero) where no path exists.
    """
    _, T, num_rows = blank_scores.shape
    cells = list_cells(
        encoder_out_lens, token_lens, T, topology, blank_scores.device, band, delay_penalty=delay_penalty
    )
    symbol_scores = torch.nn.functional.pad(symbol_scores, (0, 1))
    places = cells.frame * num_rows + cells.u
    return differentiable_sums(cells, blank_scores.flatten()[places], symbol_scores.flatten()[places]).nll


def differentiable_sums(cells: Cells, blank_scores: Tensor, symbol_scores: Tensor) -> PathSums:
    """Return `sum_over_paths` with an nll that is differentiable once in both scores."""
    return PathSums(*_NllOfScores.apply(cells, blank_scores, symbol_scores))


class _NllOfScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells, blank_scores, symbol_scores):
        sums = sum_over_paths(cells, blank_scores, symbol_scores)
        ctx.cells, ctx.dtype = cells, blank_scores.dtype
        ctx.save_for_backward(sums.blank, sums.symbol)
        ctx.mark_non_differentiable(sums.blank, sums.symbol)
        return sums.nll, sums.blank, sums.symbol

    @staticmethod
    def backward(ctx, grad_nll, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        scale = -grad_nll[ctx.cells.n]
        return None, *((occupation * scale).to(ctx.dtype) for occupation in ctx.saved_tensors)


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward pass that is itself recorded.

    torch's own `once_differentiable` does not raise if the incoming gradient is a constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("The transducer loss is differentiable once. Call backward without create_graph.")


class _Grid:
    """Places of the cells in one flat array over (line, clock, column), in which both directions run side by side.

    Lattices are sorted by exit clock, latest first, so that the running ones are a prefix. Each lattice takes two
    lines, forward and reversed. The reversed line starts at the exit, and its columns count the tokens still to be
    said. A one-way grid has the forward lines only. The column after the last token receives its masked symbol arcs.
    """

    def __init__(self, cells: Cells, *, is_two_way: bool) -> None:
        device = cells.frame.device
        exits = torch.tensor(cells.exits, device="cpu")
        order = exits.argsort(descending=True, stable=True)
        line, lines_per_lattice = torch.empty_like(order), 2 if is_two_way else 1
        line[order] = lines_per_lattice * torch.arange(len(order), device="cpu")
        self.shape = (lines_per_lattice * len(exits), int(exits.max()) + 1, cells.max_tokens + 2)
        self.clock_size = self.shape[2]
        clocks = torch.arange(self.shape[1], device="cpu")
        self.running: list[int] = (lines_per_lattice * (exits >= clocks[:, None]).sum(1)).tolist()
        """Number of running lines at each clock."""
        exits, line = exits.to(device, non_blocking=True), line.to(device, non_blocking=True)
        line_size = self.shape[1] * self.shape[2]
        self.exit_places = line * line_size + exits * self.clock_size + cells.token_lens
        t = torch.arange(cells.num_frames, device=device)
        frame_places = (t * self.clock_size + (line * line_size)[:, None]).flatten()
        u_places = cells.u * (self.clock_size + 1 if cells.topology == "standard" else 1)
        self.places = frame_places.index_select(0, cells.frame).add_(u_places)
        """(M,): place of each cell in its forward line."""
        self.reversed_places = None
        """(M,): place of each cell in its reversed line; None in a one-way grid."""
        if is_two_way:
            # the exit is the start of its reversed line, and places count backwards from there
            sums = self.exit_places + (line + 1) * line_size
            self.reversed_places = sums.index_select(0, cells.n).sub_(self.places)


def _forward_scores(grid: _Grid, blank: Tensor, symbol: Tensor) -> Tensor:
    """Return alpha of each cell at its place and beta at its reversed place, flat; -inf where no path passes."""
    stay = blank.new_full(grid.shape, -torch.inf)
    move = torch.full_like(stay, -torch.inf)
    # an arc's score is stored at the arc's end: the next clock, and for a symbol the next column
    after_blank = grid.places + grid.clock_size
    stay.view(-1).scatter_(0, after_blank, blank)
    move.view(-1).scatter_(0, after_blank.add_(1), symbol)
    if grid.reversed_places is not None:
        stay.view(-1).scatter_(0, grid.reversed_places, blank)
        move.view(-1).scatter_(0, grid.reversed_places, symbol)
    stay[:, 0, 0] = 0
    stays, moves = stay.unbind(1), move.unbind(1)
    for d in range(1, grid.shape[1]):
        # after d arcs, at most d tokens are said
        running, columns = grid.running[d], min(d + 1, grid.shape[2])
        before, by_blank = stays[d - 1][:running, :columns], stays[d][:running, :columns]
        by_symbol = moves[d][:running, 1:columns]
        by_blank += before
        by_symbol += before[:, :-1]
        by_both = by_blank[:, 1:]
        torch.logaddexp(by_both, by_symbol, out=by_both)
    return stay.view(-1)
