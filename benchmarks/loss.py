#!/usr/bin/env python3
"""Time and memory of the transducer loss: forward and backward through joiner, linear layer and loss.

    python benchmarks/loss.py --shapes shapes.npz [--anchors-python env/bin/python] [--output results.json]
    python benchmarks/loss.py --device cuda [--shapes shapes.npz]

`--shapes` is a file of (T, U) of real utterances (arrays "T" and "U"; benchmarks/README.md says where it comes from);
without it, lengths like LibriSpeech's are drawn. `--anchors-python` is an environment with optimized_transducer and
fast_rnnt built for the same torch. On a CPU, every implementation runs in a process of its own, and the processes take
turns; on a GPU all run in this one.

The correctness gate comes first: every exact implementation must give the same nll and, where small enough for a
reference in float64, the same gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from about import about, print_about

WIDTH = 512


@dataclass(frozen=True)
class Case:
    """One batch, its scores and its loss."""

    name: str
    batch: str
    vocab_size: int
    scores: str = "random"
    """"random" as at the start of training; "trained" with a peaked posterior built by hand."""
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
    """Encoder frames and tokens of each utterance."""
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
    """Arguments of the loss, drawn from a seed.

    "trained": each token has a frame of its own, whose encoder output lies near the token's own direction, a weaker
    echo on its neighbours, and a decoder output that turns away from the token just said; all else is left to the
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
        # as torch.nn.Linear begins
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
    """(sum of T * (U+1), V), as optimized_transducer's recipe makes them."""
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


def materialised(problem: dict, topology: str) -> torch.Tensor:
    """optimized_transducer's algorithm in our own code: packed logits, exact, kept."""
    from stateless_transducer import transducer_loss

    lens = problem["encoder_out_lens"], problem["token_lens"]
    is_modified = topology == "modified"
    return transducer_loss(
        packed_logits(problem), problem["tokens"], *lens, reduction="sum", one_sym_per_frame=is_modified
    )


def materialised_bfloat16(problem: dict, topology: str) -> torch.Tensor:
    with torch.autocast(problem["weight"].device.type, torch.bfloat16):
        return materialised(problem, topology)


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
    """Not exact: a band of five rows, found with a linear joiner (here the projections of the same outputs)."""
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
    "torch, packed logits": materialised,
    "torch, packed logits, bf16": materialised_bfloat16,
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


def run_once(implementation: str, case: Case, problem: dict) -> torch.Tensor:
    for name in LEAVES:
        problem[name].grad = None
    loss = IMPLEMENTATIONS[implementation](problem, case.topology)
    loss.backward()
    return loss.detach()


def serve(implementation: str, case: Case, shapes: Path | None, threads: int) -> None:
    """A process of one implementation: runs when it reads a line, answers with one line of JSON."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    problem = make_problem(case, shapes, "cpu")
    warm_up(implementation, case)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        loss = run_once(implementation, case, problem)
        times = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({**times, "mib": (memory("VmHWM") - before) / 1024, "loss": loss.item()}), flush=True)


def warm_up(implementation: str, case: Case) -> None:
    """Load what the first call loads, on a problem that leaves no memory to be used again."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    problem = {
        "encoder_out": leaf(1, 4, WIDTH),
        "decoder_out": leaf(1, 3, WIDTH),
        "weight": leaf(8, WIDTH),
        "bias": leaf(8),
        "encoder_out_lens": torch.tensor([4]),
        "tokens": torch.tensor([[1, 2]]),
        "token_lens": torch.tensor([2]),
    }
    run_once(implementation, case, problem)


