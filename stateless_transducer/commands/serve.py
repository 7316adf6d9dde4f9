"""``transducer serve``: a model as an HTTP service, with a web page to try it."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Interval, Unit
from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import complain, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.idle import refuse_idle, refuse_idle_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.server.config import BatchConfig

if TYPE_CHECKING:
    from stateless_transducer.server.engine import Engine


@dataclass(frozen=True)
class Options:
    """Options of ``transducer serve``."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """Model file, training checkpoint, folder of a model, offline or streaming, or owner/name of a published one. One
    trained with `--causal true` decodes files as a whole, and live sound chunk by chunk."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses, so that other machines can use the server."""
    port: Annotated[int, Interval(ge=0, le=65535)] = 8000
    """Port; 0: any free port, which is printed."""
    max_upload_mb: Annotated[float, Gt(0), Unit("MiB"), ADVANCED] = 1024.0
    """Largest upload, in MiB."""
    max_uploads: Annotated[int, Ge(1), ADVANCED] = 64
    """Uploads that may be processed or waiting at once; more are refused with status 503."""
    max_live: Annotated[int, Ge(1), ADVANCED] = 100
    """Live connections at once."""
    allow_origin: Annotated[tuple[str, ...], ADVANCED] = ()
    """Allowed CORS origins, for example https://example.org; *: all. They may also use live sound."""
    allow_host: Annotated[tuple[str, ...], ADVANCED] = ()
    """Host names under which the server is reached, besides localhost, `--host` and IP addresses; *: all."""
    api_key: Annotated[str | None, ADVANCED] = None
    """Key that clients must send, as `Authorization: Bearer KEY`."""
    max_seconds: Annotated[float, Gt(0), Unit("s"), ADVANCED] = 21600.0
    """Longest sound file, in seconds."""
    idle_timeout_s: Annotated[float, Gt(0), Unit("s"), ADVANCED] = 30.0
    """Longest wait for the next part of a request, in seconds."""
    upload_timeout_s: Annotated[float, Gt(0), Unit("s"), ADVANCED] = 3600.0
    """Longest time for a whole request to arrive, in seconds."""
    live_timeout_s: Annotated[float, Gt(0), Unit("s"), ADVANCED] = 300.0
    """Longest wait for the next samples of a live sound, in seconds."""
    access_log: Annotated[bool, ADVANCED] = False
    """Print a line per request."""
    ssl_certfile: Path | None = None
    """Certificate, for https. Browsers allow the microphone only on this machine or over https."""
    ssl_keyfile: Path | None = None
    """Private key for `--ssl-certfile`."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""
    num_threads: Annotated[Annotated[int, Ge(1)] | None, ADVANCED] = None
    """CPU threads; by default, torch or onnxruntime decides."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """bf16: checkpoints only, faster on GPUs and on CPUs with AMX. int8: x.int8.onnx of ONNX folders."""
    chunk_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT")] = None
    """Live sound with a model trained with `--causal true`: length of a chunk in milliseconds. By default, the length
    nearest to 320 on which it was trained."""
    left_ms: Annotated[Annotated[int, Ge(1), Unit("ms")] | None, arg(metavar="INT"), ADVANCED] = None
    """Live sound with such a model: milliseconds before a chunk that it sees. By default, the value nearest to 2560 on
    which it was trained."""
    batch: Annotated[BatchConfig, ADVANCED] = field(default_factory=BatchConfig)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    details: DetailConfig = field(default_factory=DetailConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    rules: Annotated[EndpointRules, ADVANCED] = field(default_factory=EndpointRules)

    def __post_init__(self) -> None:
        check_bounds(self)
        for origin in self.allow_origin:
            if not re.fullmatch(r"\*|https?://[^/?#\s]+", origin):
                raise ValueError(f"`allow_origin` must be like https://example.org (no path), or *, but is {origin}.")
        for host in self.allow_host:
            if not re.fullmatch(r"\*|[A-Za-z0-9.-]+", host):
                raise ValueError(f"`allow_host` must be a host name without a port, or *, but is {host!r}.")
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            raise ValueError("`api_key` must be printable ASCII without blanks, and not empty.")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError(f"`ssl_keyfile` {self.ssl_keyfile} needs `ssl_certfile`.")
        for name in ("ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"`{name}` {path}: no such file.")
        refuse_idle_search(self.search, nbest=self.details.nbest, sounds_have_hotwords=True)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run until stopped."""
    run(
        parse(
            Options,
            program,
            arguments,
            "Serve a model that transcribes sound files and live sound, with a web page to try it.",
        )
    )
    return 0


