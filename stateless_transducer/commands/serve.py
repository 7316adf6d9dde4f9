"""``transducer serve``: a model behind HTTP, with a page to try it."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from stateless_transducer.commands.console import say
from stateless_transducer.commands.flags import parse
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.serving.config import BatchConfig, DetailConfig, SegmentConfig

if TYPE_CHECKING:
    from stateless_transducer.serving.engine import Engine


@dataclass(frozen=True)
class Options:
    """Options of ``transducer serve``."""

    model: Annotated[Path, Positional, arg(metavar="MODEL")]
    """Model file, a checkpoint, or a folder of ONNX graphs and tokens.txt: of whole utterances, or streaming."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: whoever reaches this machine may use it."""
    port: int = 8000
    """Port; 0: any that is free, which is printed."""
    max_upload_mb: float = 1024.0
    """Largest file that is taken, in MiB."""
    max_live: int = 100
    """Sounds that may come in live at a time."""
    ssl_certfile: Path | None = None
    """Certificate, for https: browsers give the microphone to pages from this machine, or over https."""
    ssl_keyfile: Path | None = None
    """Its key."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: the first GPU, if there is one."""
    num_threads: int | None = None
    """Threads on the CPU; None: torch or onnxruntime decides."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """bf16: of a checkpoint, faster on a GPU, and on a CPU with AMX; int8: x.int8.onnx of a folder."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    details: DetailConfig = field(default_factory=DetailConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`--port` must be in 0..65535, but is {self.port}.")
        if not self.max_upload_mb > 0:
            raise ValueError(f"`--max-upload-mb` must be above 0 MiB, but is {self.max_upload_mb:g}.")
        for name in ("max_live", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, but is {value}.")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("`--ssl-keyfile` belongs to a `--ssl-certfile`.")
        for name in ("ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"`--{name.replace('_', '-')}` {path}: no such file.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run, until told to stop."""
    run(parse(Options, program, arguments, "Serve a model: sound files and live sound to text, and a page to try it."))
    return 0


def run(options: Options) -> None:
    """Open the model and the port, then serve.

    Raises:
        ValueError: the model cannot be opened, or the address cannot be listened on.
    """
    import uvicorn

    from stateless_transducer.serving.server import create_app

    with _listening(options.host, options.port) as listener:
        engine = _open(options)
        app = create_app(engine, options.model.stem, max_upload_mb=options.max_upload_mb, max_live=options.max_live)
        scheme = "http" if options.ssl_certfile is None else "https"
        host, port = listener.getsockname()[:2]
        say(f"serving {options.model} on {scheme}://{f'[{host}]' if ':' in host else host}:{port} - Ctrl-C stops it")
        config = uvicorn.Config(
            app,
            log_level="warning",
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
            timeout_graceful_shutdown=30,
        )
        # it raises the interrupt once more when all is closed
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """Before the model is opened, which takes time: whether the port is free is known at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as err:
        raise ValueError(f"`--host` {host}, `--port` {port}: cannot be listened on: {err.strerror or err}.") from err


def _open(options: Options) -> Engine:
    from stateless_transducer.serving.engine import PiecewiseEngine, is_streaming_folder, open_streaming_engine
    from stateless_transducer.serving.recognizer import Recognizer

    if is_streaming_folder(options.model):
        if options.search != SearchConfig():
            raise ValueError(f"{options.model} is a streaming model: it knows no other than its greedy search.")
        return open_streaming_engine(options.model, num_threads=options.num_threads or 1)
    if options.num_threads is not None and not options.model.is_dir():
        import torch

        torch.set_num_threads(options.num_threads)
    recognizer = Recognizer.from_pretrained(
        options.model,
        options.search,
        device=options.device,
        precision=options.precision,
        segments=options.segments,
        details=options.details,
        num_threads=options.num_threads,
    )
    return PiecewiseEngine(recognizer, options.batch)
