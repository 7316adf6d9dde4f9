# pyright: strict
"""Names and sizes of the models in icefall's checkpoints: the tutorial's conformer, and the Zipformer.

A layout maps names of parameters in both directions, and finds the sizes that the shapes of the weights show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ZIPFORMER_SIZES, ConformerConfig, ModelConfig, ZipformerConfig

Weights = Mapping[str, Tensor]
Sizes = Mapping[str, Sequence[int]]
"""Sizes by name, a number for each stack or one for all."""


class MissingSizeError(ValueError):
    """A size that neither the weights nor the caller tell."""


@dataclass(frozen=True)
class Layout:
    """Layout of the checkpoints of one kind of model."""

    encoder: str
    """Kind of the encoder."""
    recipe: str
    """Name of icefall's recipe."""
    our_name: Callable[[str], str]
    """Name here of a parameter of icefall."""
    config: Callable[[Weights, Sizes], ModelConfig]
    """Sizes that the weights show, with further ones that they do not; see `load_icefall`."""
    heads: tuple[str, ...]
    """Prefixes of heads, which are no part of a model here."""

    def is_head(self, name: str) -> bool:
        """Report whether a parameter of icefall belongs to a head."""
        return name.startswith(self.heads)


def layout_of(weights: Weights) -> Layout:
    """Return the layout of weights by icefall's names."""
    return ZIPFORMER if any(name.startswith("encoder.encoders.") for name in weights) else CONFORMER


def replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Replace the first prefix that a name has."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


class _Shapes:
    """Shapes of weights; the errors name what is missing."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def size(self, name: str, axis: int) -> int:
        if name not in self._weights:
            raise ValueError(f"{name} is missing.")
        shape = tuple(self._weights[name].shape)
        if len(shape) <= axis:
            raise ValueError(f"{name} has shape {shape} instead of {axis + 1} axes or more.")
        return shape[axis]

    def size_or(self, name: str, axis: int, default: int) -> int:
        return self.size(name, axis) if name in self._weights else default

    def count(self, pattern: str) -> int:
        """Return one more than the largest number in the names that match."""
        numbers = [int(match[1]) for match in (re.match(pattern, name) for name in self._weights) if match]
        # a number above that of the weights is invalid, and must not build a huge model
        return min(max(numbers, default=-1) + 1, len(self._weights))


# conformer

_CONFORMER_PREFIXES = {
    "encoder.encoder_embed.": "encoder.embed.",
    "encoder.encoder.layers.": "encoder.layers.",
    "encoder.encoder_output_layer.": "encoder.output.",
}
_LAYER_0 = "encoder.encoder.layers.0."
# size -> the parameter and the axis that show it
_CONFORMER_SIZES = {
    "vocab_size": ("decoder.embedding.weight", 0),
    "joiner_dim": ("decoder.embedding.weight", 1),
    "attention_dim": ("encoder.encoder_embed.out.weight", 0),
    "subsampling_channels": ("encoder.encoder_embed.conv.0.weight", 0),
    "num_heads": (f"{_LAYER_0}self_attn.pos_bias_u", 0),
    "feedforward_dim": (f"{_LAYER_0}feed_forward.0.weight", 0),
    "conv_kernel": (f"{_LAYER_0}conv_module.depthwise_conv.weight", 2),
}


def conformer_name(name: str) -> str:
    """Return the name here of a parameter of icefall's conformer."""
    return replace_prefix(name, _CONFORMER_PREFIXES)


def icefall_conformer_name(name: str) -> str:
    """Return icefall's name of a parameter of a conformer."""
    return replace_prefix(name, {new: old for old, new in _CONFORMER_PREFIXES.items()})


def _conformer_config(weights: Weights, given: Sizes) -> ModelConfig:
    if given:
        raise ValueError(f"`{next(iter(given))}` is a size of a zipformer, but the file holds a conformer.")
    shapes = _Shapes(weights)
    sizes: dict[str, Any] = {size: shapes.size(name, axis) for size, (name, axis) in _CONFORMER_SIZES.items()}
    if sizes["subsampling_channels"] == sizes["attention_dim"]:
        del sizes["subsampling_channels"]
    return ModelConfig.from_sizes(
        {
            "encoder": ConformerConfig.kind,
            "num_layers": shapes.count(r"encoder\.encoder\.layers\.(\d+)\."),
            "context_size": shapes.size_or("decoder.conv.weight", 2, 1),
            "feature_dim": FbankConfig().num_mel_bins,
            **sizes,
        }
    )