def run(options: Options) -> None:
    """Open the model and the port, then serve.

    Raises:
        ValueError: The model cannot be opened, or the address is not available.
    """
    from stateless_transducer.hub import short_name
    from stateless_transducer.server.app import Service
    from stateless_transducer.server.lifecycle import serve

    certificate = _certificate(options)
    with _listening(options.host, options.port) as listener:
        service = Service(
            _open(options),
            short_name(options.model),
            max_upload_mb=options.max_upload_mb,
            max_uploads=options.max_uploads,
            max_live=options.max_live,
            max_seconds=options.max_seconds,
            origins=options.allow_origin,
            hosts=(*options.allow_host, options.host),
            api_key=options.api_key,
            idle_timeout_s=options.idle_timeout_s,
            upload_timeout_s=options.upload_timeout_s,
            live_timeout_s=options.live_timeout_s,
        )
        scheme = "http" if certificate is None else "https"
        host, port = listener.getsockname()[:2]
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"serving {options.model} on {address} - press Ctrl-C to stop")
        serve(service, listener, certificate=certificate, has_access_log=options.access_log, say=complain)


def _certificate(options: Options) -> tuple[Path, Path | None] | None:
    """Return the files of the certificate, after a check that they match."""
    if options.ssl_certfile is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
    except ssl.SSLError as err:
        key = options.ssl_keyfile or "(not set: the same file)"
        reason = (err.reason or str(err)).replace("_", " ").lower()
        raise ValueError(f"`--ssl-certfile` {options.ssl_certfile}, `--ssl-keyfile` {key}: {reason}.") from err
    return options.ssl_certfile, options.ssl_keyfile


def _listening(host: str, port: int) -> socket.socket:
    """Open the port, before the slow loading of the model, so that a port in use is reported at once."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as err:
        raise ValueError(f"`--host` {host}, `--port` {port}: cannot listen: {err.strerror or err}.") from err


def _open(options: Options) -> Engine:
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.recognition.model import (
        forms_for,
        graphs_of,
        is_streaming_folder,
        load_pretrained,
        open_model,
        streaming_model_of,
    )
    from stateless_transducer.recognition.recognizer import Recognizer
    from stateless_transducer.recognition.streaming import StreamingRecognizer
    from stateless_transducer.server.engine import PiecewiseEngine, StreamingEngine

    forms, device, precision = forms_for(options.device, options.precision), options.device, options.precision
    path = find_model(options.model, forms=forms, precision=precision)
    if is_streaming_folder(path, forms):
        refuse_idle(options.segments, f"an offline model, but {options.model} is a streaming model")
        streaming = StreamingRecognizer.from_pretrained(
            path,
            options.search,
            rules=options.rules,
            device=device,
            precision=precision,
            num_threads=options.num_threads,
            details=options.details,
            chunk_ms=options.chunk_ms,
            left_ms=options.left_ms,
        )
        return StreamingEngine(streaming, options.batch)
    live = None
    # a graph by itself is refused by `open_model`
    if graphs_of(path, forms, precision) is not None or path.suffix == ".onnx":
        model = open_model(path, device=device, precision=precision, num_threads=options.num_threads)
    else:
        model = load_pretrained(path, num_threads=options.num_threads)
        if model.model_config.is_causal:
            live = StreamingRecognizer(
                streaming_model_of(
                    model, chunk_ms=options.chunk_ms, left_ms=options.left_ms, device=device, precision=precision
                ),
                options.search,
                rules=options.rules,
                details=options.details,
            )
    if live is None:
        need = f"a streaming model, but {options.model} is an offline model"
        refuse_idle(options.rules, need)
        refuse_idle(options, need, names=["chunk_ms", "left_ms"])
    recognizer = Recognizer(
        model, options.search, device=device, precision=precision, segments=options.segments, details=options.details
    )
    return PiecewiseEngine(recognizer, options.batch, live)
