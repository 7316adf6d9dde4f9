"""A recogniser behind HTTP: sound files in the way of OpenAI's API, live sound over a WebSocket, a page to try it.

The page is `page.html`. What computes runs in threads, so that the event loop only passes bytes along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateless_transducer import __version__
from stateless_transducer.audio import AudioError
from stateless_transducer.serving.batcher import BusyError
from stateless_transducer.serving.engine import Engine
from stateless_transducer.serving.formats import document
from stateless_transducer.serving.live import Heard
from stateless_transducer.serving.transcript import Transcript

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt", "tsv", "TextGrid"]

_MEDIA_TYPES = {"vtt": "text/vtt", "tsv": "text/tab-separated-values"}
_SAMPLES = {"s16le": "<i2", "f32le": "<f4"}
_TRY_AGAIN_LATER, _BAD_DATA = 1013, 1007  # reasons of WebSockets


def create_app(engine: Engine, name: str, *, max_upload_mb: float = 1024.0, max_live: int = 100) -> FastAPI:
    """The application; it closes the engine at its end.

    Args:
        engine: recognises.
        name: of the model, as the API gives it.
        max_upload_mb: largest request, in 2**20 bytes.
        max_live: sounds that may come in live at a time.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(title="stateless-transducer", version=__version__, lifespan=lifespan)
    app.add_middleware(_BodyLimit, max_bytes=int(max_upload_mb * 2**20))
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    num_live = 0

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, err: HTTPException) -> JSONResponse:
        return _error(err.status_code, str(err.detail), err.headers)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, err: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"`{'.'.join(map(str, each['loc'][1:]))}`: {each['msg']}" for each in err.errors())
        return _error(400, said)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> str:
        return page

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server works, with which model, and how busy it is."""
        return {"status": "ok", "model": name, "waiting_s": round(engine.waiting_s, 1), "live": num_live}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "local"}]}

    @app.post("/v1/audio/transcriptions", response_model=None)
    def transcribe(
        file: Annotated[UploadFile, File(description="Sound or video, of any rate and length.")],
        response_format: Annotated[ResponseFormat, Form()] = "json",
        channel: Annotated[int | None, Form(ge=0, description="From 0; left out: the mean of all.")] = None,
    ) -> Response:
        """What is said in a sound file. Other fields of OpenAI's API (model, language, ...) are taken and not used."""
        try:
            found = engine.transcribe(file.file, channel=channel)
        except AudioError as err:
            raise HTTPException(400, f"{file.filename}: {str(err).partition(': ')[2] or err}") from err
        except BusyError as err:
            raise HTTPException(503, f"{err}; try again later.", {"Retry-After": "10"}) from err
        return _response(response_format, file.filename or "sound", found, engine)

    @app.websocket("/v1/live")
    async def live(socket: WebSocket, sample_rate: int = 16000, format: str = "s16le") -> None:
        nonlocal num_live
        await socket.accept()
        if not 1000 <= sample_rate <= 384000 or format not in _SAMPLES:
            wanted = f"`sample_rate` must be in 1000..384000, `format` {' or '.join(_SAMPLES)}"
            await _close(socket, _BAD_DATA, f"{wanted}, but they are {sample_rate} and {format!r}.")
            return
        if num_live >= max_live:
            await _close(socket, _TRY_AGAIN_LATER, f"{num_live} sounds are coming in already; try again later.")
            return
        num_live += 1
        try:
            await _listen(socket, engine, sample_rate, _SAMPLES[format])
        except WebSocketDisconnect:
            pass
        except BusyError as err:
            await _close(socket, _TRY_AGAIN_LATER, f"{err}; try again later.")
        except ValueError as err:
            await _close(socket, _BAD_DATA, str(err))
        finally:
            num_live -= 1

    return app


async def _listen(socket: WebSocket, engine: Engine, sample_rate: int, dtype: str) -> None:
    """Until the client says that it is done: binary messages are samples, any text message is the end."""
    session = await run_in_threadpool(engine.live, sample_rate)
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if (data := message.get("bytes")) is None:
            break
        if len(data) % np.dtype(dtype).itemsize:
            raise ValueError(f"A message of {len(data)} bytes ends in the middle of a sample.")
        await _tell(socket, session.accept(np.frombuffer(data, dtype)))
    await _tell(socket, session.finish())
    await socket.send_json({"type": "end"})
    await socket.close()


async def _tell(socket: WebSocket, heard: Iterator[Heard]) -> None:
    async for each in iterate_in_threadpool(heard):
        await socket.send_json({"type": "final" if each.is_final else "partial", **each.segment.known()})


async def _close(socket: WebSocket, code: int, why: str) -> None:
    """Say why, where clients look for it; a close frame has room for 123 bytes."""
    await socket.send_json({"type": "error", "message": why})
    await socket.close(code, why.encode()[:120].decode(errors="ignore"))


def _response(wanted: ResponseFormat, name: str, found: Transcript, engine: Engine) -> Response:
    if wanted == "json":
        return JSONResponse({"text": found.text})
    if wanted == "text":
        return PlainTextResponse(found.text + "\n")
    if wanted == "verbose_json":
        segments = [{"id": number, **segment.known()} for number, segment in enumerate(found.segments)]
        whole = {"task": "transcribe", "duration": found.duration, "text": found.text}
        return JSONResponse({**whole, "segments": segments, "warnings": list(found.warnings)})
    media_type = _MEDIA_TYPES.get(wanted, "text/plain")
    return PlainTextResponse(document(wanted, name, found, engine.token_table), media_type=media_type)


def _error(status: int, message: str, headers: Any = None) -> JSONResponse:
    """As OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


class _BodyLimit:
    """Refuses requests that are too large, before they are stored anywhere."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"0")
        message = f"The request is larger than {self._max_bytes / 2**20:g} MiB."
        if stated.isdigit() and int(stated) > self._max_bytes:
            await _error(413, message)(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            part = await receive()
            num_bytes += len(part.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, message)
            return part

        await self._app(scope, counted, send)