def memory(field: str) -> int:
    """KiB, of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}.")


def check_gradients(device: str) -> None:
    """The gate: fp32 gradients of the exact implementations within 1e-5 of the reference in float64."""
    for topology in ("standard", "modified"):
        for scores in ("random", "trained"):
            case = Case("gate", "gate", 300, scores, topology)
            exact = make_problem(case, None, device, torch.float64)
            ours(exact, topology, impl="reference").backward()
            for name in available(device):
                if name in ANCHORS or "bf16" in name:
                    continue
                problem = make_problem(case, None, device)
                run_once(name, case, problem)
                for leaf in LEAVES:
                    truth = exact[leaf].grad
                    error = ((problem[leaf].grad - truth).norm() / truth.norm()).item()
                    if not error < 1e-5:
                        sys.exit(f"Gate: {name}, {topology}, {scores}: gradient of {leaf} is off by {error:.1e}.")
    print("gate: fp32 gradients of all exact implementations are within 1e-5 of float64", flush=True)


def available(device: str) -> tuple[str, ...]:
    return CPU_IMPLEMENTATIONS if device == "cpu" else GPU_IMPLEMENTATIONS


def shares(case: Case, problem: dict) -> dict[str, float]:
    """Cells of the rectangles, and what share of them lies on a path, and is visited by the backward pass."""
    from stateless_transducer.ops.cells import list_cells
    from stateless_transducer.ops.joiner_scores import JoinerInputs, arc_scores
    from stateless_transducer.ops.lattice import sum_over_paths

    lens, token_lens, device = problem["encoder_out_lens"], problem["token_lens"], problem["weight"].device
    cells = list_cells(lens, token_lens, problem["encoder_out"].shape[1], case.topology, device)
    tokens = torch.nn.functional.pad(problem["tokens"], (0, 1))
    with torch.no_grad():
        inputs = JoinerInputs(
            problem["encoder_out"], problem["decoder_out"], tokens, problem["weight"], problem["bias"], 0
        )
        sums = sum_over_paths(cells, *arc_scores(inputs, cells)[:2])
    total = int((lens * (token_lens + 1)).sum())
    kept = int((sums.blank + sums.symbol > 1e-6).sum())
    return {"cells": total, "on_a_path": len(cells) / total, "kept": kept / total}


def on_cpu(case: Case, arguments: argparse.Namespace) -> dict:
    """Results of all implementations, whose processes take turns."""
    python_of = {name: arguments.anchors_python if name in ANCHORS else sys.executable for name in CPU_IMPLEMENTATIONS}
    workers = {}
    for name, python in python_of.items():
        if python is None or (arguments.only and name not in arguments.only):
            continue
        command = [str(python), __file__, "--serve", json.dumps({"implementation": name, "case": asdict(case)})]
        command += ["--threads", str(arguments.threads)]
        command += ["--shapes", str(arguments.shapes)] if arguments.shapes else []
        workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found: dict[str, list[dict]] = {name: [] for name in workers}
    for _ in range(arguments.repeats):
        for name, worker in workers.items():
            worker.stdin.write("run\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                sys.exit(f"{name} died on {case.name}.")
            found[name].append(json.loads(line))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {name: summary(runs) for name, runs in found.items()}


def on_gpu(case: Case, arguments: argparse.Namespace) -> dict:
    problem = make_problem(case, arguments.shapes, "cuda")
    found: dict[str, list[dict]] = {
        name: [] for name in GPU_IMPLEMENTATIONS if not arguments.only or name in arguments.only
    }
    for repeat in range(arguments.repeats + 2):
        for name, runs in found.items():
            for leaf in LEAVES:
                problem[leaf].grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            loss = run_once(name, case, problem)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            mib = (torch.cuda.max_memory_allocated() - before) / 2**20
            if repeat >= 2:
                runs.append({"seconds": seconds, "cpu_seconds": 0.0, "mib": mib, "loss": loss.item()})
    return {name: summary(runs) for name, runs in found.items()}


def summary(runs: list[dict]) -> dict:
    """Medians, and the spread of the time; the memory is the first run's, since later ones find freed memory again."""
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
        "mib": runs[0]["mib"],
        "loss": runs[0]["loss"],
    }


def check_losses(case: Case, results: dict) -> None:
    exact = {name: result["loss"] for name, result in results.items() if name != "fast_rnnt pruned"}
    wanted = exact.get("chunked", next(iter(exact.values())))
    for name, loss in exact.items():
        bound = 2e-2 if "bf16" in name else 1e-5
        if not abs(loss - wanted) <= bound * abs(wanted):
            sys.exit(f"Gate: {case.name}: {name} has loss {loss}, chunked {wanted}.")


def show(case: Case, share: dict, results: dict, device: str) -> None:
    # on one thread, CPU seconds are not disturbed by what else the machine does
    key = "seconds" if device == "cuda" else "cpu_seconds"
    unit, factor = ("s", 1) if device == "cpu" else ("ms", 1000)
    base = results.get("optimized_transducer") or next(iter(results.values()))
    print(
        f"\n{case.name}: {share['cells']} cells, {100 * share['on_a_path']:.0f} % on a path, "
        f"{100 * share['kept']:.1f} % kept\n"
        f"| {'':28} | {unit:>8} | spread          | CPU s  |      MiB | time ratio | memory ratio |\n"
        f"|{'-' * 30}|{'-' * 10}|{'-' * 17}|{'-' * 8}|{'-' * 10}|{'-' * 12}|{'-' * 14}|"
    )
    for name, result in results.items():
        spread = f"{factor * result['fastest']:.3g}..{factor * result['slowest']:.3g}"
        print(
            f"| {name:28} | {factor * result['seconds']:8.3f} | {spread:15} | {result['cpu_seconds']:6.2f} "
            f"| {result['mib']:8.1f} | {result[key] / base[key]:10.2f} "
            f"| {result['mib'] / base['mib']:12.3f} |",
            flush=True,
        )


