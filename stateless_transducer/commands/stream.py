"""``transducer stream``: live speech to text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Unit
from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import LiveLine, complain
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.options import ADVANCED, HIDDEN, check_bounds
from stateless_transducer.recognition.endpoint import EndpointRules

if TYPE_CHECKING:
    import numpy as np

    from stateless_transducer.recognition.transcript import Segment


@dataclass(frozen=True)
class Options:
    """Options of ``transducer stream``."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """Folder with encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt of a streaming transducer, or owner/name of
    a published one."""
    file: Annotated[Path, Positional, arg(metavar="SOUND")]
    """Sound file of any sample rate; `-`: raw 16-bit samples (little-endian, one channel) from standard input."""
    sample_rate: Annotated[int, Ge(1000), Unit("Hz")] = 16000
    """Sample rate of standard input, in Hz."""
    chunk_ms: Annotated[int, Ge(1), Unit("ms"), ADVANCED] = 100
    """Milliseconds of sound to read at a time; the result does not depend on it."""
    output_format: Literal["txt", "json"] = "txt"
    """txt: `start<tab>end<tab>text`, seconds of the first and last token. json: one object per line with tokens, times
    and log-probabilities."""
    precision: Literal["fp32", "int8"] = "fp32"
    """int8: prefer x.int8.onnx to x.onnx."""
    prefer_int8: Annotated[bool, HIDDEN] = False
    """The old spelling of `--precision int8`."""
    num_threads: Annotated[int, Ge(1), ADVANCED] = 1
    """CPU threads per graph."""
    rules: Annotated[EndpointRules, ADVANCED] = field(default_factory=EndpointRules)

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def is_int8(self) -> bool:
        """Whether int8 graphs are preferred."""
        return self.prefer_int8 or self.precision == "int8"


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Transcribe sound while it comes in: a line for each utterance."))
    return 0


def run(options: Options) -> None:
    """Decode samples as they arrive; at the end or an interrupt, decode the rest."""
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.recognition.streaming import StreamingRecognizer

    precision = "int8" if options.is_int8 else "fp32"
    recognizer = StreamingRecognizer.from_pretrained(
        find_model(options.model, forms=("graphs",), precision=precision),
        rules=options.rules,
        precision=precision,
        num_threads=options.num_threads,
    )
    stream, line = recognizer.create_stream(), LiveLine()

    def decode() -> None:
        while recognizer.advance([stream]):
            line.show(stream.result.text)
            if stream.is_endpoint:
                line.end(_spell(stream.result, options.output_format))
                stream.reset()

    try:
        for samples, sample_rate in _pieces(options):
            stream.accept(samples, sample_rate)
            decode()
    finally:
        stream.finish()
        decode()
        line.end(_spell(stream.result, options.output_format))


def _spell(segment: Segment, output_format: str) -> str:
    if not segment.tokens:
        return ""
    if output_format == "json":
        return json.dumps(segment.known(), ensure_ascii=False, allow_nan=False)
    return f"{segment.times[0]:.2f}\t{segment.times[-1]:.2f}\t{segment.text}"


def _pieces(options: Options) -> Iterator[tuple[np.ndarray, int]]:
    """Return blocks of samples with their rate."""
    from stateless_transducer.audio import stream_audio
    from stateless_transducer.features import FbankConfig

    if options.file != Path("-"):
        rate = FbankConfig().sample_rate
        blocks = stream_audio(options.file, rate, block_s=options.chunk_ms / 1000, warn=complain)
        return ((samples, rate) for samples in blocks)
    return _standard_input(options.sample_rate, max(1, options.sample_rate * options.chunk_ms // 1000))


def _standard_input(sample_rate: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    import numpy as np

    if sys.stdin.isatty():
        raise ValueError("Standard input is a terminal. Pipe raw 16-bit samples to it, or name a sound file.")
    count = 0
    while data := sys.stdin.buffer.read(2 * size):
        if count == 0 and data.startswith((b"RIFF", b"fLaC", b"OggS", b"ID3")):
            raise ValueError("Standard input is a sound file, not raw samples. Name the file itself.")
        if len(data) % 2:
            raise ValueError(f"Standard input ends in the middle of a sample, after {count * 2 + len(data)} bytes.")
        count += len(data) // 2
        yield np.frombuffer(data, "<i2"), sample_rate
    if not count:
        raise ValueError("Standard input holds no samples (0 s of audio).")
