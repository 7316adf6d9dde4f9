"""Complete checkpoints: written atomically, read without executing code.

One file holds the weights and everything that training decided: sizes, front end, tokens and provenance. A training
checkpoint also holds the state to resume from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stateless_transducer import __version__
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import parse_json
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import Transducer, build_model
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.weight_files import read_archive, read_safetensors, write_archive, write_safetensors

_FORMAT = "stateless-transducer-"
"""Followed by the number of the layout."""
_LAYOUT = 2
"""Layout of the files that `save_checkpoint` writes; `_from_layout_1` reads the one before."""


@dataclass(frozen=True)
class Checkpoint:
    """Model with everything needed to use it, and optionally to resume its training.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> checkpoint.model_config.summary, checkpoint.fbank_config.sample_rate
        ('causal conformer, 2 layers of width 32, 4 heads; 9 tokens, context 2', 16000)
        >>> model = checkpoint.model()  # a torch.nn.Module
    """

    weights: Mapping[str, Tensor]
    """Parameters by name, on the CPU."""
    model_config: ModelConfig
    fbank_config: FbankConfig
    token_table: TokenTable
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Origin of the model: version, command, epoch, number of batches, losses."""
    training_state: Mapping[str, Any] | None = None
    """Optimizer, position in the data, heads; None in a released model."""
    heads: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Parameters of the losses' heads by name, of a model imported from icefall."""

    def model(self) -> Transducer:
        """Build the network with these weights, in evaluation mode.

        Raises:
            ValueError: a weight is missing, unknown, of another shape or no floating-point tensor; all are named.
        """
        # drawing initial weights takes seconds, and memory before anything is compared
        model = skeleton(self.model_config)
        expected = model.state_dict()
        check_weights(self.weights, expected)
        copies = {
            name: value.detach().to("cpu", expected[name].dtype, copy=True, memory_format=torch.contiguous_format)
            for name, value in self.weights.items()
        }
        model.load_state_dict(copies, assign=True)
        return model.eval()


def skeleton(config: ModelConfig) -> Transducer:
    """Build a network without values, on the device ``meta``, which takes neither memory nor random numbers.

    Raises:
        ValueError: a weight would have more elements than an address has.
    """
    try:
        with torch.device("meta"), _WithoutInitialization():
            return build_model(config)
    except (RuntimeError, OverflowError, TypeError) as err:
        raise ValueError(f"No model of these sizes can exist ({str(err).splitlines()[0]}).") from err


class _WithoutInitialization(TorchFunctionMode):
    """Skip random initialization: on ``meta`` it has no effect, but torch imports its compiler for it, in seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (Tensor.uniform_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: if the disk is full, the file that was at ``path`` is unchanged.

    A name that ends in .safetensors gives a file of that format, without training state.

    Raises:
        OSError: the file cannot be written; the message says what to do.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> save_checkpoint("model.safetensors", checkpoint)
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        _save_safetensors(path, checkpoint)
        return
    content: dict[str, Any] = {
        "format": f"{_FORMAT}{_LAYOUT}",
        "model": dict(checkpoint.weights),
        "model_config": checkpoint.model_config.sizes(),
        "fbank_config": asdict(checkpoint.fbank_config),
        "tokens": checkpoint.token_table.facts(),
        "provenance": dict(checkpoint.provenance),
        "training_state": checkpoint.training_state,
        "heads": dict(checkpoint.heads),
    }
    write_archive(path, content)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint or a .safetensors file, without executing code in it.

    Raises:
        ValueError: the file is missing, truncated, not a checkpoint, or from another program.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> checkpoint.token_table.decode([3])
        '今'
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
        ValueError: a later version of this program wrote the file; a field is missing or of another type; weights,
            tokens and front end do not belong to a model of the sizes.
    """
    layout = content["format"].removeprefix(_FORMAT)
    if layout not in ("1", str(_LAYOUT)):
        raise ValueError(f"{path}: {_LATER} (layout {layout}; this one reads 1 to {_LAYOUT}); use that version.")
    # earlier files have no heads
    content = {"heads": {}, **content}
    _check_fields(path, content)
    if layout == "1":
        content = _from_layout_1(content)
    checkpoint = Checkpoint(
        weights=content["model"],
        model_config=_model_config(path, content["model_config"]),
        fbank_config=_fbank_config(path, content["fbank_config"]),
        token_table=_token_table(path, content["tokens"]),
        provenance=content["provenance"],
        training_state=content["training_state"],
        heads=content["heads"],
    )
    try:
        _check_parts(checkpoint)
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err
    return checkpoint


_FIELDS = ("model", "model_config", "fbank_config", "tokens", "provenance", "training_state", "heads")


def _check_fields(path: Path, content: Mapping[str, Any]) -> None:
    """Check that all fields of a file are dicts by name; the training state may be None."""
    for name in _FIELDS:
        if name not in content:
            raise ValueError(f"{path}: lacks the field `{name}` of a checkpoint.")
        value = content[name]
        if value is None and name == "training_state":
            continue
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in cast("dict[Any, Any]", value)):
            kind = type(cast("object", value)).__name__
            raise ValueError(f"{path}: the field `{name}` must be a dict of strings, but is a {kind}.")
    try:
        # a provenance may hold anything; nested too deeply, or in itself, it could not be shown
        json.dumps(content["provenance"], default=str)
    except (RecursionError, ValueError, TypeError) as err:
        raise ValueError(f"{path}: the field `provenance` cannot be shown ({err}).") from err


