"""``transducer export onnx``: one of our models as ONNX, for sherpa-onnx, onnx-asr, and ourselves without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Unit
from tyro.conf import arg

from stateless_transducer.commands.shared.console import complain, progress_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.wording import counted

if TYPE_CHECKING:
    from stateless_transducer.data.index import CutIndex
    from stateless_transducer.evaluation.test_sets import TestResult
    from stateless_transducer.export.onnx_model import Precision
    from stateless_transducer.text.tokens import TokenTable


@dataclass(frozen=True)
class Options:
    """Options of ``transducer export onnx``."""

    model: Annotated[str, arg(aliases=("--checkpoint",), metavar="MODEL")]
    """Model file, training checkpoint, folder with a checkpoint and tokens.txt, or owner/name of a published model."""
    output: Path
    """Folder to write: encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt, lang.json, model.json."""
    streaming: bool = False
    """Write an encoder that runs chunk by chunk, for live sound; the model must be trained with `--causal true`."""
    chunk_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """Length of a chunk of a streaming encoder, in milliseconds: shorter chunks have less delay, longer ones are more
    accurate. By default, the length nearest to 320 on which the model was trained."""
    left_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """Milliseconds before a chunk that a streaming encoder sees. By default, the value nearest to 2560 on which the
    model was trained."""
    int8: bool = False
    """Also write x.int8.onnx: a quarter of the size, about twice as fast, possibly less accurate."""
    manifest_dir: Path | None = None
    """Folder with prepared cuts, to measure the accuracy of int8."""
    prefix: str = "aishell"
    """Name of the corpus."""
    test_set: Annotated[str, arg(aliases=("--test-sets",))] = "test"
    """Split to measure on."""
    max_duration: Annotated[float, Gt(0), Unit("s"), ADVANCED] = 100.0
    """Seconds of speech per batch."""
    reject_worse_than: float = 0.3
    """Largest increase of the error rate by int8, in percentage points; above it, the int8 graphs are removed and the
    exit status is 1."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.manifest_dir is not None and not self.int8:
            raise ValueError(f"`manifest_dir` {self.manifest_dir} needs `int8=true`, whose cost is measured on it.")
        for name in ("chunk_ms", "left_ms"):
            if not self.streaming and getattr(self, name) is not None:
                raise ValueError(f"`{name}` {getattr(self, name)} needs `streaming=true`.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run; status 1 if int8 was rejected."""
    return run(parse(Options, program, arguments, "Write a model as ONNX graphs that sherpa-onnx and onnx-asr run."))


def run(options: Options) -> int:
    """Export a model; quantize and evaluate it if requested."""
    from stateless_transducer.commands.shared.models import check_front_end, find_model
    from stateless_transducer.export.card import write_card
    from stateless_transducer.export.onnx_writer import (
        FOLDER_FILES,
        differs_from_clients,
        write_onnx,
        write_streaming_onnx,
    )
    from stateless_transducer.files import filling
    from stateless_transducer.recognition.model import load_pretrained

    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"`--output` {options.output} is a file; name a folder.")
    cuts = _cuts(options)
    checkpoint = load_pretrained(find_model(options.model, forms=("checkpoint",)))
    if cuts is not None:
        check_front_end("model", options.model, checkpoint.fbank_config)
    differences = differs_from_clients(checkpoint.fbank_config)
    if differences:
        complain(f"note: sherpa-onnx and onnx-asr compute other features than this model's ({differences}).")
    int8: dict[str, Any] | None = None
    with filling(options.output, owned=FOLDER_FILES) as folder:
        if options.streaming:
            write_streaming_onnx(folder, checkpoint, chunk_ms=options.chunk_ms, left_ms=options.left_ms)
        else:
            write_onnx(folder, checkpoint)
        if options.int8:
            int8 = _quantize(folder, cuts, options, checkpoint.token_table)
        write_card(folder, checkpoint, int8)
    for path in sorted(options.output.glob("*.onnx")):
        say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0 if int8 is None or int8["kept"] else 1


