"""The recursion of lattice.py as a GPU kernel: one program runs over one lattice in one direction.

Letters: N utterances, T encoder frames, U tokens, M listed cells.

A program holds the cells of one clock side by side, one lane for each number of tokens said. The results of a clock are
written to memory; after a barrier, the next clock reads them, for symbols one lane further.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stateless_transducer.ops.cells import Cells


@triton.jit
def _zero_kernel(place):
    tl.store(place, 0.0)


def start_triton(device: torch.device) -> None:
    """Compile and start the smallest kernel; raises Triton's own errors."""
    number = torch.empty(1, device=device)
    with torch.cuda.device_of(number):
        _zero_kernel[(1,)](number)


@triton.jit
def _log_add_exp(a, b):
    largest = tl.maximum(a, b)
    # where both are -inf, their difference would be NaN
    base = tl.where(largest == float("-inf"), 0.0, largest)
    return largest + tl.log(1.0 + tl.exp(tl.minimum(a, b) - base))


@triton.jit
def _load_cell(values, first_cell, first_row, n, T, num_frames, t, u, is_lane):
    """Value of cell (t, u) of utterance n in each lane, -inf where the cell is not listed."""
    frame = n * T + t
    is_frame = is_lane & (t >= 0) & (t < num_frames)
    first = tl.load(first_cell + frame, mask=is_frame, other=0)
    end = tl.load(first_cell + frame + 1, mask=is_frame, other=0)
    place = first + u - tl.load(first_row + frame, mask=is_frame, other=0)
    is_listed = is_frame & (place >= first) & (place < end)
    return tl.load(values + place, mask=is_listed, other=float("-inf")), place, is_listed


@triton.jit
def _walk_kernel(
    blank,
    symbol,
    first_cell,
    first_row,
    encoder_out_lens,
    token_lens,
    alpha,
    beta,
    by_blank,
    by_symbol,
    T,
    IS_STANDARD: tl.constexpr,
    LANES: tl.constexpr,
):
    """Program (n, 0) writes beta and, per arc, the log-probability of finishing through it; (n, 1) writes alpha."""
    n = tl.program_id(0).to(tl.int64)
    num_frames = tl.load(encoder_out_lens + n)
    num_tokens = tl.load(token_lens + n)
    u = tl.arange(0, LANES).to(tl.int64)
    is_lane = u <= num_tokens
    num_clocks = num_frames + num_tokens if IS_STANDARD else num_frames
    if tl.program_id(1) == 0:
        for step in range(0, num_clocks):
            d = num_clocks - 1 - step
            t = d - u if IS_STANDARD else d + u * 0
            blank_score, place, is_listed = _load_cell(blank, first_cell, first_row, n, T, num_frames, t, u, is_lane)
            symbol_score = tl.load(symbol + place, mask=is_listed & (u < num_tokens), other=float("-inf"))
            after_blank, _, _ = _load_cell(beta, first_cell, first_row, n, T, num_frames, t + 1, u, is_lane)
            is_exit = (t + 1 == num_frames) & (u == num_tokens)
            through_blank = blank_score + tl.where(is_exit, 0.0, after_blank)
            t_next = t if IS_STANDARD else t + 1
            after_symbol, _, _ = _load_cell(
                beta, first_cell, first_row, n, T, num_frames, t_next, u + 1, is_lane & (u < num_tokens)
            )
            is_exit = (t_next == num_frames) & (u + 1 == num_tokens)
            through_symbol = symbol_score + tl.where(is_exit, 0.0, after_symbol)
            tl.store(by_blank + place, through_blank, mask=is_listed)
            tl.store(by_symbol + place, through_symbol, mask=is_listed)
            tl.store(beta + place, _log_add_exp(through_blank, through_symbol), mask=is_listed)
            tl.debug_barrier()
    else:
        for d in range(0, num_clocks):
            t = d - u if IS_STANDARD else d + u * 0
            _, place, is_listed = _load_cell(blank, first_cell, first_row, n, T, num_frames, t, u, is_lane)
            before, source, is_source = _load_cell(alpha, first_cell, first_row, n, T, num_frames, t - 1, u, is_lane)
            through_blank = before + tl.load(blank + source, mask=is_source, other=float("-inf"))
            t_last = t if IS_STANDARD else t - 1
            before, source, is_source = _load_cell(
                alpha, first_cell, first_row, n, T, num_frames, t_last, u - 1, is_lane & (u > 0)
            )
            through_symbol = before + tl.load(symbol + source, mask=is_source, other=float("-inf"))
            arrived = _log_add_exp(through_blank, through_symbol)
            arrived = tl.where((t == 0) & (u == 0), 0.0, arrived)
            tl.store(alpha + place, arrived, mask=is_listed)
            tl.debug_barrier()


def walk_triton(cells: Cells, blank: Tensor, symbol: Tensor, has_occupations: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields of `PathSums` for scores (M,), float64, contiguous, below inf; never waits for the device."""
    N, M, device = len(cells.exits), len(cells), blank.device
    # one more place than cells, so that a launch with an empty list does not read out of bounds
    alpha, beta, by_blank, by_symbol = blank.new_full((4, M + 1), -torch.inf).unbind()
    # kernels are launched on the current device, which may not be the tensors'
    with torch.cuda.device_of(blank):
        _walk_kernel[(N, 2 if has_occupations else 1)](
            blank,
            symbol,
            cells.first_cell,
            cells.first_row,
            cells.encoder_out_lens,
            cells.token_lens,
            alpha,
            beta,
            by_blank,
            by_symbol,
            cells.num_frames,
            IS_STANDARD=cells.topology == "standard",
            LANES=triton.next_power_of_2(cells.max_tokens + 1),
            num_warps=4,  # pyright: ignore[reportCallIssue]
            # no prefetching: the next clock's inputs are not written yet
            num_stages=1,  # pyright: ignore[reportCallIssue]
        )
    first_frames = torch.arange(N, device=device) * cells.num_frames
    starts = cells.first_cell[first_frames]
    # a band may exclude cell (0, 0), and with it all paths
    has_origin = (cells.first_cell[first_frames + 1] > starts) & (cells.first_row[first_frames] == 0)
    log_like = torch.where(has_origin, beta[starts], -torch.inf)
    if not has_occupations:
        return -log_like, alpha[:0], alpha[:0]
    before = alpha[:M] - torch.where(log_like > -torch.inf, log_like, torch.inf).index_select(0, cells.n)
    return -log_like, (before + by_blank[:M]).exp_(), (before + by_symbol[:M]).exp_()
