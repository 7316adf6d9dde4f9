"""``transducer decode``: the mean of checkpoints, or a model, on prepared test sets."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from annotated_types import Ge, Gt, Unit
from tyro.conf import arg

from stateless_transducer.commands.shared.console import progress_bar, say, table
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.idle import refuse_idle_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.files import parse_json
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.training.averaging import Average
from stateless_transducer.wording import counted

if TYPE_CHECKING:
    import torch

    from stateless_transducer.checkpoint import Checkpoint
    from stateless_transducer.data.index import CutIndex
    from stateless_transducer.decoding.protocols import StreamingTransducer
    from stateless_transducer.evaluation.test_sets import Decode, TestResult
    from stateless_transducer.recognition.model import Model, StreamingModel
    from stateless_transducer.text.tokens import TokenTable


@dataclass(frozen=True)
class Options:
    """Options of ``transducer decode``."""

    exp_dir: Path = Path("exp")
    """Folder with the checkpoints; results are written to <exp-dir>/log/<decoding-method>/."""
    average: Average = field(default_factory=Average)
    model: Annotated[str | None, arg(metavar="MODEL")] = None
    """Model to decode with, instead of checkpoints: a model file, a folder of a model, or owner/name of a published
    one. Results are written to log/<decoding-method>/ beside it; for a published model, in the current folder."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Precision of matrix products. bf16: checkpoints only. int8: ONNX folders only."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ...; auto: the first GPU if there is one. ONNX graphs run on the CPU."""
    manifest_dir: Path = Path("data/fbank")
    """Folder with the prepared cuts."""
    prefix: str = "aishell"
    """Name of the corpus."""
    test_sets: Annotated[tuple[str, ...], arg(aliases=("--test-set",))] = ("test",)
    """Splits to decode."""
    max_duration: Annotated[float, Gt(0), Unit("s")] = 100.0
    """Seconds of speech per batch."""
    num_workers: Annotated[int, Ge(0), ADVANCED] = 0
    """Processes that load batches; 0: the decoding process itself."""
    streaming: bool = False
    """Decode chunk by chunk, as live sound; needs a model trained with `--causal true`, or a folder of streaming
    graphs."""
    chunk_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """`--streaming true`: length of a chunk in milliseconds. By default, the length nearest to 320 on which the model
    was trained; that of ONNX graphs is fixed."""
    left_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """`--streaming true`: milliseconds before a chunk that the model sees. By default, the value nearest to 2560 on
    which it was trained; that of ONNX graphs is fixed."""
    on_the_fly_feats: Annotated[bool, ADVANCED] = False
    """Compute features from the sound instead of reading the stored ones."""
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        # a recipe's default is no wish of the user's
        if self.model is not None and replace(self.average, use_averaged_model=False) != Average():
            raise ValueError(f"`model` {self.model} is decoded unchanged. Remove `epoch`, `iter`, `avg` and the mean.")
        for name in ("chunk_ms", "left_ms"):
            if not self.streaming and getattr(self, name) is not None:
                raise ValueError(f"`{name}` {getattr(self, name)} needs `streaming=True`.")

    @property
    def folder(self) -> Path:
        """Folder whose log/ receives the results."""
        if self.model is None:
            return self.exp_dir
        from stateless_transducer.hub import is_published

        return Path.cwd() if is_published(self.model) else Path(self.model).absolute().parent


class _Decoder(NamedTuple):
    """The model of a decoding run."""

    decode: Decode
    context_size: int
    """Number of tokens that the model's decoder sees."""
    tokens: TokenTable
    device: torch.device | None
    """Device of the features; None: the model takes NumPy arrays."""
    name: str
    """Name of the model in the files of the results."""
    sources: list[str]
    """Names of the averaged checkpoints, or of the model."""
    num_parameters: int | None = None
    """Number of parameters; None if unknown."""


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    options = parse(Options, program, arguments, "Decode test sets and write recogs, errs and summary files.")
    # not in `run`: the tutorial's scripts set options of all searches, and other folders
    refuse_idle_search(options.search)
    if options.model is not None and options.exp_dir != Options.exp_dir:
        raise ValueError(
            f"`--exp-dir` {options.exp_dir} has no effect with `--model` {options.model}, whose results go to "
            f"{options.folder / 'log'}. Remove one of the two."
        )
    run(options)
    return 0


