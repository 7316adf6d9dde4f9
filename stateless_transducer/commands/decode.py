"""``transducer decode``: an averaged model on prepared test sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stateless_transducer.averaging import Average
from stateless_transducer.commands.console import complain, progress_bar, say, table
from stateless_transducer.commands.flags import parse
from stateless_transducer.decoding.config import SearchConfig


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


def run(options: Options) -> None:
    """Average, search, score, write, show."""
    from stateless_transducer.data.batches import evaluation_batches, load_index
    from stateless_transducer.data.config import DataConfig
    from stateless_transducer.evaluation import CONFIDENCE, evaluate, metric_name, write_results
    from stateless_transducer.model.frozen import FrozenTransducer
    from stateless_transducer.text.scoring import error_rate_line
    from stateless_transducer.training.distributed import device_of

    data = DataConfig(
        manifest_dir=options.manifest_dir,
        prefix=options.prefix,
        max_duration=options.max_duration,
        num_workers=options.num_workers,
        on_the_fly_feats=options.on_the_fly_feats,
    )
    cuts = {split: load_index(data.manifest_dir, data.prefix, split) for split in options.test_sets}
    checkpoint = options.average.of(options.exp_dir)
    averaged = checkpoint.provenance["averaged"]
    say(f"averaged {len(averaged)}: {', '.join(averaged)}")
    tokens, device = checkpoint.token_table, device_of(0)
    metric, model = metric_name(tokens), FrozenTransducer(checkpoint.model().to(device))
    rows = []
    for split, its_cuts in cuts.items():
        total = len(its_cuts)
        with progress_bar(f"decoding {split}") as bar:

            def show(done: int, total: int = total, bar=bar) -> None:
                bar(done, total)

            batches = evaluation_batches(its_cuts, tokens, data)
            result = evaluate(model, batches, tokens, options.search, device=device, progress=show)
        report, estimate = result.report, result.error_rate
        if result.unknown_units:
            kinds = " ".join(list(result.unknown_units)[:20])
            complain(
                f"{split}: {result.unknown_units.total()} units of the transcripts are unknown to the model and count "
                f"as errors: {kinds}"
            )
        name = f"{Path(averaged[-1]).stem}-avg-{len(averaged)}{'-use-ema' if options.average.use_ema else ''}"
        name = f"{name}-{options.search.suffix(model.context_size)}"
        folder = options.exp_dir / "log" / options.search.decoding_method
        files = write_results(folder, split, name, result, metric=metric, config=options.search, averaged=averaged)
        say(error_rate_line(f"{split}-{options.search.key}", report))
        say("wrote " + "\n      ".join(str(file) for file in files))
        rows.append(
            (
                split,
                options.search.decoding_method,
                f"{report.error_rate:.2f}",
                f"{estimate.low:.2f}..{estimate.high:.2f}" if estimate else "-",
                *(str(n) for n in (report.num_errors, report.num_reference)),
                *(str(n) for n in (report.num_insertions, report.num_deletions, report.num_substitutions)),
                str(len(report.utterances)),
                f"{result.wall_s:.1f}",
            )
        )
    rate = (f"{metric} %", f"{100 * CONFIDENCE:g} % interval")
    header = ("test set", "method", *rate, "errors", "of", "ins", "del", "sub", "utterances", "seconds")
    say("\n" + table(header, rows) + "\n")
