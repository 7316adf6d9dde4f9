"""``transducer decode``: an averaged model on prepared test sets."""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stateless_transducer.averaging import Average
from stateless_transducer.commands.console import progress_bar, say, table
from stateless_transducer.commands.flags import parse
from stateless_transducer.decoding.config import SearchConfig

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint
    from stateless_transducer.data.index import CutIndex
    from stateless_transducer.evaluation import TestResult
    from stateless_transducer.model.frozen import FrozenTransducer
    from stateless_transducer.text.tokens import TokenTable


@dataclass(frozen=True)
class Options:
    """Options of ``transducer decode``."""

    exp_dir: Path = Path("transducer_stateless_modified/exp")
    """Folder with the checkpoints; results go to <exp-dir>/log/<decoding-method>/."""
    average: Average = field(default_factory=Average)
    manifest_dir: Path = Path("data/fbank")
    """Folder with the prepared cuts."""
    prefix: str = "aishell"
    """Name of the corpus."""
    test_sets: tuple[str, ...] = ("test",)
    """Splits to decode."""
    max_duration: float = 100.0
    """Seconds of speech in a batch."""
    num_workers: int = 0
    """Processes that load batches."""
    on_the_fly_feats: bool = False
    """Compute features from the sound, instead of reading the stored ones."""
    search: SearchConfig = field(default_factory=SearchConfig)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Decode test sets and write recogs, errs and summary files."))
    return 0


def run(options: Options, *, accept: Callable[[Checkpoint], None] | None = None) -> None:
    """Average, search, score, write, show.

    Args:
        options: what to decode, and how.
        accept: raises ValueError if the model is not the wanted one.
    """
    from stateless_transducer.data.batches import load_index
    from stateless_transducer.evaluation import CONFIDENCE, metric_name, write_results
    from stateless_transducer.model.frozen import FrozenTransducer
    from stateless_transducer.training.distributed import device_of
    from stateless_transducer.training.progress import open_log

    cuts = {split: load_index(options.manifest_dir, options.prefix, split) for split in options.test_sets}
    checkpoint = options.average.of(options.exp_dir)
    if accept is not None:
        accept(checkpoint)
    averaged, tokens, search = checkpoint.provenance["averaged"], checkpoint.token_table, options.search
    name = f"{Path(averaged[-1]).stem}-avg-{len(averaged)}{'-use-ema' if options.average.use_ema else ''}"
    name = f"{name}-{search.suffix(checkpoint.model_config.context_size)}"
    folder, device = options.exp_dir / "log" / search.decoding_method, device_of(0)
    log = open_log(folder, f"log-decode-{name}")
    log.info("Decoding started")
    log.info(f"Device: {device}")
    log.info(f"averaging {averaged}")
    log.info(f"Number of model parameters: {sum(weight.numel() for weight in checkpoint.weights.values())}")
    model, rows = FrozenTransducer(checkpoint.model().to(device)), defaultdict(list)
    for split, its_cuts in cuts.items():
        result = _search(options, split, its_cuts, model, tokens, log)
        label = split if options.prefix == _own_corpus(options.exp_dir) else f"{options.prefix}-{split}"
        counted = [(metric_name(tokens), folder, result)]
        if result.in_words is not None:
            counted.append(("WER", folder / "wer", result.in_words))
        for metric, where, each in counted:
            files = write_results(where, label, name, each, metric=metric, config=search, averaged=averaged)
            _tell(log, label, search.key, metric, files, each)
            rows[metric].append(_row(split, search.decoding_method, each))
    log.info("Done!")
    for metric, its_rows in rows.items():
        rate = (f"{metric} %", f"{100 * CONFIDENCE:g} % interval")
        header = ("test set", "method", *rate, "errors", "of", "ins", "del", "sub", "utterances", "seconds")
        say("\n" + table(header, its_rows) + "\n")


def _own_corpus(exp_dir: Path) -> str:
    """Name of the corpus that the model was trained on: its results are known by the split alone."""
    path = exp_dir / "config.json"
    return json.loads(path.read_text(encoding="utf-8"))["data"]["prefix"] if path.exists() else "aishell"


def _search(
    options: Options, split: str, cuts: CutIndex, model: FrozenTransducer, tokens: TokenTable, log: logging.Logger
) -> TestResult:
    """All of a test set."""
    from stateless_transducer.data.batches import evaluation_batches
    from stateless_transducer.data.config import DataConfig
    from stateless_transducer.evaluation import evaluate
    from stateless_transducer.training.distributed import device_of

    data = DataConfig(
        manifest_dir=options.manifest_dir,
        prefix=options.prefix,
        max_duration=options.max_duration,
        num_workers=options.num_workers,
        on_the_fly_feats=options.on_the_fly_feats,
    )
    # greedy search is fast
    interval = 50 if options.search.decoding_method == "greedy_search" else 10
    batch_numbers = itertools.count()
    with progress_bar(f"decoding {split}") as bar:

        def show(done: int) -> None:
            bar(done, len(cuts))
            number = next(batch_numbers)
            if number % interval == 0:
                log.debug(f"batch {number}/?, cuts processed until now is {done}")

        batches = evaluation_batches(cuts, tokens, data)
        return evaluate(model, batches, tokens, options.search, device=device_of(0), progress=show)


def _tell(log: logging.Logger, split: str, key: str, metric: str, files: Sequence[Path], result: TestResult) -> None:
    """What came out, in icefall's words."""
    from stateless_transducer.text.scoring import error_rate_line

    if result.unknown_units:
        kinds = " ".join(list(result.unknown_units)[:20])
        log.warning(
            f"{split}: {result.unknown_units.total()} units of the transcripts are unknown to the model and count "
            f"as errors: {kinds}"
        )
    recogs, errs, *_ = files
    log.info(f"The transcripts are stored in {recogs}")
    log.info(error_rate_line(f"{split}-{key}", result.report))
    log.info(f"Wrote detailed error stats to {errs}")
    rate = round(result.report.error_rate, 2)
    log.info(f"\nFor {split}, {metric} of different settings are:\n{key}\t{rate}\tbest for {split}\n")


def _row(split: str, method: str, result: TestResult) -> tuple[str, ...]:
    """Of the table."""
    report, estimate = result.report, result.error_rate
    return (
        split,
        method,
        f"{report.error_rate:.2f}",
        f"{estimate.low:.2f}..{estimate.high:.2f}" if estimate else "-",
        *(str(n) for n in (report.num_errors, report.num_reference)),
        *(str(n) for n in (report.num_insertions, report.num_deletions, report.num_substitutions)),
        str(len(report.utterances)),
        f"{result.wall_s:.1f}",
    )