def run(options: Options, *, accept: Callable[[Checkpoint], None] | None = None) -> None:
    """Decode the test sets, write the results and print the error rates.

    Args:
        options: Options of the command.
        accept: Raises ValueError if the model is not the expected one.
    """
    from stateless_transducer.data.batches import load_index
    from stateless_transducer.evaluation.test_sets import CONFIDENCE, metric_name, write_results
    from stateless_transducer.training.progress import open_log

    cuts = {split: load_index(options.manifest_dir, options.prefix, split) for split in options.test_sets}
    decoder, search = _of_checkpoints(options, accept) if options.model is None else _of_model(options), options.search
    name = f"{decoder.name}-{search.suffix(decoder.context_size)}"
    folder = options.folder / "log" / search.decoding_method
    log = open_log(folder, f"log-decode-{name}")
    log.info("Decoding started")
    log.info(f"Device: {decoder.device or 'cpu'}")
    log.info(f"{'averaging' if options.model is None else 'model'} {decoder.sources}")
    if decoder.num_parameters is not None:
        log.info(f"Number of model parameters: {decoder.num_parameters}")
    rows = defaultdict(list)
    for split, index in cuts.items():
        result = _search(options, split, index, decoder, log)
        label = split if options.prefix == _training_corpus(options.folder) else f"{options.prefix}-{split}"
        report = result.report
        if report.num_reference and not any(utterance.hypothesis for utterance in report.utterances):
            log.warning(
                f"{label}: all {len(report.utterances)} transcripts are empty. The model has not learned to emit "
                "tokens yet, as every model early in training. Train it longer; see docs/training.md."
            )
        counted = [(metric_name(decoder.tokens), folder, result)]
        if result.in_words is not None:
            counted.append(("WER", folder / "wer", result.in_words))
        for metric, target, scored in counted:
            files = write_results(target, label, name, scored, metric=metric, config=search, averaged=decoder.sources)
            _log_result(log, label, search.key, metric, files, scored)
            rows[metric].append(_row(split, search.decoding_method, scored))
    log.info("Done!")
    for metric, metric_rows in rows.items():
        rate = (f"{metric} %", f"{100 * CONFIDENCE:g} % interval")
        header = ("test set", "method", *rate, "errors", "of", "ins", "del", "sub", "utterances", "seconds")
        say("\n" + table(header, metric_rows) + "\n")


def _of_checkpoints(options: Options, accept: Callable[[Checkpoint], None] | None) -> _Decoder:
    from stateless_transducer.recognition.model import choose_device, model_of, streaming_model_of

    checkpoint, device = options.average.of(options.exp_dir), choose_device(options.device)
    if accept is not None:
        accept(checkpoint)
    averaged = checkpoint.provenance["averaged"]
    name = f"{Path(averaged[-1]).stem}-avg-{len(averaged)}{options.average.suffix}"
    precision, num_parameters = options.precision, sum(weight.numel() for weight in checkpoint.weights.values())
    if options.streaming:
        model = streaming_model_of(
            checkpoint, chunk_ms=options.chunk_ms, left_ms=options.left_ms, device=device, precision=precision
        )
    else:
        model = model_of(checkpoint, device=device, precision=precision)
    return _decoder(options, model, checkpoint.token_table, device, name, averaged, num_parameters)


def _of_model(options: Options) -> _Decoder:
    from stateless_transducer.commands.shared.models import check_front_end, find_model
    from stateless_transducer.export.onnx_model import OnnxTransducer
    from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer
    from stateless_transducer.hub import short_name
    from stateless_transducer.recognition.model import choose_device, forms_for, open_model, open_streaming_model
    from stateless_transducer.text.tokens import TokenTable

    assert options.model is not None
    forms = forms_for(options.device, options.precision)
    path = find_model(options.model, forms=forms, precision=options.precision)
    if options.streaming:
        model = open_streaming_model(
            path,
            chunk_ms=options.chunk_ms,
            left_ms=options.left_ms,
            device=options.device,
            precision=options.precision,
        )
    else:
        model = open_model(path, device=options.device, precision=options.precision)
    if not isinstance(model.token_table, TokenTable):
        raise ValueError(
            f"`--model` {options.model}: tokens.txt holds BPE pieces without scores (bpe.vocab), which cannot be "
            "scored."
        )
    check_front_end("model", options.model, model.fbank_config)
    is_graphs = isinstance(model.transducer, OnnxTransducer | OnnxStreamingTransducer)
    device = None if is_graphs else choose_device(options.device)
    return _decoder(options, model, model.token_table, device, short_name(options.model), [options.model])