def _check_parts(checkpoint: Checkpoint) -> None:
    """Check that weights, tokens and front end belong to a model of the sizes, before any model takes memory."""
    config, tokens = checkpoint.model_config, checkpoint.token_table
    if len(tokens) != config.vocab_size:
        raise ValueError(f"its model has {config.vocab_size} tokens, but its token table {len(tokens)}.")
    if tokens.blank_id != config.blank_id:
        raise ValueError(f"`blank_id` is {config.blank_id}, but the blank of its token table is {tokens.blank_id}.")
    num_mel_bins = checkpoint.fbank_config.num_mel_bins
    if num_mel_bins != config.feature_dim:
        raise ValueError(f"`feature_dim` is {config.feature_dim}, but its front end has {num_mel_bins} mel bins.")
    check_weights(checkpoint.weights, skeleton(config).state_dict())
    # the names of heads, and so their shapes, are the recipe's
    _check_values(checkpoint.heads)
    check_tensors(checkpoint.heads)


_HEADS = "heads."
"""Prefix of the heads in a .safetensors file, which has one namespace for all tensors."""


def _save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    metadata = {
        "format": f"{_FORMAT}{_LAYOUT}",
        "model_config": json.dumps(checkpoint.model_config.sizes()),
        "fbank_config": json.dumps(asdict(checkpoint.fbank_config)),
        "tokens": json.dumps(checkpoint.token_table.facts()),
        # a provenance may hold anything
        "provenance": json.dumps(dict(checkpoint.provenance), default=str),
    }
    heads = {_HEADS + name: value for name, value in checkpoint.heads.items()}
    write_safetensors(path, {**checkpoint.weights, **heads}, metadata)


def _load_safetensors(path: Path) -> Checkpoint:
    tensors, metadata = read_safetensors(path)
    if not is_own_format(metadata):
        raise ValueError(f"{path} is not a checkpoint of stateless-transducer.")
    heads = {name.removeprefix(_HEADS): value for name, value in tensors.items() if name.startswith(_HEADS)}
    weights = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
    content: dict[str, Any] = {"format": metadata["format"], "model": weights, "heads": heads, "training_state": None}
    for name in ("model_config", "fbank_config", "tokens", "provenance"):
        try:
            content[name] = parse_json(metadata[name])
        except (KeyError, ValueError) as err:
            raise ValueError(f"{path}: `{name}` in its metadata is missing or no JSON ({err}).") from err
    return from_own_format(path, content)


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
    heads: dict[str, Tensor] = {}
    for head in ("ctc_head", "simple_joiner"):
        weights: Mapping[str, Tensor] = state.get(head) or {}
        heads.update({f"{head}.{name}": value for name, value in weights.items()})
    mean: Mapping[str, Tensor] | None = state.get("ema")
    return {**state, "heads": heads, "ema": None if mean is None else _renamed_from_layout_1(mean)}


_LATER = f"written by a later version of stateless-transducer than this one, {__version__}"


def _model_config(path: Path, sizes: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_sizes(sizes)
    # a TypeError: the kind of the encoder is a list
    except (ValueError, TypeError) as err:
        raise ValueError(f"{path}: its sizes are invalid, or it was {_LATER}: {err}") from err


def _token_table(path: Path, facts: Mapping[str, Any]) -> TokenTable:
    try:
        return TokenTable.from_facts(facts)
    except ValueError as err:
        raise ValueError(f"{path}: its token table is invalid: {err}") from err


def _fbank_config(path: Path, settings: Mapping[str, Any]) -> FbankConfig:
    unknown = settings.keys() - {field.name for field in fields(FbankConfig)}
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        raise ValueError(f"{path}: its front end has the unknown {names}; it was {_LATER}.")
    try:
        return FbankConfig(**settings)
    except ValueError as err:
        raise ValueError(f"{path}: its front end is invalid: {err}") from err


def is_own_format(content: object) -> bool:
    """Whether `save_checkpoint` wrote the content of a file."""
    return isinstance(content, dict) and str(cast("dict[Any, Any]", content).get("format")).startswith(_FORMAT)


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


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that weights have values and fit those of a model; a ValueError names the others."""
    _check_values(weights)
    if faults := weight_faults(weights, expected):
        raise ValueError(f"The weights do not fit the model: {faults}.")


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    """Check that no tensor is on the device ``meta``."""
    faults = first_of([f"{name} has no values" for name, value in tensors.items() if getattr(value, "is_meta", False)])
    if faults:
        raise ValueError(f"{faults}.")


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Check that all values are dense floating-point tensors; a ValueError names the others."""
    if faults := _tensor_faults(tensors):
        raise ValueError(f"{faults}.")


def _tensor_faults(tensors: Mapping[str, Tensor]) -> str:
    invalid = (name for name, value in tensors.items() if not is_weight(value))
    return first_of([f"{name} is no dense floating-point tensor" for name in invalid])


def weight_faults(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe the weights that are missing, unknown, of another kind or shape, by name; empty if all fit."""
    return _tensor_faults(weights) or first_of(
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


def is_weight(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a dense floating-point tensor; not an integer, complex, sparse or quantized one."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in dtypes


def first_of(faults: Sequence[str]) -> str:
    """Join the first five faults, and the number of further ones."""
    return "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
