"""Conversion of icefall's checkpoints of the recipe ``transducer_stateless_modified``, in both directions.

The parameters have other names here; the sizes follow from their shapes. Optimizer and sampler are not converted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from torch import Tensor

from stateless_transducer import __version__
from stateless_transducer.checkpoint import (
    Checkpoint,
    first_of,
    from_own_format,
    is_own_format,
    load_checkpoint,
    read_archive,
    weight_faults,
    write_archive,
)
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import sha256
from stateless_transducer.model.config import ConformerConfig, ModelConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable

_PREFIXES = {
    "encoder.encoder_embed.": "encoder.embed.",
    "encoder.encoder.layers.": "encoder.layers.",
    "encoder.encoder_output_layer.": "encoder.output.",
}
_DDP_PREFIX = "module."
_LAYER = re.compile(r"encoder\.encoder\.layers\.(\d+)\.")
_LAYER_0 = "encoder.encoder.layers.0."
_CONTEXT = "decoder.conv.weight"
# size -> the parameter and the axis that show it
_SIZES = {
    "vocab_size": ("decoder.embedding.weight", 0),
    "joiner_dim": ("decoder.embedding.weight", 1),
    "attention_dim": ("encoder.encoder_embed.out.weight", 0),
    "subsampling_channels": ("encoder.encoder_embed.conv.0.weight", 0),
    "num_heads": (f"{_LAYER_0}self_attn.pos_bias_u", 0),
    "feedforward_dim": (f"{_LAYER_0}feed_forward.0.weight", 0),
    "conv_kernel": (f"{_LAYER_0}conv_module.depthwise_conv.weight", 2),
}
# entry that icefall's train.py writes to epoch-N.pt beside the weights -> size
_STATED_SIZES = {
    "vocab_size": "vocab_size",
    "encoder_out_dim": "joiner_dim",
    "attention_dim": "attention_dim",
    "nhead": "num_heads",
    "dim_feedforward": "feedforward_dim",
    "num_encoder_layers": "num_layers",
    "context_size": "context_size",
}


def our_name(name: str) -> str:
    """Return the name here of a parameter of icefall."""
    return _rename(name, _PREFIXES)


def icefall_name(name: str) -> str:
    """Return icefall's name of a parameter here."""
    return _rename(name, {new: old for old, new in _PREFIXES.items()})


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def load_icefall(path: str | Path, token_table: TokenTable) -> Checkpoint:
    """Read icefall's ``epoch-N.pt``, ``best-*.pt`` or ``pretrained.pt``, without executing code in it.

    The front end is the default `FbankConfig`, which equals icefall's. Sizes that the file states must equal those of
    the weights.

    Args:
        path: path of the file.
        token_table: tokens of the ``tokens.txt`` that the model was trained with; icefall stores them separately.

    Raises:
        ValueError: the file is missing, truncated, from another program or recipe, or has other tokens; the message
            names the difference.
    """
    path = Path(path)
    return _from_content(path, read_archive(path, _allowed()), token_table)


def load_either(path: Path, lang_dir: Path) -> Checkpoint:
    """Read a checkpoint of this project, or one of icefall with the tokens of a folder.

    Raises:
        ValueError: see `load_icefall`.
    """
    if path.suffix == ".safetensors":
        # icefall writes no such files
        return load_checkpoint(path)
    content = read_archive(path, _allowed())
    if is_own_format(content):
        return from_own_format(path, content)
    return _from_content(path, content, TokenTable.read(lang_dir))


def _from_content(path: Path, content: Any, token_table: TokenTable) -> Checkpoint:
    try:
        weights, config = from_icefall(_state_dict(content))
        _check_stated_sizes(content, config)
    except ValueError as err:
        raise ValueError(f"{path} is not a checkpoint of icefall's transducer_stateless_modified: {err}") from err
    if len(token_table) != config.vocab_size:
        raise ValueError(
            f"{path} is a model of {config.vocab_size} tokens, but `lang_dir` has {len(token_table)}; pass the one "
            "that it was trained with."
        )
    if token_table.blank_id != config.blank_id:
        raise ValueError(f"The blank of icefall's models is token 0, but in `lang_dir` it is {token_table.blank_id}.")
    return Checkpoint(weights, config, FbankConfig(), token_table, _provenance(path, content))


