"""Writing files so that a reader never meets half of one; telling whether files have changed, what a folder is for."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; rename it to ``path`` if all went well, else remove it.

    The folder is made if need be. A link stays one: the file that it leads to is replaced. What is no file, as a pipe
    or `/dev/stdout`, gets the whole at the end.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        # writers may go back in what they write, which a pipe cannot
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"output{path.suffix}"
            yield temporary
            with temporary.open("rb") as written, path.open("wb") as pipe:
                shutil.copyfileobj(written, pipe)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays: writers choose the format (and compression) by it
    temporary = path.with_name(f".{_beginning(path.stem)}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        # before it has its name: after a power cut, a name may stand for nothing otherwise
        _sync(temporary)
        os.replace(temporary, path)
        # not every file system can do that with a folder
        with suppress(OSError):
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _beginning(name: str) -> str:
    """100 bytes at most, and whole characters: file systems count the bytes of a name."""
    return os.fsencode(name)[:100].decode(errors="ignore")


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(output: Path, **inputs: Path) -> None:
    """Refuse an ``output`` that is one of the inputs, by whatever name: what is read would be lost.

    Args:
        output: what is to be written.
        inputs: files that are read, by the names of their arguments.

    Raises:
        ValueError: it is one of them.
    """
    for name, path in inputs.items():
        if output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"`output` {output} is the file that `{name}` {path} names; choose another one.")


def way_from_training(folder: Path) -> str:
    """What to do with a folder of training checkpoints where a model is wanted; empty: there are none in it."""
    epochs = list(folder.glob("epoch-*.pt"))
    if not epochs:
        return ""
    newest = max(epochs, key=lambda path: path.stat().st_mtime_ns)
    return (
        f"; of the training checkpoints in it `transducer average --exp-dir {folder} --output model.pt` makes a model, "
        f"and one alone will do: {newest}"
    )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """Lines of UTF-8 text that somebody may have written by hand: without the mark that Windows puts before it.

    Only line feeds and carriage returns end a line: what else `str.splitlines` takes for an end, a transcript or a name
    may hold.
    """
    return path.read_text(encoding="utf-8-sig").split("\n")


@contextmanager
def filling(folder: Path, *, owned: Iterable[str] = ()) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` to write to; move its files to ``folder`` if all went well.

    Args:
        folder: made if need be; other files in it stay.
        owned: names of files that belong together; those not written anew are removed from ``folder``.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{_beginning(folder.name)}.{os.getpid()}.partial")
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


def sha256(path: Path) -> str:
    """Of the content of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_and_time(path: Path) -> list[int] | None:
    """Of a file: cheap, and other numbers when it has changed; None if there is none."""
    found = path.stat() if path.is_file() else None
    return None if found is None else [found.st_size, found.st_mtime_ns]


def fingerprint(paths: Iterable[Path]) -> str:
    """Of the names of files, their sizes and times: another one when a file has changed, come or gone."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.resolve()}\0{size_and_time(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
