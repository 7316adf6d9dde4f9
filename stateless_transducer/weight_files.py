"""Files of weights: torch's archives and .safetensors, written atomically, read with their checksums, without code."""

from __future__ import annotations

import pickle
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stateless_transducer.files import file_problem, printable, refuse_pointer, replacing, way_from_training

_CHECKSUM, _NO_CHECKSUM = "file_crc32", "00000000"
"""Metadata entry of a .safetensors file, and its value while the CRC-32 of the whole file is computed."""


class DamagedFileError(ValueError):
    """A file is truncated, or its checksum differs."""


def write_archive(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file with `torch.save`, atomically.

    Raises:
        OSError: the file cannot be written; the message says what to do.
    """
    # torch's zip writer turns a full disk into a RuntimeError
    with _explaining_write_errors(path, RuntimeError), replacing(path) as temporary:
        torch.save(content, temporary)


@contextmanager
def _explaining_write_errors(path: Path, kind: type[Exception]) -> Generator[None]:
    """Explain an error of writing: an OSError, or the ``kind`` that a writer turns it into."""
    try:
        yield
    except (OSError, kind) as err:
        unchanged = "; the existing file is unchanged" if path.exists() else ""
        raise OSError(f"{path} cannot be written ({err}){unchanged}. Free space or choose another folder.") from err


def read_archive(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save`, with tensors on the CPU and without executing code in it.

    The checksums of its members, which torch writes but does not compare, are compared here.

    Args:
        path: path of the file.
        allowed: classes that replace those of the same module and name in the file; tensors and plain values
            (numbers, strings, lists, dicts) are always allowed.

    Raises:
        ValueError: the file is missing, truncated, damaged, not from `torch.save`, or holds objects of other classes.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint{way_from_training(path)}.")
    _check_file(path)
    members = _sound_members(path)
    if any(member.endswith("/constants.pkl") for member in members):
        raise ValueError(f"{path} is a scripted model, which holds code; pass the checkpoint that it was made from.")
    if any(member.endswith(("/archive_format", "serialized_exported_program.json")) for member in members):
        raise ValueError(f"{path} is a program of torch.export; pass the checkpoint that it was made from.")
    try:
        with _allowing_only(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        class_match = re.search(r"GLOBAL (\S+)", str(err))
        if class_match is None:
            raise DamagedFileError(f"{path} is not a checkpoint, or its pickle is damaged.") from err
        # icefall's epoch-N.pt has the paths of its run; its reader allows them
        way_out = "" if allowed else " If it is a checkpoint of icefall, convert it with `transducer import`."
        raise ValueError(
            f"{path} is refused: it holds objects other than tensors and plain values ({class_match[1]}), which could "
            f"run code.{way_out}"
        ) from err
    # damaged bytes raise almost any exception inside torch
    except Exception as err:
        raise DamagedFileError(f"{path} is not a checkpoint, or is damaged ({err}).") from err


def _check_file(path: Path) -> None:
    """Check that a path names a file with content, and no pointer to it; reading a pipe may never end."""
    problem = file_problem(path)
    if problem:
        raise (DamagedFileError if path.is_file() else ValueError)(f"{printable(path)}: {problem}.")
    refuse_pointer(path)


def _sound_members(path: Path) -> list[str]:
    """Return the names of an archive's members after comparing their checksums.

    Raises:
        ValueError: the file is no archive, is truncated, or a member is damaged.
    """
    # torch.load would also read a bare pickle, but a checkpoint is always an archive, and a truncated one is none
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, EOFError, struct.error, NotImplementedError) as err:
        raise DamagedFileError(f"{path} is not a checkpoint, or is truncated.") from err
    with archive:
        # torch writes zeros if `torch.serialization.set_crc32_options` turned the checksums off
        if not any(member.CRC for member in archive.infolist()):
            return archive.namelist()
        wrong = next(filter(_is_misread_by_torch, archive.infolist()), None)
        if wrong is not None:
            raise _damage(path, f"the directory entry of {wrong.filename} is wrong")
        try:
            damaged = archive.testzip()
        # a damaged header shows an encrypted member, an unknown compression, or a place beyond the end
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, struct.error, zlib.error, ValueError) as err:
            raise _damage(path, str(err)) from err
        if damaged is not None:
            raise _damage(path, f"the checksum of {damaged} differs")
        return archive.namelist()


_FOLDER_ATTRIBUTE = 0x10


def _is_misread_by_torch(member: zipfile.ZipInfo) -> bool:
    """Whether torch reads other bytes than Python does, so that the checksum, which Python compares, proves nothing."""
    is_stored = member.compress_type == zipfile.ZIP_STORED
    return (is_stored and member.compress_size != member.file_size) or bool(member.external_attr & _FOLDER_ATTRIBUTE)


def _damage(path: Path, fault: str) -> DamagedFileError:
    return DamagedFileError(f"{path} is damaged ({fault}). Copy it again, or use another checkpoint.")


_CLASSES = threading.Lock()
"""Lock of torch's list of allowed classes, of which a process has one."""


@contextmanager
def _allowing_only(classes: Sequence[type]) -> Generator[None]:
    """Allow only the given classes; torch.serialization.safe_globals would add them to those of the process."""
    # torch leaves the types of its functions open
    serialization: Any = torch.serialization
    with _CLASSES:
        process_classes: list[Any] = list(serialization.get_safe_globals())
        serialization.clear_safe_globals()
        serialization.add_safe_globals(list(classes))
        try:
            yield
        finally:
            # modules of torch that were imported meanwhile have added classes
            process_classes += [added for added in serialization.get_safe_globals() if added not in classes]
            serialization.clear_safe_globals()
            serialization.add_safe_globals(process_classes)


def write_safetensors(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file with a checksum among its metadata, atomically.

    Raises:
        OSError: the file cannot be written; the message says what to do.
    """
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    content = _safetensors().save(contiguous, {**metadata, _CHECKSUM: _NO_CHECKSUM})
    checksum = f"{zlib.crc32(content):0{len(_NO_CHECKSUM)}x}".encode()
    with _explaining_write_errors(path, OSError), replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.seek(_place_of_checksum(content))
        file.write(checksum)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a .safetensors file, and compare its checksum if it has one.

    Raises:
        ValueError: the file is missing, truncated, damaged or of another format.
    """
    _check_file(path)
    _safetensors()
    import safetensors

    # safetensors leaves its types open
    safe_open: Any = safetensors.safe_open
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as err:
        raise DamagedFileError(f"{path} is not a file of safetensors, or is damaged ({err}).") from err
    # earlier versions and other programs write no checksum
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(path):
        raise _damage(path, "its checksum differs")
    return weights, metadata


def _place_of_checksum(header: bytes | bytearray) -> int:
    """Return the first byte of the checksum's digits; quotes inside other values are escaped."""
    return header.index(f'"{_CHECKSUM}":"'.encode()) + len(_CHECKSUM) + 4


def _checksum(path: Path) -> str:
    """Return the CRC-32 of a .safetensors file in which the digits of the checksum are 0."""
    with path.open("rb") as file:
        # the length of the header, then the header
        size = file.read(8)
        header = bytearray(size + file.read(int.from_bytes(size, "little")))
        place = _place_of_checksum(header)
        header[place : place + len(_NO_CHECKSUM)] = _NO_CHECKSUM.encode()
        checksum = zlib.crc32(header)
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:0{len(_NO_CHECKSUM)}x}"


def _safetensors() -> Any:
    try:
        import safetensors.torch as safetensors_torch
    except ModuleNotFoundError:
        raise ValueError("safetensors files need that package: pip install 'stateless-transducer[torch]'.") from None
    return safetensors_torch
