"""Quantization of graphs to 8 bits: a quarter of the size, integer products. Measure the cost in accuracy.

As in icefall, weights are quantized here and activations at run time (onnxruntime's dynamic quantization). Differences:

- Each output channel has a separate scale.
- Weights keep 7 bits: pairs of products of 8 bits overflow on processors without VNNI.
- The joiner's activations, outputs of a tanh, have a fixed scale, so that rows of a batch do not affect one another.
- The convolution that makes up a third of the encoder's work becomes an integer matrix product, since onnxruntime's
  operator for integer convolutions is slow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from stateless_transducer.export.onnx_graph import RUNS_QUANTIZED
from stateless_transducer.export.onnx_model import GRAPHS, INT8_GRAPHS

# largest signed integer of 7 bits
_MOST_WEIGHT = 63
_END = np.iinfo(np.int64).max
_OPERATORS = {"encoder": ["MatMul"], "decoder": ["MatMul", "Gather"], "joiner": ["MatMul"]}


def quantize(folder: Path) -> None:
    """Write encoder.int8.onnx, decoder.int8.onnx and joiner.int8.onnx beside the graphs of a folder."""
    for role, operators in _OPERATORS.items():
        path = folder / INT8_GRAPHS[role]
        with _silent_logging():
            quantize_dynamic(
                folder / GRAPHS[role],
                path,
                op_types_to_quantize=operators,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
        model = onnx.load(str(path))
        if role == "encoder":
            _multiply_instead_of_convolving(model)
        else:
            _fix_scales(model)
            _unmark(model)
        onnx.save(model, str(path))


def _fix_scales(model: onnx.ModelProto) -> None:
    """Quantize outputs of a tanh by the range of tanh, not by the range of the values at hand."""
    # scale 1/127 and zero point 128 map -1 and 1 to 1 and 255
    values = [onnx.numpy_helper.from_array(value) for value in (np.array(1 / 127, np.float32), np.array(128, np.uint8))]
    tanh_outputs = {node.output[0] for node in model.graph.node if node.op_type == "Tanh"}
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear" and node.input[0] in tanh_outputs:
            quantized, *names = node.output
            for name, value in zip(names, values, strict=True):
                model.graph.initializer.add().CopyFrom(value)
                model.graph.initializer[-1].name = name
            inputs = [node.input[0], *names]
            node.CopyFrom(onnx.helper.make_node("QuantizeLinear", inputs, [quantized], name=node.name))


def _unmark(model: onnx.ModelProto) -> None:
    """Remove the metadata entry of dynamic quantization from a graph without any."""
    if any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node):
        return
    properties = {
        entry.key: entry.value for entry in model.metadata_props if (entry.key, entry.value) != RUNS_QUANTIZED
    }
    onnx.helper.set_model_props(model, properties)


def _multiply_instead_of_convolving(model: onnx.ModelProto) -> None:
    """Replace each convolution over many channels and two axes by an integer product of its input patches."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    for position, node in reversed(list(enumerate(nodes))):
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        # (channels out, channels in, height, width); the first convolution has one channel, depthwise ones one axis
        if weight is not None and len(weight.dims) == 4 and weight.dims[1] > 1:
            nodes[position : position + 1] = _as_product(node, onnx.numpy_helper.to_array(weight), model.graph)
            model.graph.initializer.remove(weight)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _as_product(conv: onnx.NodeProto, weight: np.ndarray, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return nodes that replace a convolution without padding, and add their constants to the graph."""
    x, _, bias = conv.input
    strides = next((list(attribute.ints) for attribute in conv.attribute if attribute.name == "strides"), [1, 1])
    height, width = weight.shape[2:]
    rows = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))  # (height * width * channels in, channels out)
    scales = np.abs(rows).max(0).clip(1e-12).astype(np.float32) / _MOST_WEIGHT
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(value, f"{conv.name}/{name}"))
        return f"{conv.name}/{name}"

    def node(operator: str, inputs: list[str], *names: str, **attributes: Any) -> list[str]:
        outputs = [f"{conv.name}/{name}" for name in names]
        nodes.append(onnx.helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs

    (channels_last,) = node("Transpose", [x], "channels_last", perm=[0, 2, 3, 1])
    quantized, scale, zero = node("DynamicQuantizeLinear", [channels_last], "quantized", "scale", "zero")
    axes, steps = constant("axes", np.array([1, 2])), constant("steps", np.array(strides))
    slices = []
    for i, j in np.ndindex(height, width):
        start = constant(f"start_{i}_{j}", np.array([i, j]))
        # end of the slice for the last position of the kernel
        end = constant(f"end_{i}_{j}", np.array([i - height + 1 or _END, j - width + 1 or _END]))
        slices += node("Slice", [quantized, start, end, axes, steps], f"seen_{i}_{j}")
    (columns,) = node("Concat", slices, "columns", axis=3)
    quantized_rows = constant("weight", np.round(rows / scales).astype(np.int8))
    (product,) = node("MatMulInteger", [columns, quantized_rows, zero], "product")
    (as_float,) = node("Cast", [product], "as_float", to=onnx.TensorProto.FLOAT)
    (scale_product,) = node("Mul", [scale, constant("scales", scales)], "both_scales")
    (scaled,) = node("Mul", [as_float, scale_product], "scaled")
    (with_bias,) = node("Add", [scaled, bias], "with_bias")
    nodes.append(onnx.helper.make_node("Transpose", [with_bias], [conv.output[0]], name=conv.name, perm=[0, 3, 1, 2]))
    return nodes


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Silence onnxruntime's advice (by the root logger) to preprocess graphs, which these do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
