#!/usr/bin/env python3
"""Conformer against Zipformer of about the same parameters, and exact against pruned loss, at equal CPU time.

    python benchmarks/encoders.py train demo/data --model zipformer-1M --seed 1 --minutes 4 --output runs/demo
    python benchmarks/encoders.py table runs/demo runs/digits

`train` trains one model on one thread until its CPU time is over, decodes the dev and test set and adds a line to
results.jsonl. All schedules follow the share of the CPU time, so that they end with it whatever an update costs. Models
of the same seed see the same batches in the same order. `table` prints all runs, the difference of the means with an
interval over seeds and utterances, and for each seed the verdict of `transducer compare`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from about import about

from stateless_transducer import __version__
from stateless_transducer.checkpoint import epoch_path, save_checkpoint
from stateless_transducer.cli import main as transducer
from stateless_transducer.commands.compare import verdict
from stateless_transducer.commands.demo import SIZES
from stateless_transducer.data.batches import Update, load_index, trainable, with_loss
from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ConformerConfig, DecoderConfig, JoinerConfig, ModelConfig, ZipformerConfig
from stateless_transducer.text.bootstrap import compare_reports
from stateless_transducer.text.recogs import read_recogs
from stateless_transducer.text.scoring import score
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training.config import OptimConfig, PruneConfig, TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.task import StartingModel, TrainingData, TransducerTask


def zipformer(width: int, feedforward: int, channels: int, joiner_dim: int) -> ModelConfig:
    """Return sizes with stacks at 25 and 12.5 frames per second, as the conformer's 25, and a narrow subsampling."""
    encoder = ZipformerConfig(
        dropout=0.0,
        downsampling_factor=(2, 4, 2),
        num_encoder_layers=(1,),
        encoder_dim=(width, width * 4 // 3, width),
        encoder_unmasked_dim=(width, width * 4 // 3, width),
        feedforward_dim=(feedforward, feedforward * 4 // 3, feedforward),
        num_heads=(4,),
        query_head_dim=(16,),
        value_head_dim=(8,),
        pos_head_dim=(4,),
        cnn_module_kernel=(31, 15, 31),
        subsampling_channels=channels,
    )
    decoder = DecoderConfig(decoder_dim=joiner_dim, decoder_conv="grouped")
    return ModelConfig(181, encoder, decoder, JoinerConfig(joiner_dim, joiner_proj=True), feature_norm="level")


# about as many parameters each: a million, the demo's model, and a quarter, that of notebooks/transcribe.ipynb
MODELS = {
    "conformer-1M": SIZES,
    "zipformer-1M": zipformer(96, 192, channels=32, joiner_dim=128),
    "conformer-0.25M": replace(
        SIZES,
        encoder=ConformerConfig(
            num_layers=2,
            attention_dim=64,
            num_heads=4,
            feedforward_dim=256,
            conv_kernel=15,
            subsampling_channels=16,
            dropout=0.0,
        ),
        joiner=JoinerConfig(joiner_dim=64),
    ),
    "zipformer-0.25M": zipformer(42, 84, channels=16, joiner_dim=64),
}
NUM_EPOCHS = 60
"""Parts of the CPU time that count as epochs: those of icefall's Zipformer on AISHELL."""
WARM_SHARE = 1 / 6
"""Share of the run with the rising learning rate of AdamW and Muon; the demo has a ninth."""
EDEN_BATCHES, SCHEDULED_BATCHES = 6.5, 40_000
"""Length of the run in `lr_batches`, as in icefall's recipe, and in batches of Zipformer's schedules, whose last ends
at 20,000 but for one."""
RESAMPLES = 2000


def options_of(arguments: argparse.Namespace, num_updates: float) -> TrainConfig:
    """Return the options of a run of about so many updates."""
    optim = OptimConfig(
        optimizer=arguments.optimizer,
        peak_lr=arguments.peak_lr,
        base_lr=arguments.base_lr,
        warm_step=max(1, round(WARM_SHARE * num_updates)),
        lr_batches=max(1.0, num_updates / EDEN_BATCHES),
        lr_epochs=18,
        ref_duration=arguments.batch_s * num_updates / SCHEDULED_BATCHES,
        ctc_loss_scale=0.5,
        ctc_epochs=round(arguments.ctc_share * NUM_EPOCHS),
    )
    prune = PruneConfig(prune_range=arguments.prune_range, prune_warm_step=round(0.1 * num_updates))
    return TrainConfig(num_epochs=NUM_EPOCHS, seed=arguments.seed, optim=optim, prune=prune)


@dataclass
class Corpus:
    """A prepared corpus: ``fbank`` and ``lang_char`` in a folder."""

    folder: Path
    prefix: str
    batch_s: float
    has_masks: bool

    @property
    def test_sets(self) -> list[str]:
        return [
            name for name in ("dev", "test") if (self.folder / f"fbank/{self.prefix}_cuts_{name}.jsonl.gz").exists()
        ]

    def task(self, config: TrainConfig, sizes: ModelConfig) -> TransducerTask:
        """Return the training of a model on this corpus, with the demo's batches and masks."""
        tokens = TokenTable.read(self.folder / "lang_char")
        data = DataConfig(
            manifest_dir=self.folder / "fbank",
            prefix=self.prefix,
            max_duration=self.batch_s,
            num_buckets=4,
            min_utterance_s=0.3,
            num_workers=0,
            enable_musan=False,
            enable_spec_aug=self.has_masks,
            spec_augment=SpecAugmentConfig(
                spec_aug_time_warp_factor=0, features_mask_size=20, num_frame_masks=0, spec_aug_probability=1.0
            ),
        )
        model = replace(sizes, vocab_size=len(tokens), blank_id=tokens.blank_id)
        subsampling = model.encoder.subsampling
        train = trainable(load_index(data.manifest_dir, data.prefix, "train"), tokens, data, subsampling)
        dev = with_loss(load_index(data.manifest_dir, data.prefix, "dev"), tokens, subsampling)
        start = StartingModel(model, FbankConfig(), tokens)
        return TransducerTask(config, start, TrainingData(data, train, dev_set=dev), " ".join(sys.argv))


class Run:
    """A training whose schedules follow its CPU time."""

    def __init__(self, task: TransducerTask) -> None:
        self.task, rank = task, Rank(0, 1, torch.device("cpu"))
        objective = task.build_objective()
        self._loader = task.loader(rank)
        self.learner = Learner(objective, task.config, rank, update_s=self._loader.update_s)
        self.validation = task.validation(objective, rank)
        self.num_updates = 0

    def learn(self, budget_s: float, most_updates: float = float("inf")) -> float:
        """Train until the CPU time is over, or for a number of updates; return the CPU seconds."""
        start, progress = time.process_time(), 0.0
        for update in self._updates():
            self.num_updates += 1
            epoch = int(NUM_EPOCHS * progress)
            result = self.learner.learn(update, step=self.num_updates, epoch=epoch, done=progress)
            spent = time.process_time() - start
            progress = spent / budget_s
            if self.num_updates % 50 == 0:
                print(
                    f"{spent:.0f} s, {self.num_updates} updates, loss {result.loss:.4f}, {result.rate:.2g}", flush=True
                )
            if progress >= 1 or self.num_updates >= most_updates:
                break
        return time.process_time() - start

    def _updates(self) -> Iterator[Update]:
        epoch = 0
        while True:
            yield from self._loader.updates(epoch)
            epoch += 1


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    corpus, sizes, budget_s = (
        Corpus(arguments.data, arguments.prefix, arguments.batch_s, not arguments.no_masks),
        MODELS[arguments.model],
        60 * arguments.minutes,
    )
    # how many updates fit is known only roughly, and only warm-up and Zipformer's schedules need it
    trial = Run(corpus.task(options_of(arguments, 1000), sizes))
    trial.learn(budget_s, most_updates=4)
    update_s = trial.learn(budget_s, most_updates=20) / 16
    run = Run(corpus.task(options_of(arguments, budget_s / update_s), sizes))
    spent_s = run.learn(budget_s)

    name = f"{arguments.model}-{arguments.name}-{arguments.seed}"
    exp_dir = arguments.output / name
    exp_dir.mkdir(parents=True, exist_ok=True)
    model = run.learner.objective.model
    provenance = {"version": __version__, "epoch": 0, "step": run.num_updates}
    save_checkpoint(epoch_path(exp_dir, 0), run.task.checkpoint(model.state_dict(), provenance, {}))
    assert run.validation is not None
    loss, num_frames = run.validation.loss(run.learner.autocast())
    flags = ["--exp-dir", str(exp_dir), "--epoch", "0", "--avg", "1", "--manifest-dir", str(corpus.folder / "fbank")]
    test_sets = ["--prefix", corpus.prefix, "--test-sets", *corpus.test_sets]
    if transducer(["decode", *flags, *test_sets, "--decoding-method", "greedy_search"]):
        sys.exit("Decoding failed.")
    record = {
        "model": arguments.model,
        "name": arguments.name,
        "seed": arguments.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_s": round(spent_s, 1),
        "updates": run.num_updates,
        "dev_loss": loss * num_frames,
        "recogs": {name: str(_recogs(exp_dir, name)) for name in corpus.test_sets},
        **about(),
    }
    with (arguments.output / "results.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def _recogs(exp_dir: Path, test_set: str) -> Path:
    """Return the result in words if the tokens spell words, else that in characters."""
    folder = exp_dir / "log/greedy_search"
    in_words = folder / "wer"
    return next((in_words if in_words.is_dir() else folder).glob(f"recogs-*{test_set}-epoch-0-*.txt"))


def table(arguments: argparse.Namespace) -> None:
    for folder in arguments.folders:
        records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        for test_set in records[0]["recogs"]:
            groups: dict[str, list[dict[str, Any]]] = {}
            for record in sorted(records, key=lambda record: record["seed"]):
                groups.setdefault(f"{record['model']}, {record['name']}", []).append(record)
            print(f"\n{folder.name}, {test_set}\n")
            print("| model | parameters | updates | CPU s | dev loss | error rate % by seed | mean | 95 % |")
            print("|---|---|---|---|---|---|---|---|")
            counts = {name: _counts(group, test_set) for name, group in groups.items()}
            for name, group in groups.items():
                print(f"| {name} | {_row(group, counts[name])} |")
            first, *others = counts
            for name in others:
                low, mean, high = _interval(counts[name], counts[first])
                print(f"\n{name} (B) minus {first} (A): {mean:+.2f} ({low:+.2f}..{high:+.2f})\n")
                of_first = {record["seed"]: record["recogs"][test_set] for record in groups[first]}
                for record in groups[name]:
                    if record["seed"] in of_first:
                        verdict = _verdict(of_first[record["seed"]], record["recogs"][test_set])
                        print(f"- seed {record['seed']}: {verdict}")


def _counts(group: list[dict[str, Any]], test_set: str) -> np.ndarray:
    """Return errors and reference lengths, (seeds, 2, utterances)."""
    reports = [score(read_recogs(Path(record["recogs"][test_set]))) for record in group]
    return np.array([[report.utterance_errors, report.reference_lens] for report in reports])


def _verdict(recogs_a: str, recogs_b: str) -> str:
    """Return the verdict of `transducer compare` on the results A and B."""
    a, b = (score(read_recogs(Path(path))) for path in (recogs_a, recogs_b))
    return verdict(compare_reports(a, b, generator=np.random.default_rng(42)), confidence=0.95)


def _row(group: list[dict[str, Any]], counts: np.ndarray) -> str:
    def listed(key: str, digits: int = 0) -> str:
        return ", ".join(f"{record[key]:.{digits}f}" for record in group)

    rates = 100 * counts[:, 0].sum(-1) / counts[:, 1].sum(-1)
    low, mean, high = _interval(counts)
    by_seed = ", ".join(f"{rate:.2f}" for rate in rates)
    parameters = f"{group[0]['parameters']:,}"
    return (
        f"{parameters} | {listed('updates')} | {listed('cpu_s')} | {listed('dev_loss', 2)} | {by_seed} | {mean:.2f} | "
        f"{low:.2f}..{high:.2f}"
    )


def _interval(counts: np.ndarray, base: np.ndarray | None = None) -> tuple[float, float, float]:
    """Return bounds and mean of an error rate, or of its difference from another, over seeds and utterances.

    A resample draws the utterances, the same for all models, and the seeds of each model.
    """
    generator = np.random.default_rng(42)
    draws = [generator.integers(counts.shape[-1], size=counts.shape[-1]) for _ in range(RESAMPLES)]
    values = _resampled(counts, draws, generator) - (0 if base is None else _resampled(base, draws, generator))
    mean = _rate(counts) - (0 if base is None else _rate(base))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(mean), float(high)


def _resampled(counts: np.ndarray, draws: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    num_seeds = len(counts)
    return np.array([_rate(counts[generator.integers(num_seeds, size=num_seeds)][..., draw]) for draw in draws])


def _rate(counts: np.ndarray) -> float:
    return 100 * counts[:, 0].sum() / counts[:, 1].sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="train and decode one model")
    one.set_defaults(run=train)
    one.add_argument("data", type=Path, help="folder of a prepared corpus, with fbank and lang_char")
    one.add_argument("--prefix", default="aishell", help="first part of the file names in fbank")
    one.add_argument("--output", type=Path, required=True, help="folder for models and results.jsonl")
    one.add_argument("--model", choices=MODELS, required=True)
    one.add_argument("--name", default="muon", help="name of the settings, for the table")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--minutes", type=float, required=True, help="CPU time")
    one.add_argument("--batch-s", type=float, default=16.0, help="seconds of speech in a batch")
    one.add_argument("--ctc-share", type=float, default=0.5, help="share of the run with the CTC loss; the demo's")
    one.add_argument("--no-masks", action="store_true", help="without SpecAugment")
    one.add_argument("--optimizer", choices=("muon", "adamw", "scaled-adam"), default="muon")
    one.add_argument("--peak-lr", type=float, default=4e-3, help="of Muon and AdamW")
    one.add_argument("--base-lr", type=float, default=0.045, help="of ScaledAdam")
    one.add_argument("--prune-range", type=int, default=0)
    all_ = commands.add_parser("table", help="print the results")
    all_.set_defaults(run=table)
    all_.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
