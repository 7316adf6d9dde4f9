"""A recognizer behind HTTP: sound files in the way of OpenAI's API, live sound over a WebSocket, a page to try it.

The page is `page.html`. What computes runs in threads, some for files and others for live sound, so that neither waits
for the other, and the event loop only passes bytes along.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
import numpy as np
from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateless_transducer import __version__
from stateless_transducer.audio import AudioError
from stateless_transducer.recognition.formats import check_words, document
from stateless_transducer.recognition.segments import Phrases
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.server.batcher import ClosedError
from stateless_transducer.server.engine import AbandonedError, Engine, SoundFile, Tell
from stateless_transducer.server.events import HEADERS, MEDIA_TYPE, event, transcript_events
from stateless_transducer.server.inbox import Inbox
from stateless_transducer.server.live import LiveSession

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt", "tsv", "TextGrid", "ctm"]
Granularity = Literal["word", "segment"]

_MEDIA_TYPES = {"vtt": "text/vtt", "tsv": "text/tab-separated-values"}
_TRY_AGAIN_LATER, _GOING_AWAY, _BAD_DATA = 1013, 1001, 1007  # reasons of WebSockets
_CLIENT_CLOSED = 499
_ENDING = "The server is being stopped."
_LOG = logging.getLogger("uvicorn.error")


class Service:
    """The application of one engine, and what a server must know to end it well.

    Args:
        engine: recognizes.
        name: of the model, as the API gives it.
        max_upload_mb: largest request, in 2**20 bytes.
        max_uploads: sound files that may be worked on or waiting at a time.
        max_live: sounds that may come in live at a time.
        origins: of other web pages that may read the answers; ``*``: of all.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        max_upload_mb: float = 1024.0,
        max_uploads: int = 64,
        max_live: int = 100,
        origins: Sequence[str] = (),
    ) -> None:
        self._engine, self._name = engine, name
        self._max_uploads, self._max_live, self._origins = max_uploads, max_live, origins
        self.num_uploads = 0
        # anyio binds a limiter to the event loop in which it is first used
        self._upload_threads, self._live_threads = (anyio.CapacityLimiter(n) for n in (max_uploads, max_live))
        self._inboxes: set[Inbox] = set()
        self.is_ending = False
        self.app = self._make_app(int(max_upload_mb * 2**20))

    @property
    def num_live(self) -> int:
        """Sounds that are coming in."""
        return len(self._inboxes)

    async def end_live(self) -> None:
        """What has come in live is the end: say what is final, and close."""
        self.is_ending = True
        for inbox in self._inboxes:
            inbox.end()
        while self._inboxes:
            await asyncio.sleep(0.02)

    def give_up(self) -> None:
        """What is being worked on is answered with 503 as soon as that can be."""
        # the engine waits for its batch; whoever calls this, a signal's handler perhaps, must not
        threading.Thread(target=self._engine.close, daemon=True).start()

    def _make_app(self, max_bytes: int) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            await anyio.to_thread.run_sync(self._engine.close)

        app = FastAPI(title="stateless-transducer", version=__version__, lifespan=lifespan)
        app.add_middleware(_Gate, service=self, max_bytes=max_bytes)
        if self._origins:
            # around the gate, whose refusals are to be read, too
            app.add_middleware(
                CORSMiddleware, allow_origins=self._origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )
        app.add_exception_handler(HTTPException, _refuse)
        app.add_exception_handler(RequestValidationError, _explain)
        app.add_exception_handler(Exception, _apologise)
        page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def show_page() -> str:
            return page

        @app.get("/health")
        async def health() -> dict[str, Any]:
            """Whether the server works, with which model, and how busy it is."""
            waiting_s = round(self._engine.waiting_s, 1)
            busy = {"waiting_s": waiting_s, "uploads": self.num_uploads, "live": self.num_live}
            return {"status": "ok", "model": self._name, "hotwords": self._engine.has_hotwords, **busy}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            """The one model that is served."""
            return {"object": "list", "data": [self._model()]}

        @app.get("/v1/models/{name}")
        async def model(name: str) -> dict[str, Any]:
            """The same by its name."""
            if name != self._name:
                raise HTTPException(404, f"There is no model {name!r}, but {self._name!r}.")
            return self._model()

        @app.post("/v1/audio/transcriptions", response_model=None)
        async def transcribe(
            request: Request,
            file: Annotated[UploadFile, File(description="Sound or video, of any rate and length.")],
            response_format: Annotated[ResponseFormat, Form()] = "json",
            channel: Annotated[int | None, Form(ge=0, description="From 0; left out: the mean of all.")] = None,
            stream: Annotated[
                bool, Form(description="Events while the sound is worked on: json, text, verbose_json.")
            ] = False,
            hotwords: Annotated[list[str] | None, Form(description="Wanted phrases, one a line.")] = None,
            granularities: Annotated[list[Granularity] | None, Form(alias="timestamp_granularities[]")] = None,
        ) -> Response:
            """What is said in a sound file. Other fields of OpenAI's API (model, language, ...) are not used."""
            # FastAPI takes the last of them
            if len((await request.form()).getlist("file")) > 1:
                raise HTTPException(400, "A request has one `file`; ask once for each.")
            wants_words = "word" in (granularities or ())
            if wants_words and response_format != "verbose_json":
                raise HTTPException(400, "`timestamp_granularities[]` word needs `response_format` verbose_json.")
            try:
                phrases = self._engine.spell([line for each in hotwords or () for line in each.splitlines()])
            except ValueError as err:
                raise HTTPException(400, str(err)) from err
            upload = _Upload(file, channel, phrases)
            if stream:
                return await self._stream(request, upload, response_format, wants_words)
            *_, found = [each async for each in self._heard(request, upload)]
            assert isinstance(found, Transcript)
            try:
                return _response(response_format, file.filename or "sound", found, self._engine, wants_words)
            except ValueError as err:
                raise HTTPException(400, str(err)) from err

        app.add_api_websocket_route("/v1/live", self._live)
        return app

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "local"}

    async def _stream(self, request: Request, upload: _Upload, wanted: ResponseFormat, wants_words: bool) -> Response:
        if wanted not in ("json", "text", "verbose_json"):
            raise HTTPException(400, f"`stream` needs `response_format` json, text or verbose_json, not {wanted}.")
        is_verbose = wanted == "verbose_json"
        heard = self._heard(request, upload)
        # whatever is wrong with a sound from its beginning on is answered with a status
        first = await anext(heard)
        lines = transcript_events(
            _with_first(first, heard),
            self._engine.token_table,
            has_segments=is_verbose,
            describe=partial(_described, is_verbose=is_verbose, wants_words=wants_words),
        )
        return StreamingResponse(_with_error(lines), media_type=MEDIA_TYPE, headers=HEADERS)

    async def _heard(self, request: Request, upload: _Upload) -> AsyncGenerator[Segment | Transcript]:
        """Segments as soon as they are known, and then the transcript; what goes wrong is an HTTPException."""
        upload.keep()
        loop, news, is_abandoned = asyncio.get_running_loop(), asyncio.Queue[Segment | None](), threading.Event()
        tell = partial(loop.call_soon_threadsafe, news.put_nowait)
        work = asyncio.create_task(self._transcribe(request, upload, is_abandoned, tell))

        def end(_: asyncio.Task[Transcript]) -> None:
            upload.close()
            news.put_nowait(None)

        work.add_done_callback(end)
        try:
            while (segment := await news.get()) is not None:
                yield segment
            yield work.result()
        finally:
            # the thread looks at it and ends, and what it reads is closed after it
            is_abandoned.set()
            work.add_done_callback(asyncio.Task.exception)

    async def _transcribe(
        self, request: Request, upload: _Upload, is_abandoned: threading.Event, tell: Tell
    ) -> Transcript:
        watcher = asyncio.create_task(_set_when_gone(request, is_abandoned))
        work = partial(self._engine.transcribe, upload.sound, is_abandoned.is_set, tell)
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._upload_threads)
        except AudioError as err:
            raise HTTPException(400, str(err)) from err
        except ClosedError as err:
            raise HTTPException(503, _ENDING) from err
        except AbandonedError as err:
            # for the log alone
            raise HTTPException(_CLIENT_CLOSED, "The client is gone.") from err
        finally:
            watcher.cancel()

    async def _live(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            inbox = Inbox(socket)
            phrases = self._engine.spell(inbox.hotwords)
        except ValueError as err:
            await _close(socket, _BAD_DATA, str(err))
            return
        if self.is_ending:
            await _close(socket, _GOING_AWAY, _ENDING)
            return
        if self.num_live >= self._max_live:
            why = f"{self.num_live} sounds are coming in already; try again later."
            await _close(socket, _TRY_AGAIN_LATER, why)
            return
        self._inboxes.add(inbox)
        try:
            await self._listen(inbox, socket, phrases)
        except WebSocketDisconnect:
            pass
        except ClosedError as err:
            await _close(socket, _GOING_AWAY, str(err))
        except ValueError as err:
            await _close(socket, _BAD_DATA, str(err))
        finally:
            self._inboxes.discard(inbox)

    async def _listen(self, inbox: Inbox, socket: WebSocket, phrases: Phrases) -> None:
        """Samples come in while what came before is worked on."""
        session = await self._in_thread(partial(self._engine.live, inbox.sample_rate, phrases))
        reader = asyncio.create_task(inbox.fill())
        try:
            while True:
                samples, is_over = await inbox.take()
                if samples is not None:
                    await self._tell(socket, session, samples)
                elif reader.done():
                    # a client that has gone, or data that cannot be
                    reader.result()
                if is_over and samples is None:
                    break
            await self._tell(socket, session, None)
            inbox.check_end()
            await socket.send_json({"type": "end"})
            await socket.close()
        finally:
            reader.cancel()

    async def _tell(self, socket: WebSocket, session: LiveSession, samples: np.ndarray | None) -> None:
        """What is heard in the next samples; None: in what is left."""
        heard = session.finish() if samples is None else session.accept(samples)
        while (each := await self._in_thread(partial(next, heard, None))) is not None:
            await socket.send_json({"type": "final" if each.is_final else "partial", **each.segment.known()})

    async def _in_thread(self, work: partial) -> Any:
        return await anyio.to_thread.run_sync(work, limiter=self._live_threads)


class _Upload:
    """An uploaded sound and what is wanted of it; under its own name, for temporary files have other names, or none."""

    def __init__(self, file: UploadFile, channel: int | None, phrases: Phrases) -> None:
        self.name, self._upload, self._file = file.filename or "sound", file, file.file
        self.read, self.tell = file.file.read, file.file.tell
        # who reads it wants no more of a file than these methods
        self.sound = SoundFile(self, channel, phrases)  # pyright: ignore[reportArgumentType]

    def seek(self, offset: int, whence: int = 0) -> int:
        # Python 3.10's temporary files do not say where they are
        self._file.seek(offset, whence)
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def keep(self) -> None:
        """Until `close`: FastAPI closes it with the answer (before 0.118: before it); a thread may still read it."""
        self._upload.file = io.BytesIO()

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return self.name


async def _set_when_gone(request: Request, event: threading.Event) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.5)
    event.set()


