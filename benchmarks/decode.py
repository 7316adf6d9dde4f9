#!/usr/bin/env python3
"""Time of the searches on one encoder output, against the tutorial's: Python lists, a wait per frame.

    python benchmarks/decode.py [--device cuda] [--threads 1 2] [--vocab-size 4336] [--batch-size 1 4 16 64]
    python benchmarks/decode.py --checkpoint demo/model.pt --manifest-dir demo/data/fbank

Without a checkpoint, decoder and joiner have the full model's sizes and random weights, sharpened until about every
eighth frame says a symbol. The slow searches come in two forms: one utterance at a time, as icefall did when the
tutorial was written (March 2022), and batched over utterances, as it does now. The gate: ours must say what the
slow ones say. Then all take turns, and medians are printed. "bf16" multiplies in bfloat16 and is not held to the gate;
how many utterances it says otherwise is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from about import about, print_about

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.model.decoder import StatelessDecoder
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.joiner import Joiner
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.ops.subsampling import Subsampling

WIDTH, BEAM, NUM_FRAMES = 512, 4, 150


def random_model(vocab_size: int) -> Transducer:
    """Return a random decoder and joiner with an identity encoder."""
    decoder, joiner = StatelessDecoder(vocab_size, WIDTH, 0, 2), Joiner(WIDTH, vocab_size)
    with torch.no_grad():
        joiner.output_linear.weight *= 8
        joiner.output_linear.bias[0] += 13.5
    encoder = torch.nn.Identity()
    encoder.subsampling = Subsampling(factor=4, min_frames=7)  # pyright: ignore[reportAttributeAccessIssue]
    return Transducer(encoder, decoder, joiner)  # pyright: ignore[reportArgumentType]


@torch.inference_mode()
def slow_greedy(model: Transducer, encoder_out: torch.Tensor, lens: torch.Tensor) -> list[list[int]]:
    """Greedy search over all utterances at once, with the emitted tokens in Python lists."""
    said = [[0] * model.context_size for _ in lens]
    decoder_out = model.decoder(torch.tensor(said, device=encoder_out.device))[:, 0]
    for t in range(int(lens.max())):
        running = [n for n, num_frames in enumerate(lens.tolist()) if t < num_frames]
        symbols = model.join(encoder_out[running, t], decoder_out[running]).argmax(1).tolist()
        for n, symbol in zip(running, symbols, strict=True):
            if symbol != 0:
                said[n].append(symbol)
        if any(symbols):
            contexts = torch.tensor([tokens[-model.context_size :] for tokens in said], device=encoder_out.device)
            decoder_out = model.decoder(contexts)[:, 0]
    return [tokens[model.context_size :] for tokens in said]


@torch.inference_mode()
def slow_modified_beam(model: Transducer, encoder_out: torch.Tensor, lens: torch.Tensor) -> list[list[int]]:
    """Modified beam search, batched over utterances and hypotheses; the beams are dicts with strings as keys."""
    device, size = encoder_out.device, model.context_size
    beams = [{"": ([0] * size, 0.0)} for _ in lens]
    for t in range(int(lens.max())):
        running = [n for n, num_frames in enumerate(lens.tolist()) if t < num_frames]
        pairs = [(n, tokens, log_prob) for n in running for tokens, log_prob in beams[n].values()]
        contexts = torch.tensor([tokens[-size:] for _, tokens, _ in pairs], device=device)
        frames = encoder_out[torch.tensor([n for n, _, _ in pairs], device=device), t]
        log_probs = model.join(frames, model.decoder(contexts)[:, 0]).log_softmax(-1)
        log_probs += torch.tensor([[log_prob] for _, _, log_prob in pairs], device=device)
        start = 0
        for n in running:
            own = [tokens for tokens, _ in beams[n].values()]
            values, places = log_probs[start : start + len(own)].flatten().topk(BEAM)
            start += len(own)
            new: dict[str, tuple[list[int], float]] = {}
            for value, place in zip(values.tolist(), places.tolist(), strict=True):
                parent, symbol = divmod(place, log_probs.shape[1])
                tokens = own[parent] if symbol == 0 else [*own[parent], symbol]
                key = "_".join(map(str, tokens))
                if key in new:
                    value = torch.logaddexp(torch.tensor(new[key][1]), torch.tensor(value)).item()
                new[key] = (tokens, value)
            beams[n] = new
    best = (max(beam.values(), key=lambda pair: pair[1] / len(pair[0])) for beam in beams)
    return [tokens[size:] for tokens, _ in best]


def one_by_one(find: Callable) -> Callable:
    """Wrap a slow search to decode one utterance at a time."""
    return lambda model, encoder_out, lens: [
        found
        for n, num_frames in enumerate(lens.tolist())
        for found in find(model, encoder_out[n : n + 1, :num_frames], lens[n : n + 1])
    ]


def ours(find: Callable, **options: int) -> Callable:
    """Return a function that gives the best tokens of a search of this package."""

    def first(model: FrozenTransducer, encoder_out: torch.Tensor, lens: torch.Tensor) -> list[list[int]]:
        found = find(model, encoder_out, lens, **options)
        return [list((one[0] if isinstance(one, list) else one).tokens) for one in found]

    return first


METHODS = {
    "greedy": (slow_greedy, ours(greedy_search)),
    f"modified beam {BEAM}": (slow_modified_beam, ours(modified_beam_search, beam_size=BEAM)),
    f"beam {BEAM}": (None, ours(beam_search, beam_size=BEAM)),
}


def encoder_outputs(arguments: argparse.Namespace) -> tuple[Transducer, torch.Tensor, torch.Tensor]:
    """Return model, encoder_out (N, T, D) and lens (N,): random, or of a test set."""
    torch.manual_seed(0)
    most = max(arguments.batch_size)
    if arguments.checkpoint is None:
        return (
            random_model(arguments.vocab_size),
            torch.randn(most, NUM_FRAMES, WIDTH),
            torch.linspace(75, 150, most).long(),
        )
    from stateless_transducer.checkpoint import load_checkpoint
    from stateless_transducer.data.batches import evaluation_batches, load_index
    from stateless_transducer.data.config import DataConfig

    checkpoint = load_checkpoint(arguments.checkpoint)
    data = DataConfig(manifest_dir=arguments.manifest_dir, max_duration=1e6, num_workers=0)
    index = load_index(data.manifest_dir, data.prefix, "test")
    (batch,) = evaluation_batches(index, checkpoint.token_table, data, numbers=np.arange(min(most, len(index))))
    model = checkpoint.model()
    with torch.inference_mode():
        return model, *model.encode(batch.features, batch.feature_lens)


def contestants(model: Transducer) -> dict[str, dict[str, Callable]]:
    """Return method -> implementation -> search of (encoder_out, lens)."""
    exact, narrow = FrozenTransducer(model), FrozenTransducer(model, dtype=torch.bfloat16)
    found = {}
    for method, (slow, fast) in METHODS.items():
        own = {"ours": lambda *given, fast=fast: fast(exact, *given)}
        own["ours bf16"] = lambda *given, fast=fast: fast(narrow, *given)
        if slow is not None:
            own["slow, one by one"] = lambda *given, slow=slow: one_by_one(slow)(model, *given)
            own["slow, batched"] = lambda *given, slow=slow: slow(model, *given)
        found[method] = own
    return found


def check(searches: dict[str, dict[str, Callable]], given: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Exit unless all implementations agree."""
    for method, own in searches.items():
        said = {who: find(*given) for who, find in own.items()}
        for who in said.keys() & {"slow, one by one", "slow, batched"}:
            if said[who] != said["ours"]:
                sys.exit(f"Gate: {method} does not say what the slow one ({who}) says.")
        unlike = sum(a != b for a, b in zip(said["ours"], said["ours bf16"], strict=True))
        print(f"{method}: {sum(map(len, said['ours']))} tokens; bf16 says {unlike} of {len(given[1])} otherwise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--vocab-size", type=int, default=4336)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--manifest-dir", type=Path, default=Path("demo/data/fbank"))
    arguments = parser.parse_args()
    print_about(about(arguments.device))
    model, encoder_out, lens = encoder_outputs(arguments)
    model, encoder_out = model.to(arguments.device).eval(), encoder_out.to(arguments.device)
    searches = contestants(model)
    check(searches, (encoder_out, lens.to(arguments.device)))
    print("| N | threads | method | who | ms | spread | utterances/s | slow batched / it | one by one / it |")
    print("|---|---|---|---|---|---|---|---|---|")
    for batch_size in arguments.batch_size:
        # utterances at equal steps of length
        chosen = torch.linspace(0, len(lens) - 1, batch_size).long()
        given = (encoder_out[chosen, : int(lens[chosen].max())].contiguous(), lens[chosen].to(arguments.device))
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for method, own in searches.items():
                report(batch_size, threads, method, timed(own, given, arguments.repeats))


def timed(own: dict[str, Callable], given: tuple[torch.Tensor, torch.Tensor], repeats: int) -> dict[str, list[float]]:
    """Return the milliseconds of each implementation; the implementations take turns."""
    times: dict[str, list[float]] = {who: [] for who in own}
    for _ in range(repeats):
        for who, find in own.items():
            start = time.perf_counter()
            find(*given)
            times[who].append(1000 * (time.perf_counter() - start))
    return times


def report(batch_size: int, threads: int, method: str, times: dict[str, list[float]]) -> None:
    """Print rows of the table."""
    medians = {who: statistics.median(own) for who, own in times.items()}
    for who, own in times.items():
        ratios = [
            f"{medians[slow] / medians[who]:.1f}" if slow in medians and "ours" in who else ""
            for slow in ("slow, batched", "slow, one by one")
        ]
        print(
            f"| {batch_size} | {threads} | {method} | {who} | {medians[who]:.1f} | {min(own):.1f}..{max(own):.1f} "
            f"| {1000 * batch_size / medians[who]:.0f} | {' | '.join(ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
