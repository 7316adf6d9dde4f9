# pyright: strict
"""Transducer loss of logits; it replaces the losses of other libraries.

Letters: N utterances, T encoder frames, U tokens, V vocabulary with blank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stateless_transducer.ops.arguments import (
    InfIs,
    check_axes,
    check_choice,
    check_floating,
    check_integers,
    check_paths,
    check_shapes,
    check_tensor,
    check_tokens,
    checked_blank,
    choose_topology,
    finish_nll,
    never_compiled,
)
from stateless_transducer.ops.cells import list_cells
from stateless_transducer.ops.logit_scores import LogitRows, nll_of_logits, wide_dtype


@never_compiled
def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    one_sym_per_frame: bool = False,
    from_log_softmax: bool = False,
    *,
    last_arc_is_blank: bool = True,
    inf_is: InfIs = "raise",
) -> Tensor:
    """Transducer loss of logits: a replacement for torchaudio's `rnnt_loss` and `optimized_transducer.transducer_loss`.

    The first eight arguments are optimized_transducer's. torchaudio's blank is the last id by default (pass
    ``blank=-1``), and its ``fused_log_softmax`` is the opposite of `from_log_softmax`: pass arguments after `blank` by
    name.

    The logits are not changed, and their gradient is the only other tensor of their size. `joint_transducer_loss` needs
    neither, and takes at most a tenth of the memory.

    Args:
        logits: padded, (N, T, U+1, V), as torchaudio's; or packed, (sum of T * (U+1) over the utterances, V), as
            optimized_transducer's. Any floating-point dtype, any strides.
        targets: (N, U), integer, without blanks, padded with anything.
        logit_lengths: (N,), integer, 1..T.
        target_lengths: (N,), integer, 0..U.
        blank: id of the blank; negative counts from V.
        reduction: ``"none"`` gives (N,); ``"mean"`` is over the utterances.
        one_sym_per_frame: True is the modified transducer, where a symbol advances to the next frame too.
        from_log_softmax: whether the logits are log-probabilities already; the gradient is then in these.
        last_arc_is_blank: see `joint_transducer_loss`.
        inf_is: see `joint_transducer_loss`.

    Returns:
        In the dtype of the logits, float32 at least; differentiable once.

    Raises:
        ValueError: a type, shape, dtype, device, length, target or option is outside its bounds.

    Example:
        >>> logits = torch.randn(2, 50, 11, 500, requires_grad=True)  # (N, T, U+1, V)
        >>> targets = torch.randint(1, 500, (2, 10))
        >>> loss = transducer_loss(logits, targets, torch.tensor([50, 41]), torch.tensor([10, 7]))
        >>> loss.backward()
    """
    topology = choose_topology(1 if one_sym_per_frame else None, last_arc_is_blank, remedy="one_sym_per_frame=True")
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_tensor("logits", logits, "(N, T, U+1, V) or packed (rows, V)")
    if logits.dim() not in (2, 4) or 0 in logits.shape:
        raise ValueError(
            f"`logits` must be (N, T, U+1, V) or packed (rows, V), none of them 0, but has shape {tuple(logits.shape)}."
        )
    check_axes("targets", targets, "N", "U", may_be_empty=True)
    check_floating({"logits": logits})
    N, V, device, is_packed = len(targets), logits.shape[-1], logits.device, logits.dim() == 2
    if not N:
        raise ValueError(f"`targets` must hold an utterance at least, but has shape {tuple(targets.shape)}.")
    check_shapes({"logit_lengths": (logit_lengths, (N,)), "target_lengths": (target_lengths, (N,))})
    blank = checked_blank(blank, V)
    check_integers("logit_lengths", logit_lengths, 1, len(logits) if is_packed else logits.shape[1])
    if not is_packed:
        check_integers("target_lengths", target_lengths, 0, logits.shape[2] - 1)
    targets = check_tokens("targets", targets, "target_lengths", target_lengths, V, blank)
    # one dtype and device for both, wide enough for their product
    logit_lengths = logit_lengths.long()
    target_lengths = target_lengths.to(logit_lengths)
    check_paths(logit_lengths, target_lengths, topology, inf_is)

    num_frames = int(logit_lengths.max()) if is_packed else logits.shape[1]
    rows = LogitRows(
        of_frame=_rows_of_frames(logits, num_frames, logit_lengths.cpu().long(), target_lengths.cpu().long()).to(
            device
        ),
        next_tokens=torch.nn.functional.pad(targets, (0, 1), value=blank).to(device),
        blank=blank,
        is_normalized=from_log_softmax,
    )
    cells = list_cells(logit_lengths, target_lengths, num_frames, topology, device)
    nll = nll_of_logits(cells, rows, logits.flatten(0, -2))
    nll = finish_nll(nll, inf_is).to(wide_dtype(logits.dtype))
    if reduction == "none":
        return nll
    return nll.mean() if reduction == "mean" else nll.sum()


def _rows_of_frames(logits: Tensor, T: int, num_frames: Tensor, num_tokens: Tensor) -> Tensor:
    """Return the row of each frame's first cell in the logits seen as a matrix, (N * T,)."""
    if logits.dim() == 4:
        if len(logits) != len(num_frames):
            raise ValueError(f"`logits` hold {len(logits)} utterances, but `logit_lengths` {len(num_frames)}.")
        return torch.arange(len(logits) * T, device="cpu") * logits.shape[2]
    sizes = num_frames * (num_tokens + 1)
    if int(sizes.sum()) != len(logits):
        raise ValueError(
            f"Packed `logits` must have a row for each of the sum(T * (U+1)) = {int(sizes.sum())} cells, but have "
            f"{len(logits)} rows."
        )
    t = torch.arange(T, device=num_tokens.device)
    return (t * (num_tokens + 1)[:, None] + (sizes.cumsum(0) - sizes)[:, None]).flatten()
