"""Sum over all paths of the lattices, and the share of it that runs through each arc, in plain PyTorch.

Letters: N utterances, T encoder frames, U tokens (a lattice has U+1 rows of labels already said), M listed cells.

Every topology of `cells.py` is one recursion over a clock d that each arc advances by one::

    alpha[d, u] = logaddexp(alpha[d-1, u] + blank[d-1, u], alpha[d-1, u-1] + symbol[d-1, u-1])

beta, the log-probability of finishing from a cell, is the same recursion over the reversed lattice, so that both run
side by side in one loop over clocks. The work is done in float64: it is cheap beside the joiner, and long lattices
lose digits in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stateless_transducer.ops.cells import Cells, Topology, list_cells
from stateless_transducer.ops.kernels import can_use_kernels


class PathSums(NamedTuple):
    """What the lattice knows after both passes."""

    nll: Tensor
    """(N,), float64: negative log of the summed probability of all paths; inf without a path, NaN if a score is."""
    blank: Tensor
    """(M,), float64, 0..1: share of that probability that runs through each cell's blank."""
    symbol: Tensor
    """(M,), float64, 0..1: the same for its symbol. Both are 0 where the nll is not finite."""


def sum_over_paths(
    cells: Cells,
    blank_scores: Tensor,
    symbol_scores: Tensor,
    *,
    has_occupations: bool = True,
    has_kernel: bool | None = None,
) -> PathSums:
    """Nll and arc occupations of each lattice.

    Args:
        cells: the list that the scores belong to.
        blank_scores: (M,), log-probability of a blank in each cell.
        symbol_scores: (M,), log-probability of the next token in each cell; anything where all are said.
        has_occupations: whether to run the backward pass too; without, the occupations are empty.
        has_kernel: whether to use the one for GPUs (`lattice_triton.py`); None: where `can_use_kernels`.
    """
    # copies, since they are worked on in place
    blank, symbol = blank_scores.to(torch.float64, copy=True), symbol_scores.to(torch.float64, copy=True)
    symbol.masked_fill_(cells.u == cells.token_lens.index_select(0, cells.n), -torch.inf)
    is_spoilt = _silence_spoilt_(cells, blank, symbol)
    walk = _walk
    if can_use_kernels(blank.device) if has_kernel is None else has_kernel:
        from stateless_transducer.ops.lattice_triton import walk_triton as walk
    sums = PathSums(*walk(cells, blank, symbol, has_occupations))
    return sums._replace(nll=torch.where(is_spoilt, torch.nan, sums.nll))


def _silence_spoilt_(cells: Cells, blank: Tensor, symbol: Tensor) -> Tensor:
    """(N,), bool: utterances with a NaN or inf among their scores, which are all made -inf: no path, no occupation.

    Left as they are, they would spread over their neighbors in memory.
    """
    is_bad = ~(blank + symbol < torch.inf)
    is_spoilt = torch.zeros_like(cells.token_lens, dtype=torch.bool)
    # a question that costs nothing on the CPU, and saves the rest nearly always; elsewhere it would wait for the device
    if is_bad.device.type == "cpu" and not bool(is_bad.any()):
        return is_spoilt
    is_spoilt = torch.zeros(len(is_spoilt), device=is_bad.device).index_add_(0, cells.n, is_bad.float()) > 0
    is_silent = is_spoilt.index_select(0, cells.n)
    blank.masked_fill_(is_silent, -torch.inf)
    symbol.masked_fill_(is_silent, -torch.inf)
    return is_spoilt


def _walk(cells: Cells, blank: Tensor, symbol: Tensor, has_occupations: bool) -> PathSums:
    """`sum_over_paths` of scores (M,), float64, below inf; they are used up."""
    grid = _Grid(cells, is_two_way=has_occupations)
    scores = _forward_scores(grid, blank, symbol)
    log_like = scores[grid.exit_places]
    if grid.reversed_places is None:
        return PathSums(-log_like, blank[:0], symbol[:0])
    # come to the cell, take the arc, finish from where it leads; nothing counts without a path
    before = scores.index_select(0, grid.places)
    before -= torch.where(log_like > -torch.inf, log_like, torch.inf).index_select(0, cells.n)
    behind_blank = grid.reversed_places - grid.clock_size
    blank += before
    blank += scores.index_select(0, behind_blank)
    symbol += before
    symbol += scores.index_select(0, behind_blank.sub_(1).clamp_(min=0))
    return PathSums(-log_like, blank.exp_(), symbol.exp_())


