from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from stateless_transducer.export.onnx_model import OnnxTransducer
from stateless_transducer.export.quantize import _multiply_instead_of_convolving


@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 8), (3, 3), (40, 11)])
@pytest.mark.parametrize("stride", [1, 2])
def test_product_is_the_convolution_to_8_bits(height, width, stride):
    rng = np.random.default_rng(height)
    weight = (
        rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
        * np.logspace(-2, 1, 6, dtype=np.float32)[:, None, None, None]
    )
    weight[5] = 0
    bias = rng.standard_normal(6).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", strides=[stride, stride])],
        "conv",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 5, "T", "F"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 6, "T'", "F'"])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((2, 5, height, width)).astype(np.float32).clip(0)
    exact = _run(model, x)
    _multiply_instead_of_convolving(model)
    onnx.checker.check_model(model, full_check=True)
    assert "Conv" not in {node.op_type for node in model.graph.node}
    found = _run(model, x)
    assert found.shape == exact.shape
    # errors of half a step of 63, and of 255, in 45 products each
    largest = np.abs(weight).max((1, 2, 3)) * x.max()
    bound = 45 * largest * (0.5 / 63 + 0.5 / 255)
    assert (np.abs(found - exact).max((0, 2, 3)) <= bound + 1e-6).all()
    assert np.abs(found - exact).max() > 0


def _run(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def test_nothing_of_the_encoder_is_left_in_32_bits_that_costs_time(talker):
    graph = onnx.load(talker / "onnx" / "encoder.int8.onnx").graph
    weights = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            # the first one has a single channel, the depthwise ones have an axis less
            assert weights[node.input[1]].dims[1] == 1
        assert node.op_type != "MatMul" or not set(node.input) & weights.keys()


def test_encoder_is_near_that_of_32_bits(talker):
    exact, int8 = (OnnxTransducer.open(talker / "onnx", precision=precision) for precision in ("fp32", "int8"))
    features, lens = np.random.default_rng(0).standard_normal((2, 203, 80)).astype(np.float32), np.array([203, 90])
    (wanted, wanted_lens), (found, found_lens) = exact.encode(features, lens), int8.encode(features, lens)
    assert found_lens.tolist() == wanted_lens.tolist()
    for i, count in enumerate(wanted_lens):
        error = np.abs(found[i, :count] - wanted[i, :count]).mean() / np.abs(wanted[i, :count]).mean()
        assert 0 < error < 0.1
