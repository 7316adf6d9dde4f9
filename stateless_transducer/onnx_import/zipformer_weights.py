"""Weights of a Zipformer transducer from its graphs, under icefall's names.

Each graph is read from its output to its input. The order of the modules is that of `model.zipformer_layer`; it is the
same in icefall's exports and in ours, offline and streaming.

Letters: C channels, K kernel, T frames of a chunk in a stack, L frames before it, H heads, R position query size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stateless_transducer.onnx_import.dataflow import Convolution, Dataflow, GraphError, Interpolation, Linear


@dataclass(frozen=True)
class FoldedPositions:
    """Product of position features and ``linear_pos``, which the exporter computed in advance."""

    table: np.ndarray
    """(H, R, 2T-1+L), for the offsets -(T+L-1)..T-1."""
    step: float | None
    """Step between neighboring values if they were rounded to 8 bits."""


@dataclass(frozen=True)
class EdgeSums:
    """Sum of the scales for the left and the right edge of a chunk, which the exporter computed in advance."""

    sums: np.ndarray
    """(C, T)."""
    kernel: int


Weight = np.ndarray | FoldedPositions | EdgeSums
Weights = Mapping[str, Weight]


@dataclass(frozen=True)
class EncoderGraph:
    """Weights of an encoder, and where its graph shows the numbers of heads."""

    weights: Weights
    attention: list[str]
    """Input of the softmax of the first layer of each stack, with a row for each head."""


# what comes before the first stack, in the order of the computation -> kernel
_EMBED = {
    "conv.0": (3, 3),
    "conv.4": (3, 3),
    "conv.7": (3, 3),
    "convnext.depthwise_conv": (7, 7),
    "convnext.pointwise_conv1": (1, 1),
    "convnext.pointwise_conv2": (1, 1),
}
# icefall's layers have a scale that no operation uses; this is its initial value
_UNUSED_SCALE = 0.5


def read_joiner(flow: Dataflow) -> Weights:
    """Return the weights of a joiner."""
    return _named("joiner.output_linear", _linear(flow, flow.outputs[0], "the joiner"))


def read_decoder(flow: Dataflow) -> Weights:
    """Return the weights of a decoder, and of its projection."""
    projection = _linear(flow, flow.outputs[0], "the projection of the decoder")
    convolutions = flow.nearest(projection.input).operations
    start = convolutions[0].input if convolutions else projection.input
    tables = [value for value in flow.nearest(start).constants if value.ndim == 2]
    if len(tables) != 1 or len(convolutions) > 1:
        raise GraphError("the decoder is no embedding with at most one convolution.")
    convolution = {"decoder.conv.weight": convolutions[0].weight} if convolutions else {}
    return {"decoder.embedding.weight": tables[0], **convolution, **_named("joiner.decoder_proj", projection)}


def read_encoder(flow: Dataflow, steps: Mapping[str, float]) -> EncoderGraph:
    """Return the weights of an encoder, and of its projection.

    Args:
        flow: graph of the encoder.
        steps: see `dequantize`.

    Raises:
        GraphError: the graph is no Zipformer.
    """
    return _EncoderReader(flow, steps).read()


class _EncoderReader:
    def __init__(self, flow: Dataflow, steps: Mapping[str, float]) -> None:
        self._flow, self._steps = flow, steps

    def read(self) -> EncoderGraph:
        projection = _linear(self._flow, self._flow.outputs[0], "the projection of the encoder")
        output = self._flow.weighted_mean(self._flow.before_moves(projection.input))
        if output is None:
            raise GraphError("the encoder does not end with a mean of pairs of frames, as a Zipformer does.")
        stacks: list[tuple[Weights, str]] = []
        x = output.input
        while self._flow.norm(x) is None:
            stack, attention, x = self._stack(x)
            stacks.insert(0, (stack, attention))
        weights = {**_named("joiner.encoder_proj", projection), **self._embed(x)}
        weights["encoder.downsample_output.bias"] = _centered_logs(output.weights)
        for number, (stack, _) in enumerate(stacks):
            weights |= _prefixed(f"encoder.encoders.{number}.", stack)
        return EncoderGraph(weights, [attention for _, attention in stacks])

    def _stack(self, x: str) -> tuple[Weights, str, str]:
        """Return the weights of the stack that computes a tensor, the attention of its first layer, and its input."""
        outer, layers = self._flow.interpolation(x), []
        if outer is None:
            raise GraphError(f"a stack must end with a bypass, but {x} does not.")
        is_combined = self._flow.norm(outer.after) is None
        y = self._flow.before_moves(outer.after) if is_combined else x
        while (bypass := self._layer_end(y)) is not None:
            weights, attention = self._layer(bypass)
            layers.insert(0, (weights, attention))
            y = bypass.before
        if not layers:
            raise GraphError(f"a stack has no layer before {x}.")
        level = "encoder." if is_combined else ""
        stack: Weights = {
            f"{level}layers.{number}.{name}": value
            for number, (weights, _) in enumerate(layers)
            for name, value in weights.items()
        }
        if is_combined:
            mean = self._flow.weighted_mean(y)
            if mean is None:
                raise GraphError(f"a stack must begin with a mean of frames, but {y} is none.")
            stack |= {"downsample.bias": _centered_logs(mean.weights), "out_combiner.bypass_scale": outer.scale}
            y = mean.input
        return stack, layers[0][1], self._flow.before_moves(y)

    def _layer_end(self, x: str) -> Interpolation | None:
        """Return the bypass at the end of a layer; None: something else computes the tensor."""
        bypass = self._flow.interpolation(x)
        return None if bypass is None or self._flow.norm(bypass.after) is None else bypass

    def _layer(self, bypass: Interpolation) -> tuple[Weights, str]:
        """Return the weights of the layer that ends with a bypass, and the input of its softmax."""
        norm = self._flow.norm(bypass.after)
        assert norm is not None
        weights: dict[str, Weight] = {
            "norm.log_scale": norm.log_scale,
            "norm.bias": norm.bias,
            "bypass.bypass_scale": bypass.scale,
            "bypass_scale": np.full_like(bypass.scale, _UNUSED_SCALE),
        }
        x = self._module(norm.input, "feed_forward3", weights)
        x = self._convolution(x, "conv_module2", weights)
        x = self._module(x, "self_attn2", weights)
        middle = self._flow.interpolation(x)
        if middle is None or middle.before != bypass.before:
            raise GraphError(f"a bypass of half a layer is missing before {x}.")
        weights["bypass_mid.bypass_scale"] = middle.scale
        x = self._module(middle.after, "feed_forward2", weights)
        x = self._convolution(x, "conv_module1", weights)
        attention = self._attention_of(x)
        x = self._module(x, "self_attn1", weights)
        x = self._module(x, "nonlin_attention", weights)
        x = self._module(x, "feed_forward1", weights)
        if x != bypass.before:
            raise GraphError(f"a layer begins at {x}, but its bypass at {bypass.before}.")
        return {**weights, **self._attention_weights(attention)}, attention

    def _residual(self, x: str, name: str) -> tuple[str, Linear]:
        pair = self._flow.residual(x)
        if pair is None:
            raise GraphError(f"the module {name} of a layer is missing before {x}.")
        return pair

    def _module(self, x: str, name: str, weights: dict[str, Weight]) -> str:
        """Add the two maps of a module, and return the tensor that its output was added to."""
        before, out_proj = self._residual(x, name)
        in_proj = self._only_linear(out_proj.input, name)
        weights |= _named(f"{name}.in_proj", in_proj) | _named(f"{name}.out_proj", out_proj)
        return before

    def _attention_of(self, x: str) -> str:
        _, out_proj = self._residual(x, "self_attn1")
        attention = self._flow.nearest(out_proj.input).attention
        if len(attention) != 1:
            raise GraphError(f"the attention of a layer is missing before {x}.")
        return attention[0]

    def _convolution(self, x: str, name: str, weights: dict[str, Weight]) -> str:
        """Add the maps and convolutions of a convolution module, and return the tensor that its output was added to.

        A causal model has two convolutions.
        """
        before, out_proj = self._residual(x, name)
        nearest = self._flow.nearest(out_proj.input)
        convolutions = [operation for operation in nearest.operations if isinstance(operation, Convolution)]
        if len(convolutions) != len(nearest.operations) or len(convolutions) not in (1, 2):
            raise GraphError(f"the convolution of {name} is missing before {x}.")
        in_proj = self._only_linear(convolutions[0].input, name)
        weights |= _named(f"{name}.in_proj", in_proj) | _named(f"{name}.out_proj", out_proj)
        prefix = f"{name}.depthwise_conv"
        if len(convolutions) == 1:
            weights |= _depthwise(prefix, convolutions[0])
            return before
        # the causal one sees half of the other's frames
        causal, chunkwise = sorted(convolutions, key=lambda operation: operation.weight.shape[-1])
        weights |= _depthwise(f"{prefix}.causal_conv", causal) | _depthwise(f"{prefix}.chunkwise_conv", chunkwise)
        weights[f"{prefix}.chunkwise_conv_scale"] = self._edge_scale(nearest.constants, chunkwise, name)
        return before

    def _edge_scale(self, constants: list[np.ndarray], chunkwise: Convolution, name: str) -> np.ndarray | EdgeSums:
        channels, kernel = chunkwise.weight.shape[0], chunkwise.weight.shape[-1]
        for value in constants:
            if value.shape == (2, channels, kernel):
                return value
            # as this project's streaming graphs have it
            if value.shape == (2, kernel, channels):
                return value.transpose(0, 2, 1)
        edges = [value for value in constants if value.shape == (channels, kernel)]
        if len(edges) == 2:
            # the left one is the first summand
            return np.stack(edges)
        factor = self._flow.multiplier(chunkwise.output)
        if factor is None or factor.ndim != 2:
            raise GraphError(f"the scale of the chunks of {name} is missing.")
        return EdgeSums(factor - 1, kernel)

    def _attention_weights(self, attention: str) -> Weights:
        nearest = self._flow.nearest(attention)
        maps = [operation for operation in nearest.operations if isinstance(operation, Linear)]
        in_proj = [operation for operation in maps if operation.bias is not None]
        positions = [operation for operation in maps if operation.bias is None]
        tables = [(name, value) for name, value in nearest.named if value.ndim == 4]
        if len(in_proj) != 1 or len(positions) + len(tables) != 1:
            raise GraphError(f"the queries, keys and positions of the attention before {attention} are missing.")
        weights: Weights = _named("self_attn_weights.in_proj", in_proj[0])
        name = "self_attn_weights.linear_pos.weight"
        if positions:
            return {**weights, name: positions[0].weight}
        table, value = tables[0]
        return {**weights, name: FoldedPositions(value[:, 0], self._steps.get(table))}

    def _only_linear(self, x: str, name: str) -> Linear:
        operations = self._flow.nearest(x).operations
        if len(operations) != 1 or not isinstance(operations[0], Linear):
            raise GraphError(f"the first map of {name} is missing before {x}.")
        return operations[0]

    def _embed(self, x: str) -> Weights:
        norm = self._flow.norm(x)
        assert norm is not None
        out = _linear(self._flow, norm.input, "the subsampling")
        weights = _named("encoder_embed.out", out)
        weights |= {"encoder_embed.out_norm.log_scale": norm.log_scale, "encoder_embed.out_norm.bias": norm.bias}
        y = out.input
        for name, kernel in reversed(_EMBED.items()):
            operations = self._flow.nearest(y).operations
            if not operations:
                raise GraphError(f"the convolution {name} is missing before {y}.")
            # the last one: the ConvNeXt layer adds its input to its output
            operation = operations[-1]
            weights |= _named(f"encoder_embed.{name}", operation._replace(weight=_as_image(operation, kernel)))
            y = operation.input
        return weights


def _linear(flow: Dataflow, name: str, what: str) -> Linear:
    operation = flow.operation(name)
    if not isinstance(operation, Linear) or operation.bias is None:
        raise GraphError(f"{name} must come from a linear map, {what}, but does not.")
    return operation


def _named(name: str, operation: Linear | Convolution) -> dict[str, Weight]:
    if operation.bias is None:
        raise GraphError(f"the operation at the place of {name} has no bias.")
    return {f"{name}.weight": operation.weight, f"{name}.bias": operation.bias}


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def _depthwise(name: str, operation: Convolution) -> dict[str, Weight]:
    """Return the weights as those of a convolution over time, (C, 1, K), also if it was one over images of height 1."""
    weight = operation.weight
    return _named(name, operation._replace(weight=weight.reshape(len(weight), 1, -1)))


def _as_image(operation: Linear | Convolution, kernel: tuple[int, int]) -> np.ndarray:
    """Return the weight of a convolution over images, also if it was computed as a product with patches of the input.

    The columns of such a product are in the order height, width, channels.
    """
    weight = operation.weight
    if weight.ndim == 4:
        return weight
    return weight.reshape(len(weight), *kernel, -1).transpose(0, 3, 1, 2)


def _centered_logs(weights: np.ndarray) -> np.ndarray:
    """Return the logarithms that a softmax turns into weights; their mean, which has no effect, is 0."""
    logs = np.log(weights)
    return logs - logs.mean()