def lattice_nll(
    blank_scores: Tensor,
    symbol_scores: Tensor,
    encoder_out_lens: Tensor,
    token_lens: Tensor,
    topology: Topology = "standard",
    band: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Negative log of the summed probability of all paths, for each utterance.

    Args:
        blank_scores: (N, T, U+1), log-probability of a blank in each cell.
        symbol_scores: (N, T, U), log-probability of the next token in each cell. Rows and columns behind an
            utterance's own lengths may hold anything, NaN included.
        encoder_out_lens: (N,), 1 <= length <= T.
        token_lens: (N,), 0 <= length <= U.
        topology: see `cells.py`.
        band: see `list_cells`.

    Returns:
        (N,), float64, differentiable once in both scores; infinite (with gradient zero) where no path exists.
    """
    _, T, num_rows = blank_scores.shape
    cells = list_cells(encoder_out_lens, token_lens, T, topology, blank_scores.device, band)
    symbol_scores = torch.nn.functional.pad(symbol_scores, (0, 1))
    places = cells.frame * num_rows + cells.u
    return NllOfScores.apply(cells, blank_scores.flatten()[places], symbol_scores.flatten()[places])[0]


class NllOfScores(torch.autograd.Function):
    """`sum_over_paths` as a differentiable function: cells and scores (M,) to `PathSums`, whose nll has a gradient."""

    @staticmethod
    def forward(ctx, cells, blank_scores, symbol_scores):  # noqa: D102
        sums = sum_over_paths(cells, blank_scores, symbol_scores)
        ctx.cells, ctx.dtype = cells, blank_scores.dtype
        ctx.save_for_backward(sums.blank, sums.symbol)
        ctx.mark_non_differentiable(sums.blank, sums.symbol)
        return sums.nll, sums.blank, sums.symbol

    @staticmethod
    def backward(ctx, grad_nll, *_):  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivative()
        scale = -grad_nll[ctx.cells.n]
        return None, *((occupation * scale).to(ctx.dtype) for occupation in ctx.saved_tensors)


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward pass that is itself recorded.

    torch's own `once_differentiable` lets it pass where the incoming gradient is a constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("The transducer loss is differentiable once; call backward without create_graph.")


class _Grid:
    """Places of the cells in one flat array over (line, clock, column), in which both directions run side by side.

    Lattices are sorted by their exit clock, longest first, so that those that still run are a prefix. Each takes two
    lines, forwards and reversed; the reversed one starts behind the exit and counts the tokens still to be said. One
    way, each takes the first only. A column behind the last token takes what its symbol would lead to.
    """

    def __init__(self, cells: Cells, *, is_two_way: bool) -> None:
        device = cells.frame.device
        exits = torch.tensor(cells.exits, device="cpu")
        order = exits.argsort(descending=True, stable=True)
        line, lines_each = torch.empty_like(order), 2 if is_two_way else 1
        line[order] = lines_each * torch.arange(len(order), device="cpu")
        self.shape = (lines_each * len(exits), int(exits.max()) + 1, cells.max_tokens + 2)
        self.clock_size = self.shape[2]
        # lines that still run at each clock
        self.running = (lines_each * (exits >= torch.arange(self.shape[1], device="cpu")[:, None]).sum(1)).tolist()
        exits, line = exits.to(device, non_blocking=True), line.to(device, non_blocking=True)
        line_size = self.shape[1] * self.shape[2]
        self.exit_places = line * line_size + exits * self.clock_size + cells.token_lens
        t = torch.arange(cells.num_frames, device=device)
        frame_places = (t * self.clock_size + (line * line_size)[:, None]).flatten()
        u_places = cells.u * (self.clock_size + 1 if cells.topology == "standard" else 1)
        self.places = frame_places.index_select(0, cells.frame).add_(u_places)
        """(M,): where each cell lies, forwards."""
        self.reversed_places = None
        """(M,): where each cell lies, reversed; None one way."""
        if is_two_way:
            # the exit lies at the start of its reversed line, and both directions count the same way from there
            sums = self.exit_places + (line + 1) * line_size
            self.reversed_places = sums.index_select(0, cells.n).sub_(self.places)


def _forward_scores(grid: _Grid, blank: Tensor, symbol: Tensor) -> Tensor:
    """Alpha of each cell at its place, and beta at its reversed place; flat, -inf where nothing comes by."""
    stay = blank.new_full(grid.shape, -torch.inf)
    move = torch.full_like(stay, -torch.inf)
    # an arc's score lies where the arc leads to: one clock on, and for a symbol one column on
    behind_blank = grid.places + grid.clock_size
    stay.view(-1).scatter_(0, behind_blank, blank)
    move.view(-1).scatter_(0, behind_blank.add_(1), symbol)
    if grid.reversed_places is not None:
        stay.view(-1).scatter_(0, grid.reversed_places, blank)
        move.view(-1).scatter_(0, grid.reversed_places, symbol)
    stay[:, 0, 0] = 0
    stays, moves = stay.unbind(1), move.unbind(1)
    for d in range(1, grid.shape[1]):
        # no more tokens are said than arcs were taken
        running, columns = grid.running[d], min(d + 1, grid.shape[2])
        before, by_blank = stays[d - 1][:running, :columns], stays[d][:running, :columns]
        by_symbol = moves[d][:running, 1:columns]
        by_blank += before
        by_symbol += before[:, :-1]
        said_some = by_blank[:, 1:]
        torch.logaddexp(said_some, by_symbol, out=said_some)
    return stay.view(-1)