async def _close(socket: WebSocket, code: int, why: str) -> None:
    """Say why, where clients look for it; a close frame has room for 123 bytes."""
    await socket.send_json({"type": "error", "message": why})
    await socket.close(code, why.encode()[:120].decode(errors="ignore"))


def _response(wanted: ResponseFormat, name: str, found: Transcript, engine: Engine, wants_words: bool) -> Response:
    if wanted == "text":
        return PlainTextResponse(found.text + "\n")
    if wanted in ("json", "verbose_json"):
        return JSONResponse(_described(found, is_verbose=wanted == "verbose_json", wants_words=wants_words))
    media_type = _MEDIA_TYPES.get(wanted, "text/plain")
    return PlainTextResponse(document(wanted, name, found, engine.token_table), media_type=media_type)


def _described(found: Transcript, *, is_verbose: bool, wants_words: bool) -> dict[str, Any]:
    """As OpenAI's json and verbose_json have it.

    Raises:
        ValueError: words are wanted, and the model does not know where they begin and end.
    """
    if not is_verbose:
        return {"text": found.text}
    segments = [{"id": number, **segment.known()} for number, segment in enumerate(found.segments)]
    whole = {"task": "transcribe", "duration": found.duration, "text": found.text}
    if wants_words:
        check_words(found)
        whole["words"] = [word for segment in segments for word in segment.get("words", ())]
    return {**whole, "segments": segments, "warnings": list(found.warnings)}


