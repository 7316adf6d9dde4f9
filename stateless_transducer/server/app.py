"""A recognizer behind HTTP: OpenAI's API for sound files, a WebSocket for live sound, a page to try both.

The page is `page.html`. Files and live sound are decoded in threads of their own, so that neither waits for the other;
the event loop only passes bytes along.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
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
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from stateless_transducer import __version__
from stateless_transducer.audio import AudioError
from stateless_transducer.recognition.formats import check_words, document
from stateless_transducer.recognition.segments import Phrases
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.server.batcher import ClosedError
from stateless_transducer.server.engine import AbandonedError, Engine, SoundFile, Tell, TooLongError, hotwords_in
from stateless_transducer.server.errors import add_error_handlers, error_fields, internal_error_message
from stateless_transducer.server.events import HEADERS, MEDIA_TYPE, event, transcript_events
from stateless_transducer.server.gate import Access, AccessGate, UploadGate, Uploads
from stateless_transducer.server.inbox import Inbox
from stateless_transducer.server.live import LiveSession
from stateless_transducer.server.metrics import MEDIA_TYPE as METRICS_TYPE
from stateless_transducer.server.metrics import Metrics
from stateless_transducer.server.page import page_policy

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt", "tsv", "TextGrid", "ctm"]
Granularity = Literal["word", "segment"]

_MEDIA_TYPES = {"vtt": "text/vtt", "tsv": "text/tab-separated-values"}
_TRY_AGAIN_LATER, _GOING_AWAY, _BAD_DATA = 1013, 1001, 1007  # WebSocket close codes
_CLIENT_CLOSED = 499
_ENDING = "The server is being stopped."
_LOG = logging.getLogger("uvicorn.error")


class Service:
    """The application of one engine, with the state that a server needs to stop cleanly.

    Args:
        engine: Recognition engine.
        name: Name of the model in the API.
        max_upload_mb: Largest request, in 2**20 bytes.
        max_uploads: Sound files that may be in progress at once.
        max_live: Live sounds that may be in progress at once.
        max_seconds: Longest sound file.
        origins: See `Access`.
        hosts: See `Access`.
        api_key: See `Access`.
        idle_timeout_s: Longest wait for the next part of a request.
        upload_timeout_s: Longest time for a whole request to arrive.
        live_timeout_s: Longest wait for the next samples of a live sound.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        max_upload_mb: float = 1024.0,
        max_uploads: int = 64,
        max_live: int = 100,
        max_seconds: float = math.inf,
        origins: Sequence[str] = (),
        hosts: Sequence[str] = (),
        api_key: str | None = None,
        idle_timeout_s: float = 30.0,
        upload_timeout_s: float = 3600.0,
        live_timeout_s: float = 300.0,
    ) -> None:
        self._engine, self._name = engine, name
        self._max_live, self._max_seconds, self._live_timeout_s = max_live, max_seconds, live_timeout_s
        self.idle_timeout_s: float = idle_timeout_s
        self._has_key = api_key is not None
        self._uploads, self._metrics = Uploads(max_uploads), Metrics()
        # anyio binds a limiter to the event loop in which it is first used
        self._upload_threads, self._live_threads = (anyio.CapacityLimiter(n) for n in (max_uploads, max_live))
        self._inboxes: set[Inbox] = set()
        self.app: FastAPI = self._make_app()
        self.app.add_middleware(
            UploadGate,
            uploads=self._uploads,
            max_bytes=int(max_upload_mb * 2**20),
            idle_timeout_s=idle_timeout_s,
            upload_timeout_s=upload_timeout_s,
        )
        access = Access(origins, hosts, api_key)
        self.app.add_middleware(AccessGate, access=access, count=self._metrics.count_answer)
        if origins:
            # outermost, so that a page can read refusals as well
            self.app.add_middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"]
            )

    @property
    def num_uploads(self) -> int:
        """Sound files in progress."""
        return self._uploads.count

    @property
    def num_live(self) -> int:
        """Live sounds in progress."""
        return len(self._inboxes)

    @property
    def is_ending(self) -> bool:
        """Whether new work is refused."""
        return self._uploads.is_ending

    @is_ending.setter
    def is_ending(self, value: bool) -> None:
        self._uploads.is_ending = value

    async def end_live(self) -> None:
        """End all live sounds: send the final results, and close."""
        self.is_ending = True
        for inbox in self._inboxes:
            inbox.end()
        while self._inboxes:
            await asyncio.sleep(0.02)

    def give_up(self) -> None:
        """Answer all work in progress with 503 as soon as possible."""
        # `close` waits for a batch, which a signal handler must not do
        threading.Thread(target=self._engine.close, daemon=True).start()

    def _make_app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            await anyio.to_thread.run_sync(self._engine.close)

        app = FastAPI(title="stateless-transducer", version=__version__, lifespan=lifespan)
        add_error_handlers(app)
        page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
        page_headers = {"Content-Security-Policy": page_policy(page)}

        @app.get("/", response_class=HTMLResponse, include_in_schema=False)
        async def show_page() -> HTMLResponse:
            return HTMLResponse(page, headers=page_headers)

        @app.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> PlainTextResponse:
            """Counters in the text format of Prometheus."""
            waiting_s = round(self._engine.waiting_s, 1)
            text = self._metrics.text(uploads=self.num_uploads, live=self.num_live, waiting_s=waiting_s)
            return PlainTextResponse(text, media_type=METRICS_TYPE)

        @app.get("/health")
        async def health() -> dict[str, Any]:
            """State, model and load of the server."""
            waiting_s = round(self._engine.waiting_s, 1)
            load = {"waiting_s": waiting_s, "uploads": self.num_uploads, "live": self.num_live}
            features = {"hotwords": self._engine.has_hotwords, "api_key": self._has_key}
            return {"status": "ok", "model": self._name, **features, **load}

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            """List the model."""
            return {"object": "list", "data": [self._model()]}

        @app.get("/v1/models/{name}")
        async def model(name: str) -> dict[str, Any]:
            """Describe the model."""
            if name != self._name:
                raise HTTPException(404, f"There is no model {name!r}, but {self._name!r}.")
            return self._model()

        @app.post("/v1/audio/transcriptions", response_model=None)
        async def transcribe(
            request: Request,
            file: Annotated[UploadFile, File(description="Sound or video, of any rate and length.")],
            response_format: Annotated[ResponseFormat, Form()] = "json",
            channel: Annotated[int | None, Form(ge=0, description="Channel, from 0; default: the mean of all.")] = None,
            stream: Annotated[bool, Form(description="Send events during the work: json, text, verbose_json.")] = False,
            hotwords: Annotated[list[str] | None, Form(description="Phrases to boost, one per line.")] = None,
            granularities: Annotated[list[Granularity] | None, Form(alias="timestamp_granularities[]")] = None,
        ) -> Response:
            """Transcribe a sound file. Other fields of OpenAI's API (model, language, ...) are ignored."""
            # FastAPI would silently use the last one
            if len((await request.form()).getlist("file")) > 1:
                raise HTTPException(400, "A request has one `file`; send a request per file.")
            wants_words = "word" in (granularities or ())
            if wants_words and response_format != "verbose_json":
                raise HTTPException(400, "`timestamp_granularities[]` word needs `response_format` verbose_json.")
            try:
                phrases = self._engine.spell(hotwords_in(hotwords or ()))
            except ValueError as err:
                raise HTTPException(400, str(err)) from err
            upload = _Upload(file, channel, phrases, self._max_seconds)
            if stream:
                return await self._stream(request, upload, response_format, wants_words)
            *_, transcript = [result async for result in self._results(request, upload)]
            assert isinstance(transcript, Transcript)
            try:
                return _response(response_format, file.filename or "sound", transcript, self._engine, wants_words)
            except ValueError as err:
                raise HTTPException(400, str(err)) from err

        app.add_api_websocket_route("/v1/live", self._live)
        return app

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "local"}

    async def _stream(
        self, request: Request, upload: _Upload, response_format: ResponseFormat, wants_words: bool
    ) -> Response:
        if response_format not in ("json", "text", "verbose_json"):
            message = f"`stream` needs `response_format` json, text or verbose_json, not {response_format}."
            raise HTTPException(400, message)
        is_verbose = response_format == "verbose_json"
        results = self._results(request, upload)
        # an error at the beginning of a sound is answered with a status
        first = await anext(results)
        lines = transcript_events(
            _with_first(first, results),
            self._engine.token_table,
            has_segments=is_verbose,
            describe=partial(_as_json, is_verbose=is_verbose, wants_words=wants_words),
        )
        return StreamingResponse(_with_error(lines), media_type=MEDIA_TYPE, headers=HEADERS)

    async def _results(self, request: Request, upload: _Upload) -> AsyncGenerator[Segment | Transcript]:
        """Yield each segment as soon as it is decoded, then the transcript; errors are HTTPExceptions."""
        upload.keep()
        loop, segments, is_abandoned = asyncio.get_running_loop(), asyncio.Queue[Segment | None](), threading.Event()
        send = partial(loop.call_soon_threadsafe, segments.put_nowait)
        work = asyncio.create_task(self._transcribe(request, upload, is_abandoned, send))

        def end(_: asyncio.Task[Transcript]) -> None:
            upload.close()
            segments.put_nowait(None)

        work.add_done_callback(end)
        try:
            while (segment := await segments.get()) is not None:
                yield segment
            yield work.result()
        finally:
            # the thread notices the event and ends; its file is closed afterwards
            is_abandoned.set()
            work.add_done_callback(asyncio.Task.exception)

    async def _transcribe(
        self, request: Request, upload: _Upload, is_abandoned: threading.Event, send: Tell
    ) -> Transcript:
        watcher = asyncio.create_task(_set_on_disconnect(request, is_abandoned))
        work = partial(self._engine.transcribe, upload.sound, is_abandoned.is_set, send)
        try:
            transcript = await anyio.to_thread.run_sync(work, limiter=self._upload_threads)
            self._metrics.audio_s += transcript.duration
            return transcript
        except TooLongError as err:
            raise HTTPException(413, str(err)) from err
        except AudioError as err:
            raise HTTPException(400, str(err)) from err
        except ClosedError as err:
            raise HTTPException(503, _ENDING) from err
        except AbandonedError as err:
            # appears in the log only
            raise HTTPException(_CLIENT_CLOSED, "The client has disconnected.") from err
        finally:
            watcher.cancel()
            # the work is done, however slowly the client reads the answer
            request.scope["upload_slot"].release()

    async def _live(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            inbox = Inbox(socket, self._live_timeout_s)
            phrases = self._engine.spell(inbox.hotwords)
        except ValueError as err:
            await _close(socket, _BAD_DATA, str(err))
            return
        if self.is_ending:
            await _close(socket, _GOING_AWAY, _ENDING)
            return
        if self.num_live >= self._max_live:
            message = f"{self.num_live} live sounds are in progress; try again later."
            await _close(socket, _TRY_AGAIN_LATER, message)
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
        """Decode samples while further ones are received."""
        session = await self._in_thread(partial(self._engine.live, inbox.sample_rate, phrases))
        reader = asyncio.create_task(inbox.fill())
        try:
            while True:
                samples, is_over = await inbox.take()
                if samples is not None:
                    await self._send_results(socket, session, samples)
                elif reader.done():
                    # the client has disconnected, or the data are invalid
                    reader.result()
                if is_over and samples is None:
                    break
            await self._send_results(socket, session, None)
            inbox.check_end()
            await socket.send_json({"type": "end"})
            await socket.close()
        finally:
            reader.cancel()

    async def _send_results(self, socket: WebSocket, session: LiveSession, samples: np.ndarray | None) -> None:
        """Decode the next samples (None: the rest), and send the results."""
        results = session.finish() if samples is None else session.accept(samples)
        while (result := await self._in_thread(partial(next, results, None))) is not None:
            kind = "final" if result.is_final else "partial"
            await socket.send_json({"type": kind, **result.segment.known()})

    async def _in_thread(self, work: partial) -> Any:
        return await anyio.to_thread.run_sync(work, limiter=self._live_threads)


class _Upload:
    """An uploaded sound with the client's file name; temporary files have another name or none."""

    def __init__(self, file: UploadFile, channel: int | None, phrases: Phrases, max_seconds: float) -> None:
        self.name, self._upload, self._file = file.filename or "sound", file, file.file
        self.read, self.tell = file.file.read, file.file.tell
        # readers use only these methods of a file
        self.sound = SoundFile(self, channel, phrases, max_seconds)  # pyright: ignore[reportArgumentType]

    def seek(self, offset: int, whence: int = 0) -> int:
        # `seek` of Python 3.10's temporary files returns None
        self._file.seek(offset, whence)
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def keep(self) -> None:
        """Keep the file open until `close`; FastAPI closes it with the answer, when a thread may still read it."""
        self._upload.file = io.BytesIO()

    def close(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return self.name


async def _set_on_disconnect(request: Request, event: threading.Event) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.5)
    event.set()


async def _close(socket: WebSocket, code: int, message: str) -> None:
    """Send the reason as a message and in the close frame, which has room for 123 bytes."""
    await socket.send_json({"type": "error", "message": message})
    await socket.close(code, message.encode()[:120].decode(errors="ignore"))


def _response(
    response_format: ResponseFormat, name: str, transcript: Transcript, engine: Engine, wants_words: bool
) -> Response:
    if response_format == "text":
        return PlainTextResponse(transcript.text + "\n")
    if response_format in ("json", "verbose_json"):
        is_verbose = response_format == "verbose_json"
        return JSONResponse(_as_json(transcript, is_verbose=is_verbose, wants_words=wants_words))
    media_type = _MEDIA_TYPES.get(response_format, "text/plain")
    return PlainTextResponse(document(response_format, name, transcript, engine.token_table), media_type=media_type)


def _as_json(transcript: Transcript, *, is_verbose: bool, wants_words: bool) -> dict[str, Any]:
    """Return the fields of OpenAI's json or verbose_json.

    Raises:
        ValueError: Words are requested, and the model does not compute their begins and ends.
    """
    if not is_verbose:
        return {"text": transcript.text}
    segments = [{"id": number, **segment.known()} for number, segment in enumerate(transcript.segments)]
    fields = {"task": "transcribe", "duration": transcript.duration, "text": transcript.text}
    if wants_words:
        check_words(transcript)
        fields["words"] = [word for segment in segments for word in segment.get("words", ())]
    return {**fields, "segments": segments, "warnings": list(transcript.warnings)}


async def _with_first(
    first: Segment | Transcript, results: AsyncIterator[Segment | Transcript]
) -> AsyncIterator[Segment | Transcript]:
    yield first
    async for result in results:
        yield result


async def _with_error(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield the lines; the status has been sent already, so that an error becomes an event, as in OpenAI's API."""
    try:
        async for line in lines:
            yield line
    except (HTTPException, ValueError) as err:
        status, message = (err.status_code, err.detail) if isinstance(err, HTTPException) else (400, str(err))
        yield event({"error": error_fields(status, message)})
    except Exception as err:
        _LOG.exception("A response was aborted.")
        yield event({"error": error_fields(500, internal_error_message(err))})
