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
from dataclasses import asdict
from pathlib import Path

import torch
from about import about, print_about
from loss_problems import (
    ANCHORS,
    CPU_CASES,
    CPU_IMPLEMENTATIONS,
    GPU_CASES,
    GPU_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    LARGE_CASES,
    LEAVES,
    MEMORY_CASES,
    WIDTH,
    Case,
    batch_shapes,
    make_problem,
    ours,
    ours_bfloat16,
)


def run_once(implementation: str, case: Case, problem: dict) -> torch.Tensor:
    for name in LEAVES:
        problem[name].grad = None
    loss = IMPLEMENTATIONS[implementation](problem, case.topology)
    loss.backward()
    return loss.detach()


def serve(implementation: str, case: Case, shapes: Path | None, threads: int) -> None:
    """Run one implementation in a process: per line read, one run and one line of JSON."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    problem = make_problem(case, shapes, "cpu")
    warm_up(implementation, case)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = memory("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        loss = run_once(implementation, case, problem)
        times = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps({**times, "mib": (memory("VmHWM") - before) / 1024, "loss": loss.item()}), flush=True)


def warm_up(implementation: str, case: Case) -> None:
    """Warm up on a problem so small that no freed memory can be reused."""
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
    """Return a value of /proc/self/status in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}.")


def check_gradients(device: str) -> None:
    """Exit unless fp32 gradients of the exact implementations are within 1e-5 of the reference in float64."""
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
    """Return the number of lattice cells and the shares on a path and visited by the backward pass."""
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
    """Return the results of all implementations, whose processes take turns."""
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
    """Return medians and the spread of the time; the memory of the first run, since later runs reuse freed memory."""
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
    # on one thread, CPU seconds do not depend on other load of the machine
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
    """Print errors of nll and gradients against the reference in float64, by precision and bound of skipping."""
    from stateless_transducer.ops import joint_loss

    joint_loss._is_emulated = lambda _: False  # measure accuracy, not time
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
    """Time alpha, beta and occupations alone, on the random batch of 30."""
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
