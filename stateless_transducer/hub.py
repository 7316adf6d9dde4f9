"""Models by name: found on this machine, in a repository of Hugging Face, or among sherpa-onnx's release archives.

A path that exists always wins. ``owner/name`` is a repository, of which only the files of the model are downloaded, by
`huggingface_hub`: its cache, its environment variables (``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``)
and its progress bars apply. ``asr-models/NAME`` and ``kws-models/NAME`` are archives of sherpa-onnx's releases.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stateless_transducer.data.download import Progress, fetch
from stateless_transducer.data.unpack import unpack
from stateless_transducer.files import cache_folder, locked, sha256
from stateless_transducer.model_files import Form, Listing, Precision

RELEASES = "TRANSDUCER_RELEASES"
"""Environment variable: URL of sherpa-onnx's releases, or of a mirror of them."""

_LOG = logging.getLogger(__name__)
_RELEASES_URL = "https://github.com/k2-fsa/sherpa-onnx/releases/download"
_RELEASE_TAGS = ("asr-models", "kws-models")
_NAME = re.compile(
    r"(?P<repository>[a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(/(?P<folder>[\w.-]+(/[\w.-]+)*))?(@(?P<revision>[\w./-]+))?",
    re.ASCII | re.IGNORECASE,
)
# commits of a repository to try, since a newer one may appear during the download
_MOST_COMMITS = 3
# a name with such an ending is a path that does not exist
_FILE_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".safetensors", ".onnx", ".txt", ".zip", ".gz", ".bz2", ".tar")

Bar = Callable[[str], AbstractContextManager[Progress]]
"""Function that shows the progress of a step, in bytes."""