def _cuts(options: Options) -> CutIndex | None:
    """Return the test set for the evaluation of int8."""
    if options.manifest_dir is None:
        return None
    from stateless_transducer.data.batches import load_index

    return load_index(options.manifest_dir, options.prefix, options.test_set)


def _quantize(folder: Path, cuts: CutIndex | None, options: Options, token_table: TokenTable) -> dict[str, Any] | None:
    """Write the int8 graphs, measure their accuracy on a test set, and remove them if it is too low."""
    from stateless_transducer.export.onnx_model import INT8_GRAPHS
    from stateless_transducer.export.quantize import quantize

    quantize(folder)
    if cuts is None:
        complain("int8: the cost in accuracy was not measured. Set `--manifest-dir` to a prepared corpus.")
        return None
    fp32, int8 = (_evaluate(folder, precision, cuts, options, token_table) for precision in ("fp32", "int8"))
    cost = _cost(fp32, int8, options, token_table)
    if not cost["kept"]:
        complain(f"int8 is rejected: it costs more than `--reject-worse-than` {options.reject_worse_than:g} points.")
        for name in INT8_GRAPHS.values():
            (folder / name).unlink()
    return cost


def _evaluate(
    folder: Path, precision: Precision, cuts: CutIndex, options: Options, token_table: TokenTable
) -> TestResult:
    from stateless_transducer.data.batches import evaluation_batches
    from stateless_transducer.data.config import DataConfig
    from stateless_transducer.decoding.config import SearchConfig
    from stateless_transducer.decoding.search import decode_features
    from stateless_transducer.decoding.stream_search import decode_features_in_chunks
    from stateless_transducer.evaluation.test_sets import evaluate
    from stateless_transducer.export.onnx_model import OnnxTransducer
    from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer
    from stateless_transducer.text.tokens import UNKNOWN

    if options.streaming:
        model = OnnxStreamingTransducer.open(folder, prefer_int8=precision == "int8")
        decode = partial(decode_features_in_chunks, model, unknown_id=token_table.ids.get(UNKNOWN))
    else:
        decode = partial(decode_features, OnnxTransducer.open(folder, precision=precision))
    batches = evaluation_batches(cuts, token_table, DataConfig(max_duration=options.max_duration, num_workers=0))
    with progress_bar(f"decoding {options.test_set}, {precision}") as bar:

        def show(num_decoded: int) -> None:
            bar(num_decoded, len(cuts))

        return evaluate(decode, batches, token_table, SearchConfig(), device=None, progress=show)


def _cost(fp32: TestResult, int8: TestResult, options: Options, token_table: TokenTable) -> dict[str, Any]:
    """Return error rates in percent, their difference with its interval, and whether it is acceptable."""
    import numpy as np

    from stateless_transducer.evaluation.test_sets import CONFIDENCE, interval_of, metric_name
    from stateless_transducer.text.bootstrap import compare_reports

    if not fp32.report.num_reference:
        raise ValueError(f"`--test-set` {options.test_set} holds no text, which an error rate needs.")
    compared = compare_reports(
        fp32.report, int8.report, generator=np.random.default_rng(0), confidence=CONFIDENCE
    ).difference
    metric, rates = metric_name(token_table), (fp32.report.error_rate, int8.report.error_rate)
    say(
        f"{metric} of {options.prefix} {options.test_set}, {counted(len(fp32.report.utterances), 'utterance')}: fp32 "
        f"{rates[0]:.2f} %, int8 {rates[1]:.2f} %: {compared.value:+.2f} points "
        f"({100 * CONFIDENCE:g} % interval {compared.low:+.2f}..{compared.high:+.2f})"
    )
    return {
        "corpus": options.prefix,
        "test_set": options.test_set,
        "utterances": len(fp32.report.utterances),
        "search": "greedy_search",
        "metric": metric,
        "error_rate_fp32": round(rates[0], 2),
        "error_rate_int8": round(rates[1], 2),
        "difference": round(compared.value, 2),
        "difference_interval": interval_of(compared),
        "reject_worse_than": options.reject_worse_than,
        "kept": compared.value <= options.reject_worse_than,
    }
