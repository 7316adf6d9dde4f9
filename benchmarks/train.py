#!/usr/bin/env python3
"""Speed of training and of its data loading.

    python benchmarks/train.py step                 # small model: parts of an update, by precision and threads
    python benchmarks/train.py step --full          # the tutorial's model, on a CPU a few updates of it
    python benchmarks/train.py gpu                  # the tutorial's model on a GPU: eager, compiled, sizes of batches
    python benchmarks/train.py loader               # batches without training: stored features, features on the fly
    python benchmarks/train.py manifest             # start and resumption with a million cuts

Everything is made up on the spot. Correctness first: the loss of a batch must be that of its utterances one by one, and
that of the reference implementation. Then medians over repeats, what is compared in turn, since machines are noisy.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from about import about, print_about

from stateless_transducer.commands.demo import SIZES
from stateless_transducer.data.batches import Batch, TrainingLoader, Update, load_index, trainable
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.index import open_index
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import Transducer, build_model
from stateless_transducer.ops.joint_loss import joint_transducer_loss
from stateless_transducer.text.tokens import build_token_table
from stateless_transducer.training.config import OptimConfig, TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.objective import TransducerObjective

FULL = ModelConfig(vocab_size=4336)
SUBSAMPLING = FULL.encoder.subsampling
FLOPS_PER_SECOND_OF_SPEECH = 20e9
"""Cost of encoder forward and backward in a training step of the full model, without the joiner."""


def make_batch(seconds: float, utterance_s: float, vocab_size: int) -> Batch:
    """Return utterances of similar length with 3.5 tokens per second, as in AISHELL."""
    count = max(1, round(seconds / utterance_s))
    lens = torch.linspace(95 * utterance_s, 100 * utterance_s, count).long().flip(0)
    features = torch.randn(count, int(lens.max()), 80)
    for n, length in enumerate(lens.tolist()):
        features[n, length:] = PADDING_VALUE
    num_tokens = max(1, round(3.5 * utterance_s))
    tokens = torch.randint(1, vocab_size, (count, num_tokens))
    return Batch(
        features, lens, tokens, torch.full((count,), num_tokens), tuple(map(str, range(count))), ("",) * count, 0.01
    )


def check(model: Transducer, batch: Batch) -> None:
    """Exit unless the losses of a batch equal those of its utterances alone and of the reference."""
    few = [each[:4] for each in (batch.features, batch.feature_lens, batch.tokens, batch.token_lens)]
    model.eval()
    with torch.no_grad():
        together = model(*few)
        alone = [
            model(few[0][n : n + 1, : few[1][n]], *(each[n : n + 1] for each in few[1:])) for n in range(len(few[0]))
        ]
        encoder_out, lens = model.encode(*few[:2])
        output = model.joiner.output_linear
        reference = joint_transducer_loss(
            encoder_out.double(),
            lens,
            model.decoder.all_prefixes(few[2]).double(),
            *few[2:],
            output.weight.double(),
            output.bias.double(),
            impl="reference",
        )
    for found in (torch.cat(alone), reference.to(together.dtype)):
        if not torch.allclose(together, found, rtol=1e-4):
            sys.exit(f"Gate: losses {together.tolist()} and {found.tolist()} differ.")


def _without_dropout(sizes: ModelConfig) -> ModelConfig:
    return replace(sizes, encoder=replace(sizes.encoder, dropout=0.0))


def learner(sizes: ModelConfig, device: torch.device, **options: object) -> Learner:
    torch.manual_seed(0)
    optim = OptimConfig(optimizer="adamw", warm_step=1000)
    config = TrainConfig(optim=optim, **options)  # pyright: ignore[reportArgumentType]
    objective = TransducerObjective(build_model(sizes), config).to(device)
    if config.compile:
        for stage in objective.model.encoder.stages:
            stage.compile(dynamic=True)
    objective.model.encoder.recompute_stages = config.recompute_layers
    return Learner(objective, config, Rank(0, 1, device))


def learn(own: Learner, batch: Batch, step: int) -> float:
    """Return the milliseconds of an update."""
    start = time.perf_counter()
    own.learn(Update([batch], batch.seconds, int(batch.token_lens.sum())), step=step, epoch=0, done=0.0)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def steps(arguments: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)
    sizes = _without_dropout(FULL if arguments.full else SIZES)
    batch = make_batch(arguments.seconds or 16.0, 2.0, sizes.vocab_size)
    check(build_model(sizes), batch)
    device = torch.device("cpu")
    learners = {precision: learner(sizes, device, precision=precision) for precision in ("fp32", "bf16")}
    times: dict[tuple[str, int], list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for precision, own in learners.items():
                found = learn(own, batch, repeat + 1)
                if repeat:
                    times.setdefault((precision, threads), []).append(found)
    print("| precision | threads | ms an update | spread | s of speech/s |\n|---|---|---|---|---|")
    for (precision, threads), own in times.items():
        median = statistics.median(own)
        rate = 1000 * batch.seconds / median
        print(f"| {precision} | {threads} | {median:.0f} | {min(own):.0f}..{max(own):.0f} | {rate:.0f} |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, two models together")


def gpu(arguments: argparse.Namespace) -> None:
    """Run the GPU rows, at most 4 s each."""
    if not torch.cuda.is_available():
        sys.exit("No GPU is at hand.")
    device = torch.device("cuda", 0)
    check(build_model(_without_dropout(SIZES)), make_batch(8.0, 2.0, SIZES.vocab_size))
    print(
        "| precision | compiled | recomputed | s of speech | ms an update | hours of speech/s | share of limit | GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for precision, compiled, recompute in (("bf16", 0, 0), ("fp32", 0, 0), ("bf16", 0, 1), ("bf16", 1, 0)):
        own = learner(FULL, device, precision=precision, compile=bool(compiled), recompute_layers=bool(recompute))
        for seconds in (250, 500, 1000, 2000, 4000):
            torch.cuda.reset_peak_memory_stats()
            batch = make_batch(seconds, 8.0, FULL.vocab_size)
            try:
                for step in range(3):
                    learn(own, batch, step + 1)
                started, times = time.perf_counter(), []
                while len(times) < 20 and time.perf_counter() - started < 4:
                    times.append(learn(own, batch, len(times) + 4))
            except ValueError as err:
                print(f"| {precision} | {compiled} | {recompute} | {seconds} | {str(err).split('(')[0]} | | | |")
                break
            median = statistics.median(times)
            rate = batch.seconds / median * 1000
            share = rate * FLOPS_PER_SECOND_OF_SPEECH / (arguments.peak_tflops * 1e12)
            memory = torch.cuda.max_memory_allocated() / 2**30
            print(
                f"| {precision} | {compiled} | {recompute} | {batch.seconds:.0f} | {median:.1f} | {rate / 3600:.2f} "
                f"| {100 * share:.0f} % | {memory:.1f} |",
                flush=True,
            )
        del own
        torch.cuda.empty_cache()


def loader(arguments: argparse.Namespace) -> None:
    """Measure cuts per second, with and without data workers."""
    from stateless_transducer.cli import main as transducer

    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng(0)
        for n in range(200):
            wave = random.normal(0, 0.1, int(16000 * random.uniform(2, 8))).clip(-1, 1)
            (folder / "wav").mkdir(exist_ok=True)
            soundfile.write(folder / "wav" / f"u{n}.wav", wave, 16000)
            (folder / "wav" / f"u{n}.txt").write_text("今天天气很好")
        flags = ["--data-dir", str(folder / "data"), "--num-jobs", "1"]
        if transducer(["prepare", "table", str(folder / "wav"), *flags]):
            sys.exit("Preparation failed.")
        tokens = build_token_table(["今天天气很好"], "char")
        config = DataConfig(
            manifest_dir=folder / "data" / "fbank", prefix="table", max_duration=60.0, enable_musan=False
        )
        usable = trainable(load_index(config.manifest_dir, "table", "train"), tokens, config, SUBSAMPLING)
        print("| features | processes | cuts/s | s of speech/s |\n|---|---|---|---|")
        for on_the_fly in (False, True):
            for num_workers in (0, 1, 2):
                chosen = replace(config, on_the_fly_feats=on_the_fly, num_workers=num_workers)
                rates = [
                    _epoch_rate(TrainingLoader(usable, tokens, chosen, seed=n), n) for n in range(arguments.repeats)
                ]
                rate = statistics.median(rates)
                kind = "on the fly" if on_the_fly else "stored"
                print(
                    f"| {kind} | {num_workers} | {rate:.0f} | {rate * usable.lengths.seconds.mean():.0f} |", flush=True
                )


def _epoch_rate(own: TrainingLoader, epoch: int) -> float:
    start, count = time.perf_counter(), 0
    for update in own.updates(epoch):
        count += sum(len(batch.ids) for batch in update.batches)
    return count / (time.perf_counter() - start)


def manifest(arguments: argparse.Namespace) -> None:
    """Time the index of a million cuts, which is written once, then a start and a resumption."""
    import gzip
    import json

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "aishell_cuts_train.jsonl.gz"
        started = time.perf_counter()
        with gzip.open(path, "wt", compresslevel=1) as file:
            for cut in _made_up_cuts(arguments.num_cuts):
                file.write(json.dumps(cut, ensure_ascii=False) + "\n")
        size, took = path.stat().st_size / 2**20, time.perf_counter() - started
        print(f"{arguments.num_cuts} cuts, {size:.0f} MiB, made in {took:.0f} s")
        tokens = build_token_table(["今天天气很好"], "char")
        config = DataConfig(manifest_dir=Path(name), num_workers=0)
        for what in ("first start", "start", "resumption"):
            started = time.perf_counter()
            usable = trainable(open_index(path), tokens, config, SUBSAMPLING)
            own = TrainingLoader(usable, tokens, config, seed=1)
            plan = own.plan(7)
            if what == "resumption":
                plan = plan[len(plan) * 2 // 3 :]
            # a real cut with artificial features
            usable.index.cut(int(usable.numbers[plan[0][0]]))
            print(f"{what}: {time.perf_counter() - started:.1f} s, {len(plan)} batches to go", flush=True)
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _made_up_cuts(count: int) -> Iterator[dict]:
    random = np.random.default_rng(0)
    seconds = random.uniform(1.0, 12.0, count).round(3)
    for n, duration in enumerate(seconds.tolist()):
        id_ = f"utterance-{n:08d}"
        features = {
            "type": "kaldi-native-fbank",
            "num_frames": round(duration * 100),
            "num_features": 80,
            "frame_shift": 0.01,
            "sampling_rate": 16000,
            "start": 0.0,
            "duration": duration,
            "storage_type": "lilcom_chunky",
            "storage_path": "data/fbank/aishell_feats_train/feats-0.lca",
            "storage_key": "0,1000,2000",
            "recording_id": id_,
            "channels": 0,
        }
        said = {
            "id": id_,
            "recording_id": id_,
            "start": 0.0,
            "duration": duration,
            "channel": 0,
            "text": "今天天气很好" * 3,
        }
        source = {"type": "file", "channels": [0], "source": f"/corpus/wav/{id_}.wav"}
        recording = {
            "id": id_,
            "sources": [source],
            "sampling_rate": 16000,
            "num_samples": round(duration * 16000),
            "duration": duration,
            "channel_ids": [0],
        }
        yield {
            "id": id_,
            "start": 0.0,
            "duration": duration,
            "channel": 0,
            "supervisions": [said],
            "features": features,
            "recording": recording,
            "type": "MonoCut",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"step": steps, "gpu": gpu, "loader": loader, "manifest": manifest}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--full", action="store_true", help="step: the tutorial's model instead of the demo's")
    parser.add_argument("--seconds", type=float, help="step: speech in a batch")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="gpu: its bfloat16 products")
    parser.add_argument("--num-cuts", type=int, default=1_000_000, help="manifest")
    arguments = parser.parse_args()
    print_about(about("cuda" if arguments.part == "gpu" else "cpu"))
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
