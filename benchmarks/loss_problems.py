"""Batches and loss implementations that `loss.py` compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

WIDTH = 512


@dataclass(frozen=True)
class Case:
    """One batch, its scores and its loss."""

    name: str
    batch: str
    vocab_size: int
    scores: str = "random"
    """Kind of scores: "random" as at the start of training, "trained" with an artificial peaked posterior."""
    topology: str = "standard"


CPU_CASES = [
    Case("libri x4, V 500", "libri4", 500),
    Case("libri x4, V 500, trained-like", "libri4", 500, "trained"),
    Case("aishell-like x16, V 4336", "aishell16", 4336),
    Case("aishell-like x16, V 4336, trained-like", "aishell16", 4336, "trained"),
    Case("aishell-like x16, V 4336, modified", "aishell16", 4336, "random", "modified"),
    Case("aishell-like x16, V 4336, modified, trained-like", "aishell16", 4336, "trained", "modified"),
    Case("libri x2, V 4336", "libri2", 4336),
    Case("libri x2, V 4336, trained-like", "libri2", 4336, "trained"),
]
MEMORY_CASES = [Case(f"libri x2, V {size}, trained-like", "libri2", size, "trained") for size in (500, 4336, 20000)]
LARGE_CASES = [
    Case("libri random 30, V 500", "libri30", 500),
    Case("libri random 30, V 500, trained-like", "libri30", 500, "trained"),
    Case("libri sorted 10k frames, V 500", "libri10k", 500),
]
GPU_CASES = [
    Case("libri random 30, V 500", "libri30", 500),
    Case("libri random 30, V 500, trained-like", "libri30", 500, "trained"),
    Case("libri sorted 10k frames, V 500", "libri10k", 500),
    Case("libri sorted 10k frames, V 500, trained-like", "libri10k", 500, "trained"),
    Case("aishell-like 250 s, V 4336, modified", "aishell250s", 4336, "random", "modified"),
    Case("aishell-like 250 s, V 4336, modified, trained-like", "aishell250s", 4336, "trained", "modified"),
]


def batch_shapes(batch: str, path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of encoder frames and tokens per utterance."""
    rng = np.random.default_rng(20220101)
    if batch == "accuracy":
        return np.array([300, 220, 120]), np.array([60, 45, 30])
    if batch == "gate":
        return np.array([31, 47, 20]), np.array([9, 12, 0])
    if batch.startswith("aishell"):
        # 25 frames and about 3.2 characters a second, sentences of 3 to 7 seconds
        num = 16 if batch == "aishell16" else 50
        seconds = rng.uniform(3, 7, num)
        return (25 * seconds).astype(int), np.round(3.2 * seconds).astype(int)
    if path is not None:
        shapes = np.load(path)
        frames, tokens = shapes["T"].astype(int), shapes["U"].astype(int)
    else:
        seconds = rng.triangular(4, 14.5, 16.5, 20000)
        frames, tokens = (25 * seconds).astype(int), (25 * seconds * rng.uniform(0.19, 0.26, 20000)).astype(int)
    if batch == "libri10k":
        order = np.argsort(frames)[::-1]
        order = order[len(order) // 3 :]
        return frames[order][: 10000 // frames[order[0]]], tokens[order][: 10000 // frames[order[0]]]
    chosen = rng.choice(len(frames), int(batch.removeprefix("libri")), replace=False)
    return frames[chosen], tokens[chosen]


def make_problem(case: Case, shapes: Path | None, device: str, dtype: torch.dtype = torch.float32) -> dict:
    """Return arguments of the loss, drawn from a seed.

    "trained": each token has a frame of its own, whose encoder output lies near the token's own direction, a weaker
    echo on its neighbors, and a decoder output that turns away from the token just said; all else is left to the
    bias, which says blank.
    """
    lens, token_lens = (torch.from_numpy(each) for each in batch_shapes(case.batch, shapes))
    N, T, U, V = len(lens), int(lens.max()), int(token_lens.max()), case.vocab_size
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = torch.randint(1, V, (N, U), generator=generator)
    if case.scores == "random":
        encoder_out, decoder_out = 0.5 * normal(N, T, WIDTH), 0.5 * normal(N, U + 1, WIDTH)
        # initialization of torch.nn.Linear
        weight, bias = ((2 * torch.rand(*shape, generator=generator) - 1) / WIDTH**0.5 for shape in ((V, WIDTH), (V,)))
    else:
        directions = normal(V, WIDTH).sign()
        encoder_out, decoder_out = 0.3 * normal(N, T, WIDTH), 0.3 * normal(N, U + 1, WIDTH)
        weight, bias = directions * ((np.log(V) + 9) / 0.7 / WIDTH), torch.zeros(V)
        bias[0] = np.log(V) + 4
        for n, (num_frames, num_tokens) in enumerate(zip(lens.tolist(), token_lens.tolist(), strict=True)):
            frames = torch.linspace(1, num_frames - 2, max(num_tokens, 1)).long()[:num_tokens]
            own = directions[tokens[n, :num_tokens]]
            for offset, strength in ((-1, 0.6), (0, 1.0), (1, 0.6)):
                encoder_out[n].index_add_(0, frames + offset, strength * own)
            decoder_out[n, 1 : num_tokens + 1] -= 0.9 * own
    floats = {"encoder_out": encoder_out, "decoder_out": decoder_out, "weight": weight, "bias": bias}
    problem = {name: value.to(device, dtype).requires_grad_() for name, value in floats.items()}
    return {**problem, "encoder_out_lens": lens, "tokens": tokens.to(device), "token_lens": token_lens}


def packed_logits(problem: dict) -> torch.Tensor:
    """Return packed logits (sum of T * (U+1), V), as in optimized_transducer's recipe."""
    hidden = []
    for n, (t, u) in enumerate(zip(problem["encoder_out_lens"].tolist(), problem["token_lens"].tolist(), strict=True)):
        pairs = problem["encoder_out"][n, :t, None] + problem["decoder_out"][n, None, : u + 1]
        hidden.append(pairs.reshape(-1, WIDTH))
    return torch.nn.functional.linear(torch.tanh(torch.cat(hidden)), problem["weight"], problem["bias"])


def ours(problem: dict, topology: str, **options) -> torch.Tensor:
    from stateless_transducer import joint_transducer_loss

    max_symbols = 1 if topology == "modified" else None
    return joint_transducer_loss(**problem, max_symbols_per_frame=max_symbols, **options).sum()


def ours_bfloat16(problem: dict, topology: str, **options) -> torch.Tensor:
    with torch.autocast(problem["weight"].device.type, torch.bfloat16):
        return ours(problem, topology, **options)


def materialized(problem: dict, topology: str) -> torch.Tensor:
    """Exact loss on stored packed logits: optimized_transducer's algorithm, reimplemented."""
    from stateless_transducer import transducer_loss

    lens = problem["encoder_out_lens"], problem["token_lens"]
    is_modified = topology == "modified"
    return transducer_loss(
        packed_logits(problem), problem["tokens"], *lens, reduction="sum", one_sym_per_frame=is_modified
    )


def materialized_bfloat16(problem: dict, topology: str) -> torch.Tensor:
    with torch.autocast(problem["weight"].device.type, torch.bfloat16):
        return materialized(problem, topology)


def optimized_transducer(problem: dict, topology: str) -> torch.Tensor:
    from optimized_transducer.transducer_loss import TransducerLossFunction

    return TransducerLossFunction.apply(
        packed_logits(problem),
        problem["tokens"].int(),
        problem["encoder_out_lens"].int(),
        problem["token_lens"].int(),
        0,
        False,
        topology == "modified",
        "sum",
    )


def fast_rnnt_pruned(problem: dict, topology: str) -> torch.Tensor:
    """Pruned loss: a band of five rows, chosen by a linear joiner (projections of the same outputs)."""
    import fast_rnnt

    N = len(problem["encoder_out_lens"])
    boundary = torch.zeros(N, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = problem["token_lens"], problem["encoder_out_lens"]
    rnnt_type = "modified" if topology == "modified" else "regular"
    am = torch.nn.functional.linear(problem["encoder_out"], problem["weight"])
    lm = torch.nn.functional.linear(problem["decoder_out"], problem["weight"])
    common = {"symbols": problem["tokens"], "termination_symbol": 0, "boundary": boundary, "rnnt_type": rnnt_type}
    _, (px_grad, py_grad) = fast_rnnt.rnnt_loss_smoothed(
        lm=lm, am=am, lm_only_scale=0.25, reduction="sum", return_grad=True, **common
    )
    ranges = fast_rnnt.get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=5)
    am_pruned, lm_pruned = fast_rnnt.do_rnnt_pruning(
        am=problem["encoder_out"], lm=problem["decoder_out"], ranges=ranges
    )
    logits = torch.nn.functional.linear(torch.tanh(am_pruned + lm_pruned), problem["weight"], problem["bias"])
    return fast_rnnt.rnnt_loss_pruned(logits=logits, ranges=ranges, reduction="sum", **common)


IMPLEMENTATIONS = {
    "optimized_transducer": optimized_transducer,
    "fast_rnnt pruned": fast_rnnt_pruned,
    "torch, packed logits": materialized,
    "torch, packed logits, bf16": materialized_bfloat16,
    "torch, padded logits": lambda problem, topology: ours(problem, topology, impl="reference"),
    "chunked, no skipping": lambda problem, topology: ours(problem, topology, impl="chunked", skip_below=0.0),
    "chunked": lambda problem, topology: ours(problem, topology, impl="chunked"),
    "chunked, bf16": lambda problem, topology: ours_bfloat16(problem, topology, impl="chunked"),
    "triton": lambda problem, topology: ours(problem, topology, impl="triton"),
    "triton, bf16": lambda problem, topology: ours_bfloat16(problem, topology, impl="triton"),
}
ANCHORS = ("optimized_transducer", "fast_rnnt pruned")
CPU_IMPLEMENTATIONS = (*ANCHORS, "torch, packed logits", "torch, padded logits", "chunked, no skipping", "chunked")
GPU_IMPLEMENTATIONS = (
    "torch, packed logits",
    "torch, packed logits, bf16",
    "chunked, no skipping",
    "chunked",
    "chunked, bf16",
    "triton",
    "triton, bf16",
)
LEAVES = ("encoder_out", "decoder_out", "weight", "bias")
