#!/usr/bin/env python3
"""Where the time of a training step goes: encoder, loss, backward pass, optimiser.

    python benchmarks/train_step.py [--full] [--threads 1 2]

Correctness first: the loss of the batch must be that of its utterances one by one. Then medians over repeats, the
numbers of threads alternating, since machines are noisy.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import time
from datetime import date

import torch

from stateless_transducer.commands.demo import SIZES
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import build_model

PARTS = ("encoder", "loss", "backward", "optimiser")


def make_batch(num_utterances: int, vocab_size: int):
    """Utterances of about two seconds with eleven tokens, as the demo's."""
    lens = torch.linspace(170, 230, num_utterances).long()
    features = torch.randn(num_utterances, int(lens.max()), 80)
    for n, length in enumerate(lens.tolist()):
        features[n, length:] = PADDING_VALUE
    return features, lens, torch.randint(1, vocab_size, (num_utterances, 11)), torch.full((num_utterances,), 11)


def step(model, optimizer, batch) -> dict[str, float]:
    features, lens, tokens, token_lens = batch
    marks = [time.perf_counter()]
    encoder_out, encoder_out_lens = model.encode(features, lens)
    marks.append(time.perf_counter())
    loss = model.nll(encoder_out, encoder_out_lens, tokens, token_lens).mean()
    marks.append(time.perf_counter())
    optimizer.zero_grad()
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    return {name: 1000 * (b - a) for name, a, b in zip(PARTS, marks, marks[1:], strict=False)}


def check(model, batch) -> None:
    features, lens, tokens, token_lens = batch
    with torch.no_grad():
        together = model(*batch)
        alone = [
            model(features[n : n + 1, : lens[n]], lens[n : n + 1], tokens[n : n + 1], token_lens[n : n + 1])
            for n in range(len(lens))
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the full model instead of the demo's")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    config = ModelConfig(vocab_size=4336, dropout=0.0) if arguments.full else SIZES
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = make_batch(arguments.utterances, config.vocab_size)
    check(model, batch)
    times: dict[int, list[dict[str, float]]] = {threads: [] for threads in arguments.threads}
    for repeat in range(arguments.repeats + 2):
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            measured = step(model, optimizer, batch)
            if repeat >= 2:
                times[threads].append(measured)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"{date.today()}  commit {commit}  torch {torch.__version__}  {platform.machine()}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {arguments.utterances} utterances of 2 s")
    print("threads  " + "  ".join(f"{part:>9s}" for part in PARTS) + "   total ms (lowest, highest)")
    for threads, rows in times.items():
        totals = sorted(sum(row.values()) for row in rows)
        cells = "  ".join(f"{statistics.median(row[part] for row in rows):9.1f}" for part in PARTS)
        print(f"{threads:7d}  {cells}   {statistics.median(totals):.1f} ({totals[0]:.1f}, {totals[-1]:.1f})")


if __name__ == "__main__":
    main()
