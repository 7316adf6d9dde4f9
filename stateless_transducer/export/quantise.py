"""Graphs in 8 bits: a quarter of the size, and products of integers. What it costs in accuracy must be measured.

Weights are quantised here, activations as a graph runs (onnxruntime's dynamic quantisation, as icefall does it), but:
each output channel has a scale of its own; weights keep 7 bits, since pairs of products of 8 bits overflow on
processors without VNNI; and the joiner's activations, which are those of a tanh, have a fixed scale, so that the rows
of a batch do not change one another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from stateless_transducer.export.onnx_graph import RUNS_QUANTISED
from stateless_transducer.export.onnx_model import GRAPHS, INT8_GRAPHS

_OPERATORS = {"encoder": ["MatMul"], "decoder": ["MatMul", "Gather"], "joiner": ["MatMul"]}


def quantise(folder: Path) -> None:
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
        if role != "encoder":
            model = onnx.load(str(path))
            _fix_scales(model)
            _unmark(model)
            onnx.save(model, str(path))


def _fix_scales(model: onnx.ModelProto) -> None:
    """Scale what comes from a tanh by its range, not by what it happens to be."""
    # 1/127 and 128 make of -1 and 1 the numbers 1 and 255
    values = [onnx.numpy_helper.from_array(each) for each in (np.array(1 / 127, np.float32), np.array(128, np.uint8))]
    of_tanh = {node.output[0] for node in model.graph.node if node.op_type == "Tanh"}
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear" and node.input[0] in of_tanh:
            quantised, *names = node.output
            for name, value in zip(names, values, strict=True):
                model.graph.initializer.add().CopyFrom(value)
                model.graph.initializer[-1].name = name
            inputs = [node.input[0], *names]
            node.CopyFrom(onnx.helper.make_node("QuantizeLinear", inputs, [quantised], name=node.name))


def _unmark(model: onnx.ModelProto) -> None:
    """Take away the mark of graphs that quantise as they run, from one that does not."""
    if any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node):
        return
    kept = {each.key: each.value for each in model.metadata_props if (each.key, each.value) != RUNS_QUANTISED}
    onnx.helper.set_model_props(model, kept)


@contextmanager
def _silent_logging() -> Iterator[None]:
    """Onnxruntime recommends a preparation of graphs that these do not need, by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
