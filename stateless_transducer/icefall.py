# pyright: strict
"""Conversion of icefall's checkpoints of the recipes ``transducer_stateless_modified`` and ``zipformer``, both ways.

The parameters have other names here; the sizes follow from their shapes. Optimizer and sampler are not converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from torch import Tensor

from stateless_transducer import __version__
from stateless_transducer.checkpoint import (
    Checkpoint,
    check_tensors,
    first_of,
    from_own_format,
    is_own_format,
    load_checkpoint,
    skeleton,
    weight_faults,
)
from stateless_transducer.features import FbankConfig
from stateless_transducer.files import sha256
from stateless_transducer.icefall_layouts import (
    Layout,
    MissingSizeError,
    Sizes,
    icefall_conformer_name,
    icefall_zipformer_name,
    layout_of,
)
from stateless_transducer.model.config import ConformerConfig, ModelConfig, ZipformerConfig
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.weight_files import read_archive, write_archive

_DDP_PREFIX = "module."
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
# the same of a Zipformer, whose sizes are lists as text: those that the weights do not show
_STATED_LISTS = ("num_heads", "encoder_unmasked_dim", "chunk_size", "left_context_frames")


def load_icefall(
    path: str | Path, token_table: TokenTable, *, sizes: Sizes | None = None, encoder: str | None = None
) -> Checkpoint:
    """Read icefall's ``epoch-N.pt``, ``best-*.pt`` or ``pretrained.pt``, without executing code in it.

    The front end is the default `FbankConfig`, which equals icefall's. Sizes that the file states must equal those of
    the weights. The heads of the simple loss and of CTC are kept, to be written back.

    Args:
        path: path of the file.
        token_table: tokens of the ``tokens.txt`` that the model was trained with; icefall stores them separately.
        sizes: sizes of a Zipformer that the weights do not show: ``num_heads``; for a causal one, ``chunk_size`` and
            ``left_context_frames``; for training alone, ``encoder_unmasked_dim``. An ``epoch-N.pt`` states them.
        encoder: kind of the encoder that the file must have; None: any.

    Raises:
        ValueError: the file is missing, truncated, from another program or recipe, or has other tokens or sizes; the
            message names the difference.

    Example:
        >>> checkpoint = load_icefall("pretrained.pt", TokenTable.read("data/lang_char"))
        >>> save_checkpoint("converted.pt", checkpoint)
    """
    path = Path(path)
    return _from_content(path, read_archive(path, _allowed()), token_table, sizes or {}, encoder)


def load_either(path: Path, lang_dir: Path, *, sizes: Sizes | None = None) -> Checkpoint:
    """Read a checkpoint of this project, or one of icefall with the tokens of a folder.

    Args:
        path: path of the file.
        lang_dir: folder of the tokens of a file of icefall.
        sizes: see `load_icefall`.

    Raises:
        ValueError: see `load_icefall`.
    """
    if path.suffix == ".safetensors":
        # icefall writes no such files
        return load_checkpoint(path)
    content = read_archive(path, _allowed())
    if is_own_format(content):
        return from_own_format(path, content)
    return _from_content(path, content, TokenTable.read(lang_dir), sizes or {}, None)


def _from_content(path: Path, content: Any, token_table: TokenTable, sizes: Sizes, encoder: str | None) -> Checkpoint:
    recipe = "transducer_stateless_modified or zipformer"
    try:
        theirs = _without_ddp(_state_dict(content))
        layout = layout_of(theirs)
        if encoder not in (None, layout.encoder):
            raise ValueError(f"`encoder` is {encoder}, but the file holds a {layout.encoder}.")
        recipe = layout.recipe
        heads = {name: value for name, value in theirs.items() if layout.is_head(name)}
        check_tensors(heads)
        sizes = {**_stated_lists(content, layout), **sizes}
        weights, config = from_icefall({name: theirs[name] for name in theirs if name not in heads}, sizes)
        _check_stated_sizes(content, config)
    except MissingSizeError as err:
        raise ValueError(f"{path}: {err}") from err
    except ValueError as err:
        raise ValueError(f"{path} is not a checkpoint of icefall's {recipe}: {err}") from err
    if len(token_table) != config.vocab_size:
        raise ValueError(
            f"{path} is a model of {config.vocab_size} tokens, but `lang_dir` has {len(token_table)}; pass the one "
            "that it was trained with."
        )
    if token_table.blank_id != config.blank_id:
        raise ValueError(f"The blank of icefall's models is token 0, but in `lang_dir` it is {token_table.blank_id}.")
    provenance = _provenance(path, content)
    heads = {layout.our_name(name): value for name, value in heads.items()}
    return Checkpoint(weights, config, FbankConfig(), token_table, provenance, heads=heads)


def save_icefall(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the weights as icefall's ``pretrained.pt``, atomically.

    Raises:
        ValueError: icefall has no such model.
        OSError: the file cannot be written; the message says what to do.

    Example:
        >>> checkpoint = load_icefall("pretrained.pt", TokenTable.read("data/lang_char"))
        >>> save_icefall("copy.pt", checkpoint)
    """
    write_archive(Path(path), {"model": to_icefall(checkpoint)})