def _no_bar(task: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


@dataclass(frozen=True)
class PublishedName:
    """Name of a published model: ``owner/name``, ``owner/name/folder@revision``, or ``asr-models/NAME``."""

    repository: str
    folder: str = ""
    """Folder of the model in its repository; empty: the repository itself."""
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""

    @classmethod
    def parse(cls, text: str) -> PublishedName | None:
        """Return the name that a text spells; None if it can only be a path."""
        match = _NAME.fullmatch(text)
        if match is None or PurePosixPath(text).suffix.lower() in _FILE_SUFFIXES:
            return None
        return cls(match["repository"], match["folder"] or "", match["revision"])

    @property
    def archive(self) -> tuple[str, str] | None:
        """Tag and name of the release archive; None: a repository of Hugging Face."""
        owner, _, name = self.repository.partition("/")
        return (owner, name) if owner in _RELEASE_TAGS else None

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return self.repository + folder + (f"@{self.revision}" if self.revision else "")


def locate(
    model: str | Path,
    *,
    forms: Sequence[Form] = ("graphs", "checkpoint"),
    precision: Precision = "fp32",
    say: Callable[[str], None] = _LOG.info,
    bar: Bar = _no_bar,
) -> Path:
    """Return the file or folder of a model on this machine, after a download if it is only published.

    Args:
        model: A path, or a name as in `PublishedName`. A `Path` is never a name.
        forms: Acceptable forms of a published model, the preferred one first; nothing else is downloaded.
        precision: Precision of the graphs to download.
        say: Prints a line for the user about the download of an archive.
        bar: Shows the progress of the download of an archive.

    Raises:
        ValueError: There is no such model, no access to it or no connection, or it is not supported.
        OSError: The download failed; what has been received is kept, and the next call resumes.
    """
    path = Path(model)
    if path.exists():
        return path
    name = PublishedName.parse(model) if isinstance(model, str) else None
    if name is None:
        raise ValueError(
            f"{model}: no such model; it is a checkpoint, a folder of a model, or the name of a published one: "
            f"owner/name{_did_you_mean(path.name)}."
        )
    if name.archive is not None:
        return _from_release(name, *name.archive, say=say, bar=bar)
    return _from_repository(name, forms, precision)


def is_published(model: str | Path) -> bool:
    """Whether a model is looked for elsewhere: it is a name, and no path of this machine."""
    return isinstance(model, str) and not Path(model).exists() and PublishedName.parse(model) is not None


def short_name(model: str | Path) -> str:
    """Return the last part of a model's path or name, without suffix and revision."""
    if is_published(model):
        return PurePosixPath(str(model).partition("@")[0]).name
    path = Path(model)
    # "." has no name
    return path.resolve().name if path.is_dir() else path.stem


def _did_you_mean(name: str) -> str:
    tag = "kws-models" if "-kws-" in name else "asr-models"
    return f" (did you mean {tag}/{name}?)" if name.startswith("sherpa-onnx-") else ""


def _from_repository(name: PublishedName, forms: Sequence[Form], precision: Precision) -> Path:
    """Download the files of a model that the cache lacks; return its folder in the cache."""
    hub = _import_hub(f"{name}: no such file or folder here. Models of Hugging Face")
    folder, unchecked = f"{name.folder}/" if name.folder else "", set[str]()
    for _ in range(_MOST_COMMITS):
        info = _model_info(hub, name)
        if isinstance(info, Path):
            here = Listing.of_folder(info)
            Listing(f"{name} in the cache, without a connection", here.names).choose(forms, precision)
            return info
        siblings = {file.rfilename: file for file in info.siblings or []}
        files = tuple(file.removeprefix(folder) for file in siblings if file.startswith(folder))
        chosen = [folder + file for file in Listing(str(name), files).choose(forms, precision).names]
        snapshot = _snapshots(hub.constants.HF_HUB_CACHE, name) / info.sha
        missing = [file for file in chosen if not (snapshot / file).exists()]
        unchecked.update(missing)
        if missing:
            snapshot = _download(hub, name, missing)
        # a newer commit has other files and hashes than the list
        if snapshot.name == info.sha:
            for file in chosen:
                if file in unchecked:
                    _check(snapshot / file, siblings[file])
            return snapshot / name.folder
    raise OSError(f"{name}: the repository changed during the download. Run the command again.")


def _model_info(hub: Any, name: PublishedName) -> Any:
    """Return commit and files of a repository, or its folder in the cache if the hub cannot be reached.

    Raises:
        ValueError: There is no such model, no access to it, or no connection.
    """
    constants, errors = hub.constants, hub.errors
    nowhere = f"{name}: no such file or folder here, and {constants.ENDPOINT}"
    try:
        return hub.HfApi().model_info(
            name.repository, revision=name.revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
    except errors.GatedRepoError as err:
        page = f"{constants.ENDPOINT}/{name.repository}"
        raise ValueError(f"{name}: access is granted on request at {page}. Then log in with `hf auth login`.") from err
    except errors.RepositoryNotFoundError as err:
        raise ValueError(
            f"{nowhere} has no such model, or a private one. Check the spelling, or log in with `hf auth login` or "
            "HF_TOKEN."
        ) from err
    except errors.RevisionNotFoundError as err:
        raise ValueError(f"{nowhere} has no revision {name.revision} of {name.repository}.") from err
    # errors of connections have no common base class over the versions of huggingface_hub
    except Exception as err:
        cached = _cached_snapshot(constants.HF_HUB_CACHE, name)
        if cached is None:
            raise ValueError(f"{nowhere} cannot be reached ({_first_line(err)}).") from err
        _LOG.info("%s: %s cannot be reached (%s); using the cache", name, constants.ENDPOINT, _first_line(err))
        return cached


def _import_hub(what: str) -> Any:
    """Import the package; the error says what needs it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError:
        raise ValueError(f"{what} need huggingface_hub: pip install 'stateless-transducer[hub]'.") from None
    return huggingface_hub


def _download(hub: Any, name: PublishedName, files: Sequence[str]) -> Path:
    """Download files of a repository; return its folder in the cache."""
    try:
        return Path(hub.snapshot_download(name.repository, revision=name.revision, allow_patterns=list(files)))
    # see above; a full disk and a broken connection are among them
    except Exception as err:
        raise OSError(f"{name}: the download failed ({_first_line(err)}). Run the command again to resume it.") from err


def _check(path: Path, file: Any) -> None:
    """Compare a file with its hash, which the hub has for large files; remove it if it is damaged."""
    if file.lfs is None or sha256(path) == file.lfs.sha256:
        return
    damaged = path.resolve()
    path.unlink()
    damaged.unlink(missing_ok=True)
    raise OSError(f"{path.name} arrived damaged and is removed. Run the command again to download it again.")


def _snapshots(cache: str, name: PublishedName) -> Path:
    return Path(cache) / f"models--{name.repository.replace('/', '--')}" / "snapshots"


def _cached_snapshot(cache: str, name: PublishedName) -> Path | None:
    """Return the folder in the cache that an earlier download of the same revision has filled."""
    snapshots, revision = _snapshots(cache, name), name.revision or "main"
    reference = snapshots.parent / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = snapshots / commit / name.folder
    return folder if folder.is_dir() else None


def _from_release(name: PublishedName, tag: str, archive: str, *, say: Callable[[str], None], bar: Bar) -> Path:
    """Download and unpack an archive, once; return its folder."""
    folder = cache_folder() / tag / archive
    if not folder.is_dir():
        # workers of a cluster look for a model at the same time
        with locked(folder.with_name(f".{archive}.lock")):
            if not folder.is_dir():
                _fetch_release(name, tag, folder, say=say, bar=bar)
    return folder / name.folder


def _fetch_release(name: PublishedName, tag: str, folder: Path, *, say: Callable[[str], None], bar: Bar) -> None:
    packed = folder.with_name(f"{folder.name}.tar.bz2")
    url = f"{os.environ.get(RELEASES) or _RELEASES_URL}/{tag}/{packed.name}"
    try:
        fetch(url, packed, md5=None, say=say, bar=bar, way_out=f"check the name, or set {RELEASES} to a mirror")
    except OSError as err:
        raise OSError(f"{name}: no such file or folder here, and {err}") from err
    with bar(f"unpacking {packed.name}") as progress:
        unpack(packed, folder, progress=progress)
    packed.unlink()


def _first_line(err: Exception) -> str:
    return next(iter(str(err).strip().splitlines()), "") or type(err).__name__


def check_repository(name: str) -> PublishedName:
    """Return the repository that a text names, to upload to.

    Raises:
        ValueError: It is not ``owner/name``.
    """
    repository = PublishedName.parse(name)
    if repository is None or repository.folder or repository.revision or repository.archive:
        raise ValueError(f"`repository` must be OWNER/NAME of Hugging Face, but is {name!r}.")
    return repository


def upload(folder: Path, files: Sequence[str], name: str, *, is_private: bool) -> str:
    """Upload files of a folder to a repository of Hugging Face; return its address.

    Files of an earlier upload that the folder lacks are removed from the repository.

    Args:
        folder: The folder.
        files: Names of all files that a model may have.
        name: ``owner/name``; the repository is created if it does not exist.
        is_private: Whether only its owner sees a new repository.

    Raises:
        ValueError: There is no such account, or no permission.
        OSError: The upload failed.
    """
    check_repository(name)
    hub = _import_hub("Uploads")
    api = hub.HfApi()
    try:
        api.create_repo(name, private=is_private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(files),
            delete_patterns=list(files),
            commit_message="Upload with transducer push",
        )
    # errors of connections have no common base class over the versions of huggingface_hub
    except Exception as err:
        status = getattr(getattr(err, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(err, hub.errors.LocalTokenNotFoundError):
            raise ValueError(
                f"{name}: no permission to write there. Log in with `hf auth login`, or set HF_TOKEN to a token with "
                "write access."
            ) from err
        raise OSError(f"{name}: the upload failed ({_first_line(err)}). Run the command again.") from err
    return f"{hub.constants.ENDPOINT}/{name}"
