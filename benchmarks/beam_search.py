#!/usr/bin/env python3
"""CPU time of the two implementations of Graves' beam search: one utterance at a time in Python, and arrays.

    python benchmarks/beam_search.py [--vocab-size 500 4336] [--batch-size 1 16] [--beam-size 4 8]

Both search the same random encoder outputs with the same random model (see benchmarks/decode.py). The gate: they must
return the same hypotheses. They take turns on one thread; medians of the process's CPU seconds are printed, which other
programs on the machine disturb less than wall-clock time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from about import about, print_about
from decode import NUM_FRAMES, WIDTH, random_model

from stateless_transducer.decoding.beam_arrays import search_in_arrays
from stateless_transducer.decoding.beam_walks import search_by_walks
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.options import PLAIN
from stateless_transducer.model.frozen import FrozenTransducer

SEARCHES = {"python": search_by_walks, "arrays": search_in_arrays}


def measure(vocab_size: int, batch_size: int, beam_size: int, repeats: int) -> None:
    """Check that both implementations agree, time them, and print a row of the table."""
    torch.manual_seed(0)
    model = FrozenTransducer(random_model(vocab_size).eval())
    encoder_out = torch.randn(batch_size, NUM_FRAMES, WIDTH)
    lens = torch.linspace(NUM_FRAMES, NUM_FRAMES / 2, batch_size).long()
    arguments = (*search_inputs(model, encoder_out, lens), beam_size, PLAIN, None)
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    tokens: dict[str, list[set[tuple[int, ...]]]] = {}
    for _ in range(repeats):
        for name, search in SEARCHES.items():
            start = time.process_time()
            hypotheses = search(*arguments)
            seconds[name].append(time.process_time() - start)
            tokens[name] = [{hypothesis.tokens for hypothesis in beam} for beam in hypotheses]
    if tokens["python"] != tokens["arrays"]:
        sys.exit(f"Gate: hypotheses differ for V={vocab_size}, N={batch_size}, K={beam_size}.")
    python, arrays = (statistics.median(seconds[name]) for name in SEARCHES)
    spreads = (f"{min(times):.2f}..{max(times):.2f}" for times in seconds.values())
    print(
        f"| {vocab_size} | {batch_size} | {beam_size} | {python:.2f} | {arrays:.2f} | {arrays / python:.1f} "
        f"| {' | '.join(spreads)} |",
        flush=True,
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[500, 4336])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--beam-size", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_about(about("cpu"))
    print("| V | N | K | Python, s | arrays, s | ratio | spread, Python | spread, arrays |")
    print("|---|---|---|---|---|---|---|---|")
    for vocab_size in arguments.vocab_size:
        for batch_size in arguments.batch_size:
            for beam_size in arguments.beam_size:
                measure(vocab_size, batch_size, beam_size, arguments.repeats)


if __name__ == "__main__":
    main()