CONFORMER = Layout("conformer", "transducer_stateless_modified", conformer_name, _conformer_config, heads=())

# zipformer

_ZIPFORMER_PREFIXES = {
    "encoder_embed.conv.0.": "encoder.embed.conv1.",
    "encoder_embed.conv.4.": "encoder.embed.conv2.",
    "encoder_embed.conv.7.": "encoder.embed.conv3.",
    "encoder_embed.": "encoder.embed.",
    "simple_am_proj.": "simple_joiner.from_encoder.",
    "simple_lm_proj.": "simple_joiner.from_decoder.",
    "ctc_output.1.": "ctc_head.",
}
_ZIPFORMER_HEADS = ("simple_am_proj.", "simple_lm_proj.", "ctc_output.", "attention_decoder.")


def zipformer_name(name: str) -> str:
    """Return the name here of a parameter of icefall's Zipformer."""
    # stacks at a lower frame rate have a level more
    return re.sub(
        r"^encoder\.encoders\.(\d+)\.(encoder\.)?", r"encoder.stacks.\1.", replace_prefix(name, _ZIPFORMER_PREFIXES)
    )


def icefall_zipformer_name(name: str, factors: Sequence[int]) -> str:
    """Return icefall's name of a parameter of a Zipformer whose stacks have the given downsampling factors."""
    match = re.match(r"encoder\.stacks\.(\d+)\.(.*)", name)
    if match is None:
        return replace_prefix(name, {new: old for old, new in _ZIPFORMER_PREFIXES.items()})
    number, rest = int(match[1]), match[2]
    level = "encoder." if factors[number] > 1 and rest.startswith("layers.") else ""
    return f"encoder.encoders.{number}.{level}{rest}"


def _zipformer_config(weights: Weights, given: Sizes) -> ModelConfig:
    shapes = _Shapes(weights)
    # at least the first stack, whose missing weights are named
    num_stacks = max(1, shapes.count(r"encoder\.encoders\.(\d+)\."))
    stacks = [_stack_sizes(shapes, number) for number in range(num_stacks)]
    sizes: dict[str, Any] = {name: tuple(stack[name] for stack in stacks) for name in stacks[0] if name[0] != "_"}
    layer = _layer_prefix(shapes, 0)
    sizes["subsampling_channels"] = shapes.size("encoder_embed.conv.7.weight", 0)
    sizes["pos_dim"] = shapes.size(f"{layer}self_attn_weights.linear_pos.weight", 1)
    is_causal = f"{layer}conv_module1.depthwise_conv.chunkwise_conv_scale" in weights
    given = {
        name: tuple(value) * (num_stacks if len(value) == 1 and name not in _CHUNKS else 1)
        for name, value in given.items()
    }
    sizes |= _head_sizes(stacks, given.get("num_heads"))
    sizes |= _chunk_sizes(is_causal, given)
    published = next((size for size in ZIPFORMER_SIZES.values() if size.encoder_dim == sizes["encoder_dim"]), None)
    unmasked = sizes["encoder_dim"] if published is None else published.encoder_unmasked_dim
    sizes["encoder_unmasked_dim"] = given.get("encoder_unmasked_dim", unmasked)
    for name, value in given.items():
        # the chunks of an encoder that is not causal choose nothing
        if name in sizes and name not in _CHUNKS and tuple(value) != sizes[name]:
            raise ValueError(f"`{name}` is {_spelled(value)}, but the weights have {_spelled(sizes[name])}.")
    return ModelConfig.from_sizes(
        {
            "encoder": ZipformerConfig.kind,
            "causal": is_causal,
            "vocab_size": shapes.size("joiner.output_linear.weight", 0),
            "joiner_dim": shapes.size("joiner.output_linear.weight", 1),
            "joiner_proj": True,
            "decoder_dim": shapes.size("decoder.embedding.weight", 1),
            "decoder_conv": "grouped",
            "context_size": shapes.size_or("decoder.conv.weight", 2, 1),
            "feature_dim": FbankConfig().num_mel_bins,
            **sizes,
        }
    )


