"""Complete checkpoints: written atomically, read without executing code, averaged.

One file holds the weights and everything that training decided: sizes, front end, tokens and provenance. A training
checkpoint also holds the state to resume from.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from stateless_transducer import __version__
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import replacing, way_from_training
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import Transducer, build_model
from stateless_transducer.text.tokens import TokenTable

_FORMAT = "stateless-transducer-"
"""Followed by the number of the layout."""
_LAYOUT = 2
"""Layout of the files that `save_checkpoint` writes; `_from_layout_1` reads the one before."""


@dataclass(frozen=True)
class Checkpoint:
    """Model with everything needed to use it, and optionally to resume its training."""

    weights: Mapping[str, Tensor]
    """Parameters by name, on the CPU."""
    model_config: ModelConfig
    fbank_config: FbankConfig
    token_table: TokenTable
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the model: version, command, epoch, number of batches, losses."""
    training_state: Mapping[str, Any] | None = None
    """Optimizer, position in the data, heads; None in a released model."""

    def model(self) -> Transducer:
        """Build the network with these weights, in evaluation mode.

        Raises:
            ValueError: a weight is missing, unknown or of another shape; all are named.
        """
        model = build_model(self.model_config)
        _check_weights(self.weights, model.state_dict())
        model.load_state_dict(self.weights)
        return model.eval()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: if the disk is full, the file that was at ``path`` is unchanged.

    A name that ends in .safetensors gives a file of that format, without training state.

    Raises:
        OSError: the file cannot be written; the message says what to do.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        _save_safetensors(path, checkpoint)
        return
    content = {
        "format": f"{_FORMAT}{_LAYOUT}",
        "model": dict(checkpoint.weights),
        "model_config": checkpoint.model_config.sizes(),
        "fbank_config": asdict(checkpoint.fbank_config),
        "tokens": checkpoint.token_table.facts(),
        "provenance": dict(checkpoint.provenance),
        "training_state": checkpoint.training_state,
    }
    write_archive(path, content)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint or a .safetensors file, without executing code in it.

    Raises:
        ValueError: the file is missing, truncated, not a checkpoint, or from another program.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    content = read_archive(path)
    if not is_own_format(content):
        is_from_icefall = isinstance(content, dict) and "model" in content
        way_out = "; `transducer import` converts a checkpoint of icefall" if is_from_icefall else ""
        raise ValueError(f"{path} is not a checkpoint of stateless-transducer{way_out}.")
    return from_own_format(path, content)