def accuracy(arguments: argparse.Namespace) -> None:
    """Errors of nll and gradients against the reference in float64, by precision and bound of skipping."""
    from stateless_transducer.ops import joint_loss

    joint_loss._is_emulated = lambda _: False  # accuracy is asked for here, not time
    device, ways = arguments.device, {}
    for bound in (0.0, 1e-9, 1e-6, 1e-4, 1e-3):
        ways[f"float64, skip {bound:g}"] = (torch.float64, {"skip_below": bound}, False)
    for bound in (0.0, 1e-6):
        ways[f"float32, skip {bound:g}"] = (torch.float32, {"skip_below": bound}, False)
    ways["bfloat16 autocast, skip 1e-06"] = (torch.float32, {"skip_below": 1e-6}, True)
    for scores in ("random", "trained"):
        case = Case("accuracy", "accuracy", 500, scores)
        exact = make_problem(case, arguments.shapes, device, torch.float64)
        truth = ours(exact, "standard", impl="reference")
        truth.backward()
        print(f"\n{scores}\n| {'':30} | nll     | " + " | ".join(f"{leaf:11}" for leaf in LEAVES) + " |")
        print("|" + "-" * 32 + "|" + "-" * 9 + "|" + ("-" * 13 + "|") * len(LEAVES))
        for name, (dtype, options, is_mixed) in ways.items():
            problem = make_problem(case, arguments.shapes, device, dtype)
            loss = (ours_bfloat16 if is_mixed else ours)(problem, "standard", **options)
            loss.backward()
            errors = [
                ((problem[leaf].grad - exact[leaf].grad).norm() / exact[leaf].grad.norm()).item() for leaf in LEAVES
            ]
            nll_error = abs(loss.item() - truth.item()) / truth.item()
            print(f"| {name:30} | {nll_error:7.0e} | " + " | ".join(f"{error:11.0e}" for error in errors) + " |")


def lattice_seconds(arguments: argparse.Namespace) -> None:
    """alpha, beta and occupations alone, of the random batch of 30."""
    from stateless_transducer.ops.cells import list_cells
    from stateless_transducer.ops.lattice import sum_over_paths

    lens, token_lens = (torch.from_numpy(each) for each in batch_shapes("libri30", arguments.shapes))
    device = torch.device(arguments.device)
    walks = {"plain": sum_over_paths}
    if device.type == "cuda":
        from stateless_transducer.ops.lattice_triton import sum_over_paths_triton

        walks["triton"] = sum_over_paths_triton
    for topology in ("standard", "modified"):
        cells = list_cells(lens, token_lens, int(lens.max()), topology, device)
        scores = [torch.randn(len(cells), device=device) - 2 for _ in range(2)]
        for name, walk in walks.items():
            times = []
            for _ in range(9):
                start = time.perf_counter()
                walk(cells, *scores).nll.cpu()
                times.append(1000 * (time.perf_counter() - start))
            median = statistics.median(times[2:])
            print(f"lattice alone, {name}, {topology}, batch of 30, {len(cells)} cells: {median:.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shapes", type=Path)
    parser.add_argument("--anchors-python", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default="usual", choices=("usual", "memory", "large", "accuracy"))
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    parser.add_argument("--only", nargs="*", help="only these implementations")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        task = json.loads(arguments.serve)
        serve(task["implementation"], Case(**task["case"]), arguments.shapes, arguments.threads)
        return
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    is_cpu = arguments.device == "cpu"
    if arguments.cases == "accuracy":
        accuracy(arguments)
        return
    check_gradients(arguments.device)
    lattice_seconds(arguments)
    cases = {"usual": CPU_CASES if is_cpu else GPU_CASES, "memory": MEMORY_CASES, "large": LARGE_CASES}[arguments.cases]
    facts = about(arguments.device, threads=arguments.threads)
    print_about(facts)
    rows = []
    for case in cases:
        if arguments.match not in case.name:
            continue
        results = on_cpu(case, arguments) if is_cpu else on_gpu(case, arguments)
        check_losses(case, results)
        share = shares(case, make_problem(case, arguments.shapes, arguments.device))
        show(case, share, results, arguments.device)
        rows.append({**asdict(case), **share, "results": results})
    if arguments.output:
        arguments.output.write_text(json.dumps({**facts, "cases": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
