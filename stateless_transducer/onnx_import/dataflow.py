"""The operations of a graph that have weights, found by the way from a tensor back to the inputs.

Names of tensors and nodes differ from exporter to exporter, and tensors of equal values share one. The flow of data is
that of the model, so weights are found by it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, numpy_helper

from stateless_transducer.wording import one_line

# values that only say how large something is, and weights of attention, which have a way of their own
_BARRIERS = ("Shape", "Size", "Softmax")
# operations that move values, and change none
_MOVES = {"Transpose", "Slice", "Concat", "Pad", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Where", "Tile"}
_NO_OPERATION = {"Identity", "Dropout"}


class GraphError(ValueError):
    """A part of the model that is not in the graph."""


class Linear(NamedTuple):
    """Linear map."""

    weight: np.ndarray
    """(out, in)."""
    bias: np.ndarray | None
    input: str


class Convolution(NamedTuple):
    """Convolution."""

    weight: np.ndarray
    bias: np.ndarray | None
    input: str
    output: str


class Norm(NamedTuple):
    """Scaling of a frame by ``exp(log_scale) / rms(x - bias)``."""

    log_scale: np.ndarray
    bias: np.ndarray
    input: str


class Interpolation(NamedTuple):
    """``before + (after - before) * scale``."""

    scale: np.ndarray
    before: str
    after: str


class WeightedMean(NamedTuple):
    """Sum of groups of frames with given weights."""

    weights: np.ndarray
    """(factor,)."""
    input: str


@dataclass(frozen=True)
class Nearest:
    """What lies directly before a tensor."""

    operations: list[Linear | Convolution]
    """Nearest operations with weights, in the order in which the graph computes them."""
    named: list[tuple[str, np.ndarray]]
    """Other constants with their names, those of the first input of an operation first."""
    attention: list[str]
    """Inputs of a softmax."""

    @property
    def constants(self) -> list[np.ndarray]:
        """Other constants."""
        return [value for _, value in self.named]


class Dataflow:
    """Graph, read from its outputs to its inputs."""

    def __init__(self, model: ModelProto) -> None:
        self.outputs = [output.name for output in model.graph.output]
        self._opsets, self._ir_version = model.opset_import, model.ir_version
        self._raw = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers: dict[str, NodeProto] = {}
        self._positions: dict[str, int] = {}
        for position, node in enumerate(model.graph.node):
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._raw[node.output[0]] = node.attribute[0].t
            else:
                self._producers |= dict.fromkeys(node.output, node)
                self._positions |= dict.fromkeys(node.output, position)
        self.constant = cache(self._constant)
        self.operation = cache(self._find_operation)

    def node(self, name: str) -> NodeProto | None:
        """Return the node that computes a tensor; None: a constant or an input."""
        return self._producers.get(self.source(name))

    def source(self, name: str) -> str:
        """Return the tensor that is passed on under another name."""
        while (node := self._producers.get(name)) is not None and self._passes_on(node):
            name = node.input[0]
        return name

    def _passes_on(self, node: NodeProto) -> bool:
        to_floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        return node.op_type in _NO_OPERATION or (node.op_type == "Cast" and node.attribute[0].i in to_floats)

    def raw(self, name: str) -> np.ndarray | None:
        """Return a constant as it is in the file; None: the tensor is computed."""
        tensor = self._raw.get(self.source(name))
        return None if tensor is None else _as_float32(numpy_helper.to_array(tensor))

    def _constant(self, name: str) -> np.ndarray | None:
        """Return the value of a tensor that depends on constants alone; None: it depends on the inputs."""
        value = self.raw(name)
        node = self.node(name)
        if value is not None or node is None or not node.input or node.op_type == "Shape":
            return value
        inputs: dict[str, np.ndarray] = {}
        for operand in filter(None, node.input):
            operand_value = self.constant(operand)
            if operand_value is None:
                return None
            inputs[operand] = operand_value
        return self._computed(self.source(name), node, inputs)

    def _computed(self, name: str, node: NodeProto, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute an output of a node from constants, with the program that runs the graph."""
        constants = [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in inputs.items()]
        output = onnx.helper.make_empty_tensor_value_info(name)
        graph = onnx.helper.make_graph([node], "constant", [], [output], constants)
        model = onnx.helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        options = onnxruntime.SessionOptions()
        # the error is raised, not logged
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            (value,) = session.run(None, {})
        # onnxruntime's errors have no common base class but this one
        except Exception as err:
            raise GraphError(f"{node.op_type} cannot compute {name} from constants: {one_line(err)}") from err
        return np.asarray(value)

    def _find_operation(self, name: str) -> Linear | Convolution | None:
        """Return the operation with weights that computes a tensor; None: another one does."""
        node = self.node(name)
        if node is None:
            return None
        if node.op_type == "Conv":
            weight = self.constant(node.input[1])
            bias = self.constant(node.input[2]) if len(node.input) > 2 else None
            return None if weight is None else Convolution(weight, bias, self.source(node.input[0]), node.output[0])
        if node.op_type == "Gemm":
            return self._gemm(node)
        for bias, product in self._operands(name, "Add"):
            value, linear = self.raw(bias), self._product(product)
            if value is not None and value.ndim == 1 and linear is not None:
                return linear._replace(bias=value)
        return self._product(name)

    def _operands(self, name: str, operator: str) -> list[tuple[str, str]]:
        """Return both orders of the operands of the operator that computes a tensor; []: another one does."""
        node = self.node(name)
        if node is None or node.op_type != operator:
            return []
        x, y = node.input
        return [(x, y), (y, x)]

    def _gemm(self, node: NodeProto) -> Linear | None:
        weight, (bias_name,) = self.constant(node.input[1]), node.input[2:] or [""]
        bias = self.constant(bias_name)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if weight is None or (bias_name and bias is None):
            return None
        return Linear(weight if transposed else weight.T, bias, self.source(node.input[0]))

    def _product(self, name: str) -> Linear | None:
        node = self.node(name)
        if node is None or node.op_type != "MatMul":
            return None
        weight = self.constant(node.input[1])
        if weight is None or weight.ndim != 2:
            return None
        return Linear(weight.T, None, self.source(node.input[0]))

    def nearest(self, name: str, *, until: str = "") -> Nearest:
        """Return what lies before a tensor, up to operations with weights, softmaxes and the tensor ``until``."""
        operations: dict[int, Linear | Convolution] = {}
        constants: dict[str, np.ndarray] = {}
        attention: list[str] = []
        seen, names = {until, ""}, [name]
        while names:
            name = self.source(names.pop())
            if name in seen:
                continue
            seen.add(name)
            operation, value, node = self.operation(name), self.raw(name), self.node(name)
            if operation is not None:
                operations[self._positions[name]] = operation
            elif value is not None:
                constants[name] = value
            elif node is not None and node.op_type == "Softmax":
                attention.append(self.source(node.input[0]))
            elif node is not None and node.op_type not in _BARRIERS:
                names.extend(reversed(node.input))
        return Nearest([operations[i] for i in sorted(operations)], list(constants.items()), attention)

    def before_moves(self, name: str) -> str:
        """Return the tensor whose values a tensor holds after they were moved: cut, padded, reshaped, repeated."""
        while (node := self.node(name)) is not None and node.op_type in _MOVES:
            candidates = node.input[1:] if node.op_type == "Where" else node.input
            moved = next(
                (candidate for candidate in candidates if candidate and self.constant(candidate) is None), None
            )
            if moved is None:
                raise GraphError(f"{name} does not depend on the inputs of the graph.")
            name = moved
        return self.source(name)

    def interpolation(self, name: str) -> Interpolation | None:
        """Return the interpolation that computes a tensor, also by ``torch.lerp``, which chooses one of two forms."""
        node = self.node(name)
        if node is not None and node.op_type == "Where" and self.constant(node.input[0]) is not None:
            name = node.input[1]
        for before, change in self._operands(name, "Add"):
            for scale, difference in self._operands(change, "Mul"):
                value, minus = self.constant(scale), self.node(difference)
                if value is None or minus is None or minus.op_type != "Sub":
                    continue
                if self.source(minus.input[1]) == self.source(before):
                    return Interpolation(value, self.source(before), self.source(minus.input[0]))
        return None

    def norm(self, name: str) -> Norm | None:
        """Return the scaling of a frame that computes a tensor."""
        for x, factor in self._operands(name, "Mul"):
            for scale, inverse_rms in self._operands(factor, "Mul"):
                value = self.constant(scale)
                if value is None or value.size != 1:
                    continue
                constants = self.nearest(inverse_rms, until=self.source(x)).constants
                biases = [constant for constant in constants if constant.ndim == 1 and constant.size > 1]
                if len(biases) == 1:
                    return Norm(np.asarray(np.log(value).reshape(())), biases[0], self.source(x))
        return None

    def weighted_mean(self, name: str) -> WeightedMean | None:
        """Return the sum of weighted frames that computes a tensor."""
        node = self.node(name)
        if node is None or node.op_type != "ReduceSum":
            return None
        for frames, weights in self._operands(node.input[0], "Mul"):
            value = self.constant(weights)
            if value is not None:
                return WeightedMean(value.ravel(), self.before_moves(frames))
        return None

    def residual(self, name: str) -> tuple[str, Linear] | None:
        """Return what a linear map was added to, and the map."""
        for before, change in self._operands(name, "Add"):
            operation = self.operation(change)
            if isinstance(operation, Linear) and operation.bias is not None:
                return self.source(before), operation
        return None

    def multiplier(self, name: str) -> np.ndarray | None:
        """Return the constant by which the values of a tensor are multiplied before anything else."""
        for product in self._producers:
            for x, factor in self._operands(product, "Mul"):
                if self.source(x) == self.source(name):
                    return self.constant(factor)
        return None


def _as_float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype.kind == "f" else value