_CHUNKS = ("chunk_size", "left_context_frames")


def _layer_prefix(shapes: _Shapes, number: int) -> str:
    factor = shapes.size_or(f"encoder.encoders.{number}.downsample.bias", 0, 1)
    return f"encoder.encoders.{number}.{'encoder.' if factor > 1 else ''}layers.0."


def _stack_sizes(shapes: _Shapes, number: int) -> dict[str, int]:
    """Return the sizes of a stack that the weights show; names with an underscore are rows over all heads."""
    layer = _layer_prefix(shapes, number)
    depthwise = f"{layer}conv_module1.depthwise_conv."
    kernel = shapes.size_or(f"{depthwise}chunkwise_conv.weight", 2, 0) or shapes.size(f"{depthwise}weight", 2)
    return {
        "num_encoder_layers": shapes.count(re.escape(layer.removesuffix("0.")) + r"(\d+)\."),
        "downsampling_factor": shapes.size_or(f"encoder.encoders.{number}.downsample.bias", 0, 1),
        "encoder_dim": shapes.size(f"{layer}norm.bias", 0),
        "feedforward_dim": shapes.size(f"{layer}feed_forward2.in_proj.weight", 0),
        "cnn_module_kernel": kernel,
        "_in_proj": shapes.size(f"{layer}self_attn_weights.in_proj.weight", 0),
        "_positions": shapes.size(f"{layer}self_attn_weights.linear_pos.weight", 0),
        "_values": shapes.size(f"{layer}self_attn1.in_proj.weight", 0),
    }


def _head_sizes(stacks: Sequence[Mapping[str, int]], num_heads: Sequence[int] | None) -> dict[str, tuple[int, ...]]:
    """Return the numbers of heads and their sizes; the weights show only the products."""
    if num_heads is None:
        # of heads with icefall's default sizes
        guess = [stack["_values"] // 12 for stack in stacks]
        usual = all(stack["_in_proj"] == 68 * heads for stack, heads in zip(stacks, guess, strict=True))
        example = f", {_spelled(guess)} if they have icefall's default sizes" if usual else ""
        _ask("num_heads", f"the number of attention heads of each stack{example}")
    if len(num_heads) != len(stacks):
        raise ValueError(f"`num_heads` must have {len(stacks)} numbers, one for each stack, but has {len(num_heads)}.")
    sizes: list[tuple[int, int, int]] = []
    for heads, stack in zip(num_heads, stacks, strict=True):
        queries = stack["_in_proj"] - stack["_positions"]
        if heads < 1 or queries % (2 * heads) or stack["_positions"] % heads or stack["_values"] % heads:
            raise ValueError(
                f"`num_heads` is {_spelled(num_heads)}, but {heads} heads cannot share the {queries // 2} queries, "
                f"{stack['_positions']} position queries and {stack['_values']} values of a stack."
            )
        sizes.append((queries // (2 * heads), stack["_positions"] // heads, stack["_values"] // heads))
    query, position, value = zip(*sizes, strict=True)
    return {
        "num_heads": tuple(num_heads),
        "query_head_dim": query,
        "pos_head_dim": position,
        "value_head_dim": value,
    }


def _chunk_sizes(is_causal: bool, given: Sizes) -> dict[str, Sequence[int]]:
    if not is_causal:
        return {}
    for name in _CHUNKS:
        if name not in given:
            default = _spelled(getattr(ZipformerConfig(), name))
            _ask(name, f"which the causal model was trained with; icefall's default is {default}")
    return {name: given[name] for name in _CHUNKS}


def _ask(name: str, what: str) -> NoReturn:
    raise MissingSizeError(
        f"the weights do not show `{name}`, {what}. Pass it to `transducer import` (Python: `load_icefall(sizes=...)`)."
    )


def _spelled(value: int | Sequence[int]) -> str:
    return str(value) if isinstance(value, int) else ",".join(map(str, value))


ZIPFORMER = Layout("zipformer", "zipformer", zipformer_name, _zipformer_config, heads=_ZIPFORMER_HEADS)
