"""Downloads that resume after an interruption and are verified by their checksum.

Until it is complete and verified, ``x.tgz`` is called ``x.tgz.part``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from stateless_transducer import __version__

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_RANGE_NOT_SATISFIABLE = 416

Progress = Callable[[int, int], None]


class _Interrupted(Exception):
    """A network error after which a retry may succeed."""


def fetch(
    url: str,
    path: Path,
    *,
    md5: str | None,
    say: Callable[[str], None],
    bar: Callable[[str], AbstractContextManager[Progress]],
    num_retries: int = 5,
    wait_s: float = 1.0,
    way_out: str = "choose another `mirror`",
) -> None:
    """Download a file, unless it exists, and verify its checksum.

    Args:
        url: http or https.
        path: target file; its folder is created if it does not exist.
        md5: checksum of the file; None to skip verification.
        say: prints a line for the user.
        bar: shows the progress of a step, in bytes.
        num_retries: consecutive failures without progress after which to give up.
        wait_s: wait before the first retry; doubled before each further one.
        way_out: advice for the case that the server does not have the file, or keeps failing.

    Raises:
        OSError: the server does not have the file, or the network keeps failing; the part received is kept.
        ValueError: the checksum differs; the file is kept.
    """
    part = path if path.exists() else path.with_name(f"{path.name}.part")
    if part != path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with bar(f"fetching {path.name}") as progress:
            _download(url, part, say=say, progress=progress, num_retries=num_retries, wait_s=wait_s, way_out=way_out)
    if md5 is not None:
        with bar(f"checking {path.name}") as progress:
            actual = _md5(part, progress)
        if actual != md5:
            raise ValueError(
                f"{part} is damaged, or the mirror serves another file: its MD5 is {actual}, but should be {md5}. "
                "Remove it to download it again, or set `checksum=False` if the file is right."
            )
    os.replace(part, path)


def _download(
    url: str,
    part: Path,
    *,
    say: Callable[[str], None],
    progress: Progress,
    num_retries: int,
    wait_s: float,
    way_out: str,
) -> None:
    most, failures = _size(part), 0
    if most:
        say(f"{part}: resumes after {most} bytes")
    while True:
        try:
            return _get(url, part, say, progress, way_out)
        except _Interrupted as err:
            # starting over and stopping at the same byte each time is no progress
            failures, most = (0, _size(part)) if _size(part) > most else (failures + 1, most)
            if failures > num_retries:
                raise OSError(
                    f"{url}: {err}. Given up after {num_retries} retries; run the command again to resume, or "
                    f"{way_out}. {_size(part)} bytes are kept in {part}."
                ) from err
            wait = wait_s * 2 ** max(0, failures - 1)
            say(f"{url}: {err}; retrying in {wait:g} s")
            time.sleep(wait)


def _get(url: str, part: Path, say: Callable[[str], None], progress: Progress, way_out: str) -> None:
    """Append the missing bytes to ``part``, in one attempt."""
    start = _size(part)
    response = _open(url, start, way_out)
    if response is None:
        return
    with response:
        if start and response.status != 206:
            say(f"{url}: the server cannot resume a download; starting again from the beginning")
            start = 0
        elif start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError(f"{url}: the server did not send the bytes from {start} on; {way_out}.")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise OSError(f"{part.parent}: {part.name} needs {total - start} bytes more, but {free} are free.")
        done = start
        with part.open("ab" if start else "wb") as file:
            for chunk in _chunks(response):
                done += file.write(chunk)
                progress(done, total or 0)
    if total is not None and done < total:
        raise _Interrupted(f"the connection broke off after {done} of {total} bytes")


def _open(url: str, start: int, way_out: str) -> HTTPResponse | None:
    """Open the response from byte ``start`` on; None if there are no more bytes.

    Raises:
        OSError: the server does not have the file.
    """
    headers = {"User-Agent": f"stateless-transducer/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urlopen(Request(url, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as err:
        if err.code == _RANGE_NOT_SATISFIABLE:
            if err.headers.get("Content-Range") in (f"bytes */{start}", None):
                return None
            raise OSError(
                f"{url}: the server has fewer bytes than the {start} in the .part file; remove that file."
            ) from err
        # busy, or a temporary failure
        if err.code in (408, 429) or err.code >= 500:
            raise _Interrupted(f"the server answered {err.code} ({err.reason})") from err
        raise OSError(f"{url}: the server answered {err.code} ({err.reason}); {way_out}.") from err
    except (OSError, HTTPException) as err:
        raise _Interrupted(_reason(err)) from err


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as err:
        raise _Interrupted(_reason(err)) from err


def _reason(err: Exception) -> str:
    return str(getattr(err, "reason", err)) or type(err).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path, progress: Progress) -> str:
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, _size(path)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done, total)
    return digest.hexdigest()
