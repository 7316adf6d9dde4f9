#!/usr/bin/env python3
"""Time of the searches on one encoder output, beside the tutorial's way: Python lists, a wait a frame.

    python benchmarks/decode.py [--device cuda] [--threads 1 2] [--vocab-size 4336] [--batch-size 16]

Decoder and joiner have the full model's sizes and random weights, sharpened until about every eighth frame says a
symbol. The gate: ours must say what the slow ones say. Then both take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.model.decoder import StatelessDecoder
from stateless_transducer.model.joiner import Joiner

WIDTH, BEAM = 512, 4


class Model(torch.nn.Module):
    """Decoder and joiner."""

    blank_id, context_size = 0, 2

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.decoder = StatelessDecoder(vocab_size, WIDTH, 0, self.context_size)
        self.joiner = Joiner(WIDTH, vocab_size)
        with torch.no_grad():
            self.joiner.output_linear.weight *= 8
            self.joiner.output_linear.bias[0] += 13.5

    def predict(self, contexts: torch.Tensor) -> torch.Tensor:
        return self.decoder.step(contexts)

    def join(self, encoder_out: torch.Tensor, decoder_out: torch.Tensor) -> torch.Tensor:
        return self.joiner(encoder_out, decoder_out)


@torch.inference_mode()
def slow_greedy(model: Model, encoder_out: torch.Tensor, lens: torch.Tensor) -> list[list[int]]:
    """One utterance and one frame at a time."""
    results = []
    for n, num_frames in enumerate(lens.tolist()):
        said = [0] * model.context_size
        decoder_out = model.decoder(torch.tensor([said], device=encoder_out.device))[:, 0]
        for t in range(num_frames):
            symbol = model.join(encoder_out[n, t : t + 1], decoder_out).argmax().item()
            if symbol != 0:
                said.append(symbol)
                context = torch.tensor([said[-model.context_size :]], device=encoder_out.device)
                decoder_out = model.decoder(context)[:, 0]
        results.append(said[model.context_size :])
    return results


@torch.inference_mode()
def slow_modified_beam(model: Model, encoder_out: torch.Tensor, lens: torch.Tensor) -> list[list[int]]:
    """The model batched over utterances and hypotheses; the beams are Python lists with strings for keys."""
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


def first(ranked: list) -> list[list[int]]:
    return [list(hypotheses[0].tokens) for hypotheses in ranked]


SEARCHES = {
    "greedy: slow": slow_greedy,
    "greedy: ours": lambda *given: [list(found.tokens) for found in greedy_search(*given)],
    f"modified beam {BEAM}: slow": slow_modified_beam,
    f"modified beam {BEAM}: ours": lambda *given: first(modified_beam_search(*given, beam_size=BEAM)),
    f"beam {BEAM}: ours": lambda *given: first(beam_search(*given, beam_size=BEAM)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vocab-size", type=int, nargs="+", default=[500, 4336])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    command = ["git", "describe", "--always", "--dirty"]
    commit = "unknown"
    if shutil.which("git"):
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    if arguments.device == "cuda":
        machine = torch.cuda.get_device_name()
    print(f"commit {commit}, torch {torch.__version__}, {machine}, {date.today()}")
    print("| V | threads | search | ms | spread | times real time | slow / ours |\n|---|---|---|---|---|---|---|")
    for vocab_size in arguments.vocab_size:
        torch.manual_seed(0)
        model = Model(vocab_size).to(arguments.device).eval()
        lens = torch.linspace(75, 150, arguments.batch_size).long().to(arguments.device)
        given = (model, torch.randn(len(lens), 150, WIDTH).to(arguments.device), lens)
        results = {name: find(*given) for name, find in SEARCHES.items()}
        for method in ("greedy", f"modified beam {BEAM}"):
            if results[f"{method}: slow"] != results[f"{method}: ours"]:
                sys.exit(f"Gate: {method} does not say what the slow one says.")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            times: dict[str, list[float]] = {name: [] for name in SEARCHES}
            for _ in range(arguments.repeats):
                for name, find in SEARCHES.items():
                    start = time.perf_counter()
                    find(*given)
                    times[name].append(1000 * (time.perf_counter() - start))
            medians = {name: statistics.median(own) for name, own in times.items()}
            for name, own in times.items():
                slow = medians.get(name.replace("ours", "slow"))
                ratio = f"{slow / medians[name]:.1f}" if slow is not None and "ours" in name else ""
                speed = 1000 * int(lens.sum()) * 0.04 / medians[name]
                print(
                    f"| {vocab_size} | {threads} | {name} | {medians[name]:.0f} | {min(own):.0f}..{max(own):.0f} "
                    f"| {speed:.0f} | {ratio} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
