"""Errors as OpenAI's clients read them: ``{"error": {"message": ..., "type": ..., "code": ...}}``."""

from __future__ import annotations

import errno
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

_LOG = logging.getLogger("uvicorn.error")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of the application in this form."""
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(Exception, _answer_internal_error)


def error_fields(status: int, message: str) -> dict[str, Any]:
    """The object below ``"error"``."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "code": status}


def error_response(status: int, message: str, headers: Any = None) -> JSONResponse:
    """An answer with an error."""
    return JSONResponse({"error": error_fields(status, message)}, status, headers)


def internal_error_message(err: Exception) -> str:
    """The message for a client; the log has the rest."""
    return f"Internal server error ({type(err).__name__})."


async def _answer_http_error(_: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    # FastAPI answers 400 to whatever fails while a body is stored
    cause = err.__cause__
    if isinstance(cause, OSError):
        _LOG.error("A request could not be stored.", exc_info=cause)
        if cause.errno in _NO_SPACE:
            return error_response(507, "The server has no space left for uploads; try again later.", _CLOSE)
        return error_response(500, internal_error_message(cause), _CLOSE)
    return error_response(err.status_code, str(err.detail), err.headers)


async def _answer_validation_error(_: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    faults = (f"`{'.'.join(map(str, fault['loc'][1:]))}`: {fault['msg']}" for fault in err.errors())
    return error_response(400, "; ".join(faults))


async def _answer_internal_error(_: Request, err: Exception) -> Response:
    return error_response(500, internal_error_message(err))


_CLOSE = {"Connection": "close"}
