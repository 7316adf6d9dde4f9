"""Cells of the lattices that lie on a path, as one flat list over the whole batch.

Letters: N utterances, T encoder frames, U tokens (a lattice has U+1 rows, by tokens said so far), M listed cells.

Cell (t, u) is frame t with the first u tokens said. A path starts in cell (0, 0) and ends after the last frame with all
tokens said. The topologies:

- ``"standard"`` (Graves 2012, arXiv 1211.3711): a blank advances to the next frame, a symbol stays on its frame;
- ``"modified"`` (optimized_transducer): a symbol advances to the next frame as well, so that a frame emits at most one
  token, and the last arc of a path is a blank: T-1 >= U;
- ``"modified_open"`` (k2, fast_rnnt): the same, but the last frame may emit the last token: T >= U.

Every arc advances a clock by one: t + u in the standard topology, t in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Topology = Literal["standard", "modified", "modified_open"]


@dataclass(frozen=True)
class Cells:
    """The cells that lie on a path, sorted by utterance, frame and token; all tensors on one device.

    Utterance ``n`` and frame ``t`` are stored as one number, the row ``n * T + t`` of a padded (N, T, ...) tensor.
    """

    topology: Topology
    num_frames: int
    """T of the padded tensors."""
    max_tokens: int
    """Largest number of tokens of an utterance."""
    exits: list[int]
    """N clocks, after the last arc of each utterance."""
    encoder_out_lens: Tensor
    """(N,), int64."""
    token_lens: Tensor
    """(N,), int64."""
    first_row: Tensor
    """(N * T,), int64: the fewest tokens said on each frame."""
    first_cell: Tensor
    """(N * T + 1,), int64: place in the list of each frame's first cell, and M at the end."""
    n: Tensor
    """(M,), int64: utterance."""
    frame: Tensor
    """(M,), int64: n * T + t."""
    u: Tensor
    """(M,), int64: tokens said so far."""
    delay_penalty: float = 0.0
    """See `delay_reward`."""

    def __len__(self) -> int:
        return len(self.frame)

    def delay_reward(self) -> Tensor:
        """Return what a symbol arc gains for being early, (M,), float64: ``delay_penalty * ((T-1)/2 - t)``.

        T is the length of the utterance, so that symbols in the middle of it gain nothing (k2's definition, Kang et al.
        2023, arXiv 2211.00490).
        """
        last = (self.encoder_out_lens - 1).double().index_select(0, self.n)
        t = self.frame - self.n * self.num_frames
        return self.delay_penalty * (last / 2 - t)


def has_path(encoder_out_lens: Tensor, token_lens: Tensor, topology: Topology) -> Tensor:
    """Return whether each utterance has a path of the topology, (N,), bool."""
    if topology == "standard":
        return torch.ones_like(token_lens, dtype=torch.bool)
    return encoder_out_lens >= token_lens + (1 if topology == "modified" else 0)


def list_cells(
    encoder_out_lens: Tensor,
    token_lens: Tensor,
    num_frames: int,
    topology: Topology,
    device: torch.device,
    band: tuple[Tensor, int] | None = None,
    *,
    delay_penalty: float = 0.0,
) -> Cells:
    """List the cells of a batch that lie on a path.

    Args:
        encoder_out_lens: (N,), integer, 1..T; best on the CPU, where the number of cells is computed.
        token_lens: (N,), integer, >= 0.
        num_frames: T, of the padded tensors that the list points into.
        topology: see the module's docstring.
        device: device of the list.
        band: starts (N, T) and a width: keep only ``start <= u < start + width``. Cells that the band cuts off
            from all paths stay listed.
        delay_penalty: see `Cells.delay_reward`.
    """
    # on the host: the number of cells must be known there to allocate them; contiguous, since a kernel reads them
    lens, num_tokens = (tensor.cpu().long().contiguous() for tensor in (encoder_out_lens, token_lens))
    t = torch.arange(num_frames, device="cpu")
    num_tokens_column = num_tokens[:, None]
    if topology == "standard":
        low, high = torch.zeros(1, dtype=torch.int64, device="cpu"), num_tokens_column
    else:
        frames_left = lens[:, None] - t - (1 if topology == "modified" else 0)
        low, high = (num_tokens_column - frames_left).clamp(min=0), torch.minimum(t, num_tokens_column)
    if band is not None:
        starts, width = band[0].cpu(), band[1]
        low, high = torch.maximum(low, starts), torch.minimum(high, starts + width - 1)
    low, high = low.expand(len(lens), num_frames), high.expand(len(lens), num_frames)
    counts = torch.where(t < lens[:, None], high - low + 1, 0).clamp(min=0).flatten()
    first_cell = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    total = int(first_cell[-1])
    # contiguous: a kernel reads it, and an expanded tensor has stride 0
    first_row = low.contiguous().flatten().to(device, non_blocking=True)
    first_cell, counts = first_cell.to(device, non_blocking=True), counts.to(device, non_blocking=True)
    frame = torch.repeat_interleave(torch.arange(len(counts), device=device), counts, output_size=total)
    u = torch.arange(total, device=device) - (first_cell[:-1] - first_row)[frame]
    return Cells(
        topology=topology,
        num_frames=num_frames,
        max_tokens=int(num_tokens.max()),
        exits=(lens + num_tokens if topology == "standard" else lens).tolist(),
        encoder_out_lens=lens.to(device, non_blocking=True),
        token_lens=num_tokens.to(device, non_blocking=True),
        first_row=first_row,
        first_cell=first_cell,
        n=frame.div(num_frames, rounding_mode="floor"),
        frame=frame,
        u=u,
        delay_penalty=delay_penalty,
    )