def save_icefall(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the weights as icefall's ``pretrained.pt``, atomically.

    Raises:
        ValueError: icefall has no such model.
        OSError: the file cannot be written; the message says what to do.
    """
    write_archive(Path(path), {"model": to_icefall(checkpoint)})


def from_icefall(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ModelConfig]:
    """Return the weights under the names here, and the sizes of the model.

    Args:
        weights: weights by icefall's names; all may have the prefix ``module.`` of DistributedDataParallel.

    Raises:
        ValueError: a weight is missing, unknown, of another shape or no floating-point tensor; it is named.
    """
    if all(name.startswith(_DDP_PREFIX) for name in weights):
        weights = {name.removeprefix(_DDP_PREFIX): value for name, value in weights.items()}
    invalid = [name for name, value in weights.items() if not _is_weight(value)]
    if invalid:
        raise ValueError(f"{first_of([f'{name} is no floating-point tensor' for name in invalid])}.")
    config = _infer_config(weights)
    faults = weight_faults(weights, {icefall_name(name): value for name, value in _skeleton(config).items()})
    if faults:
        raise ValueError(f"{faults}.")
    return {our_name(name): value for name, value in weights.items()}, config


def to_icefall(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights under icefall's names, as a state dict for its model.

    Raises:
        ValueError: icefall's code has no such model.
    """
    config, encoder = checkpoint.model_config, checkpoint.model_config.encoder
    if not isinstance(encoder, ConformerConfig):
        raise ValueError(f"icefall's recipe has a conformer, but the encoder of this model is a {encoder.kind}.")
    if encoder.subsampling_channels not in (None, encoder.attention_dim):
        raise ValueError(
            f"icefall's subsampling has as many channels as the encoder is wide, {encoder.attention_dim}, but "
            f"`subsampling_channels` is {encoder.subsampling_channels}; icefall cannot load such a model."
        )
    if config.feature_norm != "none":
        raise ValueError(
            f"icefall's encoder does not normalize features, but `feature_norm` is {config.feature_norm}; icefall "
            "cannot run such a model."
        )
    if config.blank_id != 0:
        raise ValueError(f"The blank of icefall's models is token 0, but here it is {config.blank_id}.")
    faults = weight_faults(checkpoint.weights, _skeleton(config))
    if faults:
        raise ValueError(f"The weights do not fit the model: {faults}.")
    return {icefall_name(name): value for name, value in checkpoint.weights.items()}


def _allowed() -> list[type]:
    """Return stand-ins for the only classes in an epoch-N.pt: paths among the options, and ``torch.__version__``.

    The real classes of paths do not suffice: Python 3.13 names theirs differently, and Windows has no PosixPath.
    """
    paths = [type("PosixPath", (PurePosixPath,), {"__module__": name}) for name in ("pathlib", "pathlib._local")]
    return [*paths, type("TorchVersion", (str,), {"__module__": "torch.torch_version"})]


def _state_dict(content: object) -> dict[str, Tensor]:
    if is_own_format(content):
        raise ValueError("it is already one of stateless-transducer; there is nothing to import.")
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of a dict.")
    if "model" not in content:
        raise ValueError(f"it has no `model` (but {first_of([repr(name) for name in content]) or 'nothing'}).")
    weights: Any = cast("dict[Any, Any]", content)["model"]
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError("its `model` is no state dict.")
    return weights


def _is_weight(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _infer_config(weights: Mapping[str, Tensor]) -> ModelConfig:
    """Return the sizes that the shapes of the weights show."""
    faults = [f"{name} is missing" for name, _ in _SIZES.values() if name not in weights]
    axes = [*_SIZES.values(), (_CONTEXT, 2)]
    faults += [
        f"{name} has shape {tuple(weights[name].shape)} instead of {axis + 1} axes or more"
        for name, axis in axes
        if name in weights and weights[name].ndim <= axis
    ]
    if faults:
        raise ValueError(f"{first_of(list(dict.fromkeys(faults)))}.")
    sizes: dict[str, Any] = {size: weights[name].shape[axis] for size, (name, axis) in _SIZES.items()}
    if sizes["subsampling_channels"] == sizes["attention_dim"]:
        del sizes["subsampling_channels"]
    layers = [int(match[1]) for match in map(_LAYER.match, weights) if match]
    return ModelConfig.from_sizes(
        {
            "encoder": ConformerConfig.kind,
            # a layer number above the number of weights is invalid, and must not build a huge model
            "num_layers": min(max(layers) + 1, len(weights)),
            "context_size": weights[_CONTEXT].shape[2] if _CONTEXT in weights else 1,
            "feature_dim": FbankConfig().num_mel_bins,
            **sizes,
        }
    )


def _skeleton(config: ModelConfig) -> dict[str, Tensor]:
    """Return the parameters of a model without values, which takes neither time nor random numbers."""
    with torch.device("meta"):
        return build_model(config).state_dict()


def _check_stated_sizes(content: Mapping[str, Any], config: ModelConfig) -> None:
    """Check the sizes that a file states: without its convolution, a context of 2 looks like one of 1."""
    sizes = config.sizes()
    for name, size in _STATED_SIZES.items():
        stated, actual = content.get(name), sizes[size]
        if isinstance(stated, int) and stated != actual:
            raise ValueError(f"it states that `{name}` is {stated}, but the weights have {actual}.")


def _provenance(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"epoch": content.get("cur_epoch"), "step": content.get("batch_idx_train")}
    return {
        "version": __version__,
        "command": "transducer import",
        "imported": {"file": path.name, "sha256": sha256(path)},
        **{name: count for name, count in counts.items() if type(count) is int},
    }
