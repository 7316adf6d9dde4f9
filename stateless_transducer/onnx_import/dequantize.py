"""Quantized graphs as graphs in floating point, which compute with the same rounded weights.

Dynamic quantization (onnxruntime's, and that of `export.quantize`) replaces a product by integer arithmetic: quantize
the input, multiply integers, scale the result. Here each of these steps becomes its counterpart in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from stateless_transducer.onnx_import.dataflow import GraphError


def dequantize(model: ModelProto) -> dict[str, float]:
    """Replace the integer products of a graph by products in floating point, in place.

    Returns:
        Step between neighboring values of each weight that was quantized, by the weight's name; the mean of the steps
        if each channel has its own.

    Raises:
        GraphError: the graph is quantized in another way.
    """
    graph = _Quantized(model)
    for node in list(model.graph.node):
        match node.op_type:
            case "DynamicQuantizeLinear" | "QuantizeLinear":
                graph.replace(node, "Identity", node.input[:1])
            case "MatMulInteger":
                graph.multiply_in_floats(node)
            case "DequantizeLinear":
                graph.look_up_floats(node)
            case operator if operator.endswith("Integer") or operator.startswith("QLinear"):
                raise GraphError(f"operator {operator} is not supported; graphs quantized dynamically are.")
    _remove_unused(model)
    return graph.steps


def _remove_unused(model: ModelProto) -> None:
    """Remove what leads to no output: nodes that computed scales, and quantized weights."""
    needed, used = {output.name for output in model.graph.output}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            used.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(used))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


class _Quantized:
    """A graph while it is changed."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self.steps: dict[str, float] = {}

    def replace(self, node: NodeProto, operator: str, inputs: Sequence[str]) -> None:
        """Turn a node into one whose only output is the first one of the node."""
        node.CopyFrom(onnx.helper.make_node(operator, list(inputs), list(node.output[:1]), name=node.name))

    def multiply_in_floats(self, product: NodeProto) -> None:
        """Turn ``scale * cast(integer product)`` into ``product``: what was scaled is a weight in floats now."""
        cast = self._only_reader(product.output[0], "Cast")
        scaling = self._only_reader(cast.output[0], "Mul")
        scale = next((name for name in scaling.input if name != cast.output[0]), "")
        scales = self._producers[scale].input if scale in self._producers else []
        # the scale of an input that is quantized with a fixed one is a constant, too: the weight's is the second
        weight_scales = [name for name in scales if name in self._constants and name not in product.input]
        if not weight_scales:
            raise GraphError(f"the product {product.output[0]} is scaled by {scale}, not by that of a weight.")
        zero = product.input[3] if len(product.input) > 3 else ""
        weight = self._in_floats(product.input[1], weight_scales[-1], zero)
        self.replace(product, "MatMul", [product.input[0], weight])
        self.replace(scaling, "Identity", cast.output)

    def look_up_floats(self, node: NodeProto) -> None:
        """Let a table be looked up in floats, instead of the rows that were found being converted."""
        lookup = self._producers.get(node.input[0])
        zero = node.input[2] if len(node.input) > 2 else ""
        if lookup is None or lookup.op_type != "Gather":
            table = self._in_floats(node.input[0], node.input[1], zero)
            self.replace(node, "Identity", [table])
            return
        lookup.input[0] = self._in_floats(lookup.input[0], node.input[1], zero)
        self.replace(node, "Identity", lookup.output)

    def _only_reader(self, name: str, operator: str) -> NodeProto:
        """Return the only node that reads a tensor, which must be of a kind."""
        readers = [node for node in self._graph.node if name in node.input]
        if [reader.op_type for reader in readers] != [operator]:
            operators = ", ".join(reader.op_type for reader in readers) or "nothing"
            raise GraphError(
                f"{operators} reads {name}, but only {operator} does after onnxruntime's dynamic quantization."
            )
        return readers[0]

    def _in_floats(self, name: str, scale: str, zero: str) -> str:
        """Add the floats of a quantized weight to the graph, and return their name."""
        variables = [part for part in (name, scale, zero) if part and part not in self._constants]
        if variables:
            raise GraphError(f"{variables[0]}, of the quantized weight {name}, is no constant.")
        scales = numpy_helper.to_array(self._constants[scale])
        values = numpy_helper.to_array(self._constants[name]).astype(np.float32)
        zeros = numpy_helper.to_array(self._constants[zero]).astype(np.float32) if zero else 0
        floats = f"{name}_in_floats"
        if floats not in self._constants:
            tensor = numpy_helper.from_array(((values - zeros) * scales).astype(np.float32), floats)
            self._constants[floats] = tensor
            self._graph.initializer.append(tensor)
            self.steps[floats] = float(np.mean(scales))
        return floats