async def _with_first(
    first: Segment | Transcript, others: AsyncIterator[Segment | Transcript]
) -> AsyncIterator[Segment | Transcript]:
    yield first
    async for each in others:
        yield each


async def _with_error(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The status has been sent: what goes wrong now is one more event, as OpenAI's clients read it."""
    try:
        async for line in lines:
            yield line
    except (HTTPException, ValueError) as err:
        status, message = (err.status_code, err.detail) if isinstance(err, HTTPException) else (400, str(err))
        yield event({"error": _fault(status, message)})
    except Exception as err:
        _LOG.exception("In the middle of an answer:")
        yield event({"error": _fault(500, _apology(err))})


def _fault(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "code": status}


def _error(status: int, message: str, headers: Any = None) -> JSONResponse:
    """As OpenAI's clients read it."""
    return JSONResponse({"error": _fault(status, message)}, status, headers)


async def _refuse(_: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    return _error(err.status_code, str(err.detail), err.headers)


async def _explain(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    return _error(400, "; ".join(f"`{'.'.join(map(str, each['loc'][1:]))}`: {each['msg']}" for each in err.errors()))


async def _apologise(_: Request, err: Exception) -> Response:
    """What went wrong is in the server's log."""
    return _error(500, _apology(err))


def _apology(err: Exception) -> str:
    return f"An error of the server's: {type(err).__name__}."


class _Gate:
    """Refuses what is too large, or too much, before it is stored anywhere."""

    def __init__(self, app: ASGIApp, service: Service, max_bytes: int) -> None:
        self._app, self._service, self._max_bytes = app, service, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        service = self._service
        if service.is_ending:
            await _error(503, _ENDING)(scope, receive, send)
            return
        if service.num_uploads >= service._max_uploads:
            why = f"{service.num_uploads} sounds are being transcribed; try again later."
            await _error(503, why, {"Retry-After": "10"})(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
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

        service.num_uploads += 1
        try:
            await self._app(scope, counted, send)
        finally:
            service.num_uploads -= 1
