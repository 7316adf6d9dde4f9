"""Atomic writing of files, checks of files to read, and detection of changed files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import category

# control characters, surrogates (bytes that are not UTF-8), separators of lines and paragraphs
_UNPRINTABLE = frozenset(("Cc", "Cs", "Zl", "Zp"))

_POINTER = b"version https://git-lfs"
"""Beginning of a Git LFS pointer."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; rename it to ``path`` on success, else remove it.

    The folder is created if necessary; temporary files that killed processes left in it are removed. A symbolic link
    stays: its target is replaced. A pipe or `/dev/stdout` receives the complete content at the end.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        # writers may seek, which a pipe cannot
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"output{path.suffix}"
            yield temporary
            with temporary.open("rb") as written, path.open("wb") as pipe:
                shutil.copyfileobj(written, pipe)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # keep the suffix, from which writers choose the format and the compression
    temporary = _partial(path, path.stem, path.suffix)
    try:
        yield temporary
        # sync before renaming: otherwise, the file may be empty after a power failure
        _sync(temporary)
        os.replace(temporary, path)
        # not every file system can sync a folder
        with suppress(OSError):
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _partial(path: Path, stem: str, suffix: str) -> Path:
    """Return the path beside ``path`` to write to; it names this process, so that others know when it is stale."""
    _remove_stale(path.parent)
    return path.with_name(f".{_beginning(stem)}.{_machine()}-{os.getpid()}.partial{suffix}")


@lru_cache
def _remove_stale(folder: Path) -> None:
    """Remove what killed processes of this machine have left in a folder, once per folder and process."""
    pattern = re.compile(rf"\..*\.{_machine()}-(\d+)\.partial(\..*)?", re.DOTALL)
    with os.scandir(folder) as entries:
        stale = [entry for entry in entries if (match := pattern.fullmatch(entry.name)) and has_ended(int(match[1]))]
    for entry in stale:
        # another process may be faster
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return a name of the machine or container within which the number of a process is unique."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def has_ended(pid: int) -> bool:
    """Report whether no process of this machine has a number; False on Windows, where asking would interrupt it."""
    if sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        # the process belongs to another user
        return False
    return False


def _beginning(name: str) -> str:
    """Return at most 100 bytes of a name, in whole characters: file systems limit the bytes of a name."""
    return os.fsencode(name)[:100].decode(errors="ignore")


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    # Windows flushes only files that are open for writing, and no folders
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(name: object) -> str:
    r"""Return a file name as one line of UTF-8 without control characters: ``\t``, ``\x1b`` and ``\udce9`` as escapes.

    A name may hold any bytes; printed as it is, it could break a table or a line, or change the colors of a terminal.
    """
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in _UNPRINTABLE else character
        for character in str(name)
    )


def printable_text(text: str) -> str:
    """Return text of any number of lines for a terminal: as `printable`, but tabs and line feeds stay.

    Names of tokens and weights, transcripts and messages come from files, whose authors are unknown.
    """
    return text if text.isprintable() else "".join(c if c in "\t\n" else printable(c) for c in text)


def check_file(path: Path) -> None:
    """Check that a path names a regular file that is not empty, so that reading it does not wait and comes to an end.

    Raises:
        ValueError: the path names nothing, a folder, a pipe, a device, or a file of 0 bytes.
    """
    problem = file_problem(path)
    if problem:
        raise ValueError(f"{printable(path)}: {problem}.")


def file_problem(path: Path, *, may_be_pipe: bool = False) -> str:
    """Return why a path is no file to read from, in a few words; empty if it is one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as err:
        return f"cannot be read ({getattr(err, 'strerror', None) or err})"
    if stat.S_ISDIR(status.st_mode):
        return "is a folder, not a file"
    if stat.S_ISFIFO(status.st_mode) and may_be_pipe:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return "is a pipe or a device, not a file"
    # files of /proc have no size, and reading some of them waits forever
    return "" if status.st_size else "is empty (0 bytes)"


def check_output(output: Path, **inputs: Path | Sequence[Path]) -> None:
    """Check that ``output`` is none of the inputs, under any name: the input would be overwritten.

    Args:
        output: path to write to.
        inputs: paths to read, by the names of their arguments.

    Raises:
        ValueError: the output is one of the inputs.
    """
    pairs = [(name, path) for name, paths in inputs.items() for path in ([paths] if isinstance(paths, Path) else paths)]
    for name, path in pairs:
        if output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"`output` {output} is the file that `{name}` {path} names; choose another one.")


def way_from_training(folder: Path) -> str:
    """Return advice for a folder of training checkpoints that was passed as a model; empty for other folders."""
    epochs = list(folder.glob("epoch-*.pt"))
    if not epochs:
        return ""
    newest = max(epochs, key=lambda path: path.stat().st_mtime_ns)
    return (
        f"; `transducer average --exp-dir {shlex.quote(str(folder))} --output model.pt` makes a model of its training "
        f"checkpoints, or pass one of them: {newest}"
    )


def cache_folder() -> Path:
    """Return the user's folder for what can be made again: downloaded models, measurements of the machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stateless-transducer"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """Read the lines of UTF-8 text, with or without a byte order mark.

    Only line feeds and carriage returns end a line: transcripts and names may hold the other characters at which
    `str.splitlines` splits.
    """
    return path.read_text(encoding="utf-8-sig").split("\n")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; text that is nested too deeply for Python is an error like any other.

    Raises:
        ValueError: the text is no JSON, or no UTF-8.
    """
    try:
        return json.loads(text)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err


@contextmanager
def filling(folder: Path, *, owned: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder`` to write to; move its files to ``folder`` on success.

    Args:
        folder: folder to fill, created if necessary; other files in it stay.
        owned: names of files that belong together; those not written again are removed from ``folder``.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(folder, folder.name, "")
    temporary.mkdir()
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        written = sorted(temporary.iterdir())
        for name in set(owned) - {path.name for path in written}:
            (folder / name).unlink(missing_ok=True)
        for path in written:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time into the block; others wait. The system frees the lock of one that dies.

    Where the system or the file system has no such locks, the block runs without.

    Args:
        path: file of the lock, which stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        with suppress(OSError, ModuleNotFoundError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refuse_pointer(path: Path) -> None:
    """Check that a file is the file itself, not the pointer that git leaves in its place without Git LFS.

    Raises:
        ValueError: It is a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself. Fetch the file with `git lfs pull`.")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_and_time(path: Path) -> list[int] | None:
    """Return size and modification time of a file, to detect changes cheaply; None if there is no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def fingerprint(paths: Iterable[Path]) -> str:
    """Hash of file names, sizes and modification times; changes when a file is added, removed or modified."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.resolve()}\0{size_and_time(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