def from_own_format(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that `save_checkpoint` wrote, in this layout or an earlier one.

    Raises:
        ValueError: a later version of this program wrote the file.
    """
    layout = content["format"].removeprefix(_FORMAT)
    if layout == "1":
        content = _from_layout_1(content)
    elif layout != str(_LAYOUT):
        raise ValueError(f"{path}: {_LATER} (layout {layout}; this one reads 1 to {_LAYOUT}); use that version.")
    return Checkpoint(
        weights=content["model"],
        model_config=_model_config(path, content["model_config"]),
        fbank_config=_fbank_config(path, content["fbank_config"]),
        token_table=TokenTable.from_facts(content["tokens"]),
        provenance=content["provenance"],
        training_state=content["training_state"],
    )


def _save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    metadata = {
        "format": f"{_FORMAT}{_LAYOUT}",
        "model_config": json.dumps(checkpoint.model_config.sizes()),
        "fbank_config": json.dumps(asdict(checkpoint.fbank_config)),
        "tokens": json.dumps(checkpoint.token_table.facts()),
        # a provenance may hold anything
        "provenance": json.dumps(dict(checkpoint.provenance), default=str),
    }
    weights = {name: value.contiguous() for name, value in checkpoint.weights.items()}
    content = _safetensors().torch.save(weights, metadata)
    with _explaining_write_errors(path, OSError), replacing(path) as temporary:
        temporary.write_bytes(content)


def _load_safetensors(path: Path) -> Checkpoint:
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint.")
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as err:
        raise ValueError(f"{path} is not a file of safetensors, or is damaged ({err}).") from err
    if not is_own_format(metadata):
        raise ValueError(f"{path} is not a checkpoint of stateless-transducer.")
    names = ("model_config", "fbank_config", "tokens", "provenance")
    content = {name: json.loads(metadata[name]) for name in names}
    return from_own_format(path, {"format": metadata["format"], "model": weights, "training_state": None, **content})


def _from_layout_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a file of layout 1, in which all models were conformers."""
    state = content["training_state"]
    return {
        **content,
        "model": _renamed_from_layout_1(content["model"]),
        "model_config": {"encoder": "conformer", **content["model_config"]},
        "training_state": None if state is None else _training_state_from_layout_1(state),
    }


def _renamed_from_layout_1(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    old, new = "encoder.subsampling.", "encoder.embed."
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in weights.items()}


def _training_state_from_layout_1(state: Mapping[str, Any]) -> dict[str, Any]:
    heads = {
        f"{head}.{name}": value
        for head in ("ctc_head", "simple_joiner")
        for name, value in (state.get(head) or {}).items()
    }
    mean = state.get("ema")
    return {**state, "heads": heads, "ema": None if mean is None else _renamed_from_layout_1(mean)}


_LATER = f"written by a later version of stateless-transducer than this one, {__version__}"


def _model_config(path: Path, sizes: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_sizes(sizes)
    except ValueError as err:
        raise ValueError(f"{path}: its sizes are invalid, or it was {_LATER}: {err}") from err


def _fbank_config(path: Path, settings: Mapping[str, Any]) -> FbankConfig:
    unknown = settings.keys() - {field.name for field in fields(FbankConfig)}
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        raise ValueError(f"{path}: its front end has the unknown {names}; it was {_LATER}.")
    return FbankConfig(**settings)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ValueError("safetensors files need that package: pip install 'stateless-transducer[torch]'.") from None
    return safetensors


def is_own_format(content: object) -> bool:
    """Whether `save_checkpoint` wrote the content of a file."""
    return isinstance(content, dict) and str(content.get("format")).startswith(_FORMAT)


def write_archive(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file with `torch.save`, atomically.

    Raises:
        OSError: the file cannot be written; the message says what to do.
    """
    # torch's zip writer turns a full disk into a RuntimeError
    with _explaining_write_errors(path, RuntimeError), replacing(path) as temporary:
        torch.save(content, temporary)


@contextmanager
def _explaining_write_errors(path: Path, kind: type[Exception]) -> Iterator[None]:
    """Explain an error of writing: an OSError, or the ``kind`` that a writer turns it into."""
    try:
        yield
    except (OSError, kind) as err:
        unchanged = "; the existing file is unchanged" if path.exists() else ""
        raise OSError(f"{path} cannot be written ({err}){unchanged}. Free space or choose another folder.") from err


def read_archive(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save`, with tensors on the CPU and without executing code in it.

    Args:
        path: path of the file.
        allowed: classes that replace those of the same module and name in the file; tensors and plain values
            (numbers, strings, lists, dicts) are always allowed.

    Raises:
        ValueError: the file is missing, truncated, not from `torch.save`, or holds objects of other classes.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a checkpoint{way_from_training(path)}.")
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint.")
    # torch.load would also read a bare pickle, but a checkpoint is always an archive, and a truncated one is none
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, struct.error, NotImplementedError) as err:
        raise ValueError(f"{path} is not a checkpoint, or is truncated.") from err
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
            raise ValueError(f"{path} is not a checkpoint, or its pickle is damaged.") from err
        raise ValueError(
            f"{path} is refused: it holds objects other than tensors and plain values ({class_match[1]}), which could "
            "run code."
        ) from err
    # damaged bytes raise almost any exception inside torch
    except Exception as err:
        raise ValueError(f"{path} is not a checkpoint, or is damaged ({err}).") from err


@contextmanager
def _allowing_only(classes: Sequence[type]) -> Iterator[None]:
    """Allow only the given classes; torch.serialization.safe_globals would add them to those of the process."""
    process_classes = list(get_safe_globals())
    clear_safe_globals()
    add_safe_globals(list(classes))
    try:
        yield
    finally:
        # modules of torch that were imported meanwhile have added classes
        process_classes += [added for added in get_safe_globals() if added not in classes]
        clear_safe_globals()
        add_safe_globals(process_classes)


def epoch_path(exp_dir: Path, epoch: int) -> Path:
    """Path of the checkpoint at the end of an epoch, named as in the tutorial."""
    return exp_dir / f"epoch-{epoch}.pt"


def batch_path(exp_dir: Path, step: int) -> Path:
    """Path of a checkpoint within an epoch, after ``step`` batches over all epochs."""
    return exp_dir / f"checkpoint-{step}.pt"


def saved_epochs(exp_dir: Path) -> list[int]:
    """List the epochs that have a checkpoint, in order."""
    return _numbers(exp_dir, "epoch")


def saved_batches(exp_dir: Path) -> list[int]:
    """List the numbers of batches that have a checkpoint within an epoch, in order."""
    return _numbers(exp_dir, "checkpoint")


def is_training_checkpoint(path: Path, exp_dir: Path) -> bool:
    """Whether a path is, or would be, a checkpoint from which training in a folder resumes."""
    path = path.resolve()
    if path.parent == exp_dir.resolve() and re.fullmatch(r"(epoch|checkpoint)-\d+\.pt", path.name):
        return True
    # the path may be a link to one
    checkpoints = [epoch_path(exp_dir, number) for number in saved_epochs(exp_dir)]
    checkpoints += [batch_path(exp_dir, number) for number in saved_batches(exp_dir)]
    return path.exists() and any(path.samefile(checkpoint) for checkpoint in checkpoints)


def _numbers(exp_dir: Path, kind: str) -> list[int]:
    numbers = (path.stem.removeprefix(f"{kind}-") for path in exp_dir.glob(f"{kind}-*.pt"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def average_checkpoints(paths: Iterable[Path], *, use_ema: bool = False) -> Checkpoint:
    """Average the weights of checkpoints in float64; integer entries and everything else are those of the last file.

    At most two models and the sum are in memory.

    Args:
        paths: paths of the checkpoints.
        use_ema: average the running means of the weights instead.

    Raises:
        ValueError: there is no file, or the models differ in sizes or tokens.
    """
    total: dict[str, Tensor] = {}
    last: Checkpoint | None = None
    count = 0
    names = []
    for path in paths:
        current = _without_training_state(path, use_ema)
        if last is not None:
            if (current.model_config, current.token_table) != (last.model_config, last.token_table):
                raise ValueError(f"{path} cannot be averaged with {names[-1]}: other sizes or tokens.")
            _check_weights(current.weights, last.weights)
        for name, value in current.weights.items():
            if value.is_floating_point():
                total[name] = total[name] + value if name in total else value.double()
        last, count = current, count + 1
        names.append(path.name)
    if last is None:
        raise ValueError("No checkpoint to average.")
    weights = {
        name: (total[name] / count).to(value.dtype) if name in total else value for name, value in last.weights.items()
    }
    provenance = {**last.provenance, "averaged": names}
    return replace(last, weights=weights, provenance=provenance)


def _without_training_state(path: Path, use_ema: bool) -> Checkpoint:
    """Read a checkpoint, and drop the optimizer's state: it is twice as large as the model."""
    checkpoint = load_checkpoint(path)
    if not use_ema:
        return replace(checkpoint, training_state=None)
    mean = (checkpoint.training_state or {}).get("ema")
    if mean is None:
        raise ValueError(f"`use_ema`: {path} holds no running mean of the weights; train with `ema_decay`.")
    provenance = {**checkpoint.provenance, "running_mean": True}
    return replace(checkpoint, weights=mean, provenance=provenance, training_state=None)


def _check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    faults = weight_faults(weights, expected)
    if faults:
        raise ValueError(f"The weights do not fit the model: {faults}.")


def weight_faults(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe the weights that are missing, unknown or of another shape, by name; empty if all fit."""
    return first_of(
        [
            *(f"{name} is missing" for name in expected if name not in weights),
            *(f"{name} is left over" for name in weights if name not in expected),
            *(
                f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in expected
                if name in weights and weights[name].shape != expected[name].shape
            ),
        ]
    )


def first_of(faults: Sequence[str]) -> str:
    """Join the first five faults, and the number of further ones."""
    return "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
