"""``transducer stream``: live speech to text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Interval, Unit
from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import LiveLine, complain
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.idle import refuse_idle, refuse_idle_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.options import ADVANCED, HIDDEN, check_bounds
from stateless_transducer.recognition.config import DetailConfig
from stateless_transducer.recognition.endpoint import EndpointRules

if TYPE_CHECKING:
    import numpy as np

    from stateless_transducer.recognition.transcript import Segment

_STANDARD_INPUT = Path("-")


@dataclass(frozen=True)
class Options:
    """Options of ``transducer stream``."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """Checkpoint trained with `--causal true`; folder with encoder*.onnx, decoder*.onnx, joiner*.onnx and tokens.txt of
    a streaming transducer; or owner/name of a published one."""
    file: Annotated[Path | None, Positional, arg(metavar="[SOUND]")] = None
    """Sound file of any sample rate; `-`: raw 16-bit samples (little-endian, one channel) from standard input."""
    microphone: bool = False
    """Listen to the microphone instead."""
    sample_rate: Annotated[int, Interval(ge=1000, le=1_000_000), Unit("Hz")] = 16000
    """Sample rate of standard input, in Hz."""
    chunk_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """Length of a chunk in milliseconds; longer chunks are more accurate, but add delay. By default, the length nearest
    to 320 on which the model was trained; that of ONNX graphs is fixed."""
    left_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """Milliseconds before a chunk that the model sees. By default, the value nearest to 2560 on which it was trained;
    that of ONNX graphs is fixed."""
    block_ms: Annotated[int, Ge(1), Unit("ms"), ADVANCED] = 100
    """Milliseconds of sound to read at a time; the result does not depend on it."""
    output_format: Literal["txt", "json"] = "txt"
    """txt: `start<tab>end<tab>text`, seconds of the first and last token. json: one object per line with tokens, times
    and log-probabilities."""
    device: str = "auto"
    """Device of a checkpoint: cpu, cuda, cuda:1, ...; auto: the first GPU if there is one. Graphs run on the CPU."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """bf16: checkpoints only. int8: prefer x.int8.onnx to x.onnx."""
    prefer_int8: Annotated[bool, HIDDEN] = False
    """The old spelling of `--precision int8`."""
    num_threads: Annotated[Annotated[int, Ge(1)] | None, ADVANCED] = None
    """CPU threads; by default, one per graph, and for a checkpoint torch decides."""
    details: DetailConfig = field(default_factory=DetailConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    rules: Annotated[EndpointRules, ADVANCED] = field(default_factory=EndpointRules)

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.file is None) != self.microphone:
            raise ValueError("Name one sound: a file, `-` for standard input, or `--microphone`.")
        if self.file != _STANDARD_INPUT:
            refuse_idle(
                self, "raw samples from standard input (`-`): other sound states its rate", names=["sample_rate"]
            )
        refuse_idle_search(self.search, nbest=self.details.nbest)
        if self.details.nbest > 1 and self.output_format != "json":
            raise ValueError(
                f"`nbest` {self.details.nbest} needs `output_format=json`: a line of text has room for one."
            )

    @property
    def is_int8(self) -> bool:
        """Whether int8 graphs are preferred."""
        return self.prefer_int8 or self.precision == "int8"


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Transcribe live sound, one line per utterance."))
    return 0


def run(options: Options) -> None:
    """Decode samples as they arrive; at the end or an interrupt, decode the rest."""
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.recognition.model import forms_for
    from stateless_transducer.recognition.streaming import StreamingRecognizer

    precision = "int8" if options.is_int8 else options.precision
    recognizer = StreamingRecognizer.from_pretrained(
        find_model(options.model, forms=forms_for(options.device, precision), precision=precision),
        options.search,
        rules=options.rules,
        chunk_ms=options.chunk_ms,
        left_ms=options.left_ms,
        device=options.device,
        precision=precision,
        num_threads=options.num_threads,
        details=options.details,
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
    from stateless_transducer.commands.shared.microphone import listen
    from stateless_transducer.features import FbankConfig

    block_s = options.block_ms / 1000
    if options.file is None:
        return listen(block_s)
    if options.file != _STANDARD_INPUT:
        rate = FbankConfig().sample_rate
        return ((samples, rate) for samples in stream_audio(options.file, rate, block_s=block_s, warn=complain))
    return _standard_input(options.sample_rate, max(1, round(options.sample_rate * block_s)))


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