def from_icefall(weights: Mapping[str, Tensor], sizes: Sizes | None = None) -> tuple[dict[str, Tensor], ModelConfig]:
    """Return the weights under the names here, and the sizes of the model.

    Args:
        weights: weights by icefall's names; all may have the prefix ``module.`` of DistributedDataParallel.
        sizes: see `load_icefall`.

    Raises:
        ValueError: a weight is missing, unknown, of another shape or no floating-point tensor, or a size is unknown; it
            is named.
    """
    weights = _without_ddp(weights)
    # before the sizes are read from the shapes
    check_tensors(weights)
    layout = layout_of(weights)
    config = layout.config(weights, sizes or {})
    expected = skeleton(config).state_dict()
    faults = weight_faults(weights, {_their_name(name, config): value for name, value in expected.items()})
    if faults:
        raise ValueError(f"{faults}.")
    return {layout.our_name(name): value for name, value in weights.items()}, config


def _without_ddp(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not all(name.startswith(_DDP_PREFIX) for name in weights):
        return weights
    return {name.removeprefix(_DDP_PREFIX): value for name, value in weights.items()}


def _their_name(name: str, config: ModelConfig) -> str:
    """Return icefall's name of a parameter of a model here."""
    if isinstance(config.encoder, ZipformerConfig):
        return icefall_zipformer_name(name, config.encoder.downsampling_factor)
    return icefall_conformer_name(name)


def to_icefall(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights under icefall's names, as a state dict for its model.

    Raises:
        ValueError: icefall's code has no such model.
    """
    config = checkpoint.model_config
    _check_known(config)
    if config.feature_norm != "none":
        raise ValueError(
            f"icefall's encoder does not normalize features, but `feature_norm` is {config.feature_norm}; icefall "
            "cannot run such a model."
        )
    if config.blank_id != 0:
        raise ValueError(f"The blank of icefall's models is token 0, but here it is {config.blank_id}.")
    faults = weight_faults(checkpoint.weights, skeleton(config).state_dict())
    if faults:
        raise ValueError(f"The weights do not fit the model: {faults}.")
    named = {**checkpoint.weights, **checkpoint.heads}
    return {_their_name(name, config): value for name, value in named.items()}


def _check_known(config: ModelConfig) -> None:
    """Refuse a model that icefall's code does not have."""
    encoder, is_grouped = config.encoder, config.decoder.decoder_conv == "grouped"
    if isinstance(encoder, ConformerConfig):
        if encoder.subsampling_channels not in (None, encoder.attention_dim):
            raise ValueError(
                f"icefall's subsampling has as many channels as the encoder is wide, {encoder.attention_dim}, but "
                f"`subsampling_channels` is {encoder.subsampling_channels}; icefall cannot load such a model."
            )
        if config.joiner.joiner_proj or is_grouped or config.decoder.decoder_dim is not None:
            raise ValueError("icefall's conformer has no `joiner_proj`, `decoder_dim` or grouped `decoder_conv`.")
    elif not isinstance(encoder, ZipformerConfig):
        raise ValueError(f"icefall's recipes have conformers and zipformers, but this encoder is a {encoder.kind}.")
    elif encoder.subsampling_channels != ZipformerConfig.subsampling_channels:
        raise ValueError(
            f"icefall's zipformer has {ZipformerConfig.subsampling_channels} `subsampling_channels`, but this model "
            f"has {encoder.subsampling_channels}; icefall cannot load it."
        )
    elif not is_grouped:
        raise ValueError("icefall's zipformer has a grouped `decoder_conv`.")


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
    entries = cast("dict[object, Any]", content)
    if "model" not in entries:
        raise ValueError(f"it has no `model` (but {first_of([repr(name) for name in entries]) or 'nothing'}).")
    weights = entries["model"]
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in cast("dict[object, Any]", weights)):
        raise ValueError("its `model` is no state dict.")
    return cast("dict[str, Tensor]", weights)


def _check_stated_sizes(content: Mapping[str, Any], config: ModelConfig) -> None:
    """Check the sizes that a file states: without its convolution, a context of 2 looks like one of 1."""
    sizes = config.sizes()
    for name, size in _STATED_SIZES.items():
        stated, actual = content.get(name), sizes.get(size)
        if isinstance(stated, int) and actual is not None and stated != actual:
            raise ValueError(f"it states that `{name}` is {stated}, but the weights have {actual}.")


def _stated_lists(content: Mapping[str, Any], layout: Layout) -> Sizes:
    """Return the sizes that a file of a Zipformer states, and its weights do not show."""
    if layout.encoder != ZipformerConfig.kind:
        return {}
    stated = {name: content[name] for name in _STATED_LISTS if isinstance(content.get(name), str)}
    try:
        return {name: [int(number) for number in value.split(",")] for name, value in stated.items()}
    except ValueError as err:
        raise ValueError(f"it states a list that holds no numbers: {err}.") from err


def _provenance(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    counts = {"epoch": content.get("cur_epoch"), "step": content.get("batch_idx_train")}
    return {
        "version": __version__,
        "command": "transducer import",
        "imported": {"file": path.name, "sha256": sha256(path)},
        **{name: count for name, count in counts.items() if type(count) is int},
    }
