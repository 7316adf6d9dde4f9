"""Graphs of other exporters: errors that name what is missing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info

from stateless_transducer.onnx_import.dataflow import Dataflow, GraphError
from stateless_transducer.onnx_import.dequantize import dequantize
from stateless_transducer.onnx_import.zipformer_weights import read_joiner


def _model(nodes, **constants):
    """A graph from x to y."""
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x, y = (make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    return make_model(make_graph(nodes, "graph", [x], [y], tensors), opset_imports=[onnx.helper.make_opsetid("", 17)])


QUANTIZE = make_node("DynamicQuantizeLinear", ["x"], ["q", "scale_x", "zero_x"])
PRODUCT = make_node("MatMulInteger", ["q", "w", "zero_x", "zero"], ["p"])
CAST = make_node("Cast", ["p"], ["c"], to=TensorProto.FLOAT)
SCALES = make_node("Mul", ["scale_x", "scale"], ["s"])
SCALING = make_node("Mul", ["c", "s"], ["y"])
WEIGHT = {"w": np.ones((3, 2), np.int8), "scale": np.full((), 0.5, np.float32), "zero": np.zeros((), np.int8)}


def test_dynamic_quantization_is_undone():
    model = _model([QUANTIZE, PRODUCT, CAST, SCALES, SCALING], **WEIGHT)
    assert list(dequantize(model).values()) == [0.5]
    np.testing.assert_array_equal(Dataflow(model).operation("y").weight, np.full((2, 3), 0.5))


@pytest.mark.parametrize(
    ("nodes", "names", "message"),
    [
        ([QUANTIZE, PRODUCT], WEIGHT, "nothing reads p, but only Cast"),
        ([QUANTIZE, PRODUCT, CAST], WEIGHT, "nothing reads c, but only Mul"),
        ([QUANTIZE, PRODUCT, CAST, make_node("Neg", ["c"], ["y"])], WEIGHT, "Neg reads c, but only Mul"),
        ([QUANTIZE, PRODUCT, CAST, make_node("Mul", ["c", "x"], ["y"])], WEIGHT, "p is scaled by x"),
        ([QUANTIZE, PRODUCT, CAST, make_node("Mul", ["c", "scale"], ["y"])], WEIGHT, "p is scaled by scale"),
        ([QUANTIZE, PRODUCT, CAST, SCALES, SCALING], ("w", "scale"), "zero, of the quantized weight w, is no constant"),
    ],
)
def test_other_quantization_is_named(nodes, names, message):
    with pytest.raises(GraphError, match=message):
        dequantize(_model(nodes, **{name: WEIGHT[name] for name in names}))


def test_what_no_graph_of_a_zipformer_has_is_named():
    weight = np.ones((3, 2), np.float32)
    flow = Dataflow(_model([make_node("Gemm", ["x", "w"], ["y"])], w=weight))
    assert flow.operation("y").bias is None
    with pytest.raises(GraphError, match="y must come from a linear map"):
        read_joiner(flow)
    flow = Dataflow(_model([make_node("Concat", ["w", "w"], ["y"], axis=0)], w=weight))
    with pytest.raises(GraphError, match="y does not depend on the inputs"):
        flow.before_moves("y")


def test_constants_are_computed_as_the_graph_does():
    pads = np.array([-1, 0, 1, 0])
    flow = Dataflow(_model([make_node("Pad", ["w", "pads"], ["y"])], w=WEIGHT["w"].astype(np.float32), pads=pads))
    np.testing.assert_array_equal(flow.constant("y"), [[1, 1], [1, 1], [0, 0]])
    flow = Dataflow(_model([make_node("Reshape", ["w", "pads"], ["y"])], w=WEIGHT["w"], pads=pads))
    with pytest.raises(GraphError, match="Reshape cannot compute y from constants: .*") as caught:
        flow.constant("y")
    assert "\n" not in str(caught.value)