def _decoder(
    options: Options,
    model: Model | StreamingModel,
    tokens: TokenTable,
    device: torch.device | None,
    name: str,
    sources: list[str],
    num_parameters: int | None = None,
) -> _Decoder:
    from stateless_transducer.decoding.search import decode_features
    from stateless_transducer.decoding.stream_search import decode_features_in_chunks
    from stateless_transducer.recognition.model import Model
    from stateless_transducer.text.tokens import UNKNOWN

    if isinstance(model, Model):
        decode, live = partial(decode_features, model.transducer), None
    else:
        live = model.transducer
        decode = partial(decode_features_in_chunks, live, unknown_id=tokens.ids.get(UNKNOWN))
    name += _suffix(options, live)
    return _Decoder(decode, model.transducer.context_size, tokens, device, name, sources, num_parameters)


def _suffix(options: Options, live: StreamingTransducer | None) -> str:
    """Return the part of a result's name that tells precision and chunks."""
    suffix = "" if options.precision == "fp32" else f"-{options.precision}"
    if live is None:
        return suffix
    chunk_ms = live.chunk_shift * live.fbank_config.frame_shift_ms
    return f"{suffix}-streaming-{chunk_ms:g}" + ("" if options.left_ms is None else f"-left-{options.left_ms}")


def _training_corpus(exp_dir: Path) -> str:
    """Return the name of the training corpus, whose results are labeled by the split alone."""
    path = exp_dir / "config.json"
    if not path.is_file():
        return "aishell"
    try:
        return parse_json(path.read_bytes())["data"]["prefix"]
    except (ValueError, KeyError, TypeError) as err:
        raise ValueError(f"{path}, which `transducer train` wrote, is damaged ({err}). Remove it.") from err


def _search(options: Options, split: str, cuts: CutIndex, decoder: _Decoder, log: logging.Logger) -> TestResult:
    """Decode a test set."""
    from stateless_transducer.data.batches import evaluation_batches
    from stateless_transducer.data.config import DataConfig
    from stateless_transducer.evaluation.test_sets import evaluate

    data = DataConfig(
        manifest_dir=options.manifest_dir,
        prefix=options.prefix,
        max_duration=options.max_duration,
        num_workers=options.num_workers,
        on_the_fly_feats=options.on_the_fly_feats,
    )
    # batches between two lines of the log; greedy search is fast
    interval = 50 if options.search.decoding_method == "greedy_search" else 10
    batch_numbers = itertools.count()
    with progress_bar(f"decoding {split}") as bar:

        def show(num_decoded: int) -> None:
            bar(num_decoded, len(cuts))
            number = next(batch_numbers)
            if number % interval == 0:
                log.debug(f"batch {number}/?, cuts processed until now is {num_decoded}")

        batches = evaluation_batches(cuts, decoder.tokens, data)
        return evaluate(decoder.decode, batches, decoder.tokens, options.search, device=decoder.device, progress=show)


def _log_result(
    log: logging.Logger, split: str, key: str, metric: str, files: Sequence[Path], result: TestResult
) -> None:
    """Log a result in icefall's words; with both metrics, the CER is called CER."""
    from stateless_transducer.text.scoring import error_rate_line

    if result.unknown_units:
        kinds = " ".join(list(result.unknown_units)[:20])
        log.warning(
            f"{split}: the token table lacks {counted(result.unknown_units.total(), 'unit')} of the references, "
            f"counted as errors: {kinds}"
        )
    recogs, errs, *_ = files
    log.info(f"The transcripts are stored in {recogs}")
    log.info(error_rate_line(f"{split}-{key}", result.report, metric="WER" if result.in_words is None else "CER"))
    log.info(f"Wrote detailed error stats to {errs}")
    rate = round(result.report.error_rate, 2)
    log.info(f"\nFor {split}, {metric} of different settings are:\n{key}\t{rate}\tbest for {split}\n")


def _row(split: str, method: str, result: TestResult) -> tuple[str, ...]:
    """Return the row of a result in the table."""
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
