from __future__ import annotations

import numpy as np
import pytest
import torch

from stateless_transducer.model.zipformer import offset_features
from stateless_transducer.onnx_import.estimates import estimate_positions, split_edges
from stateless_transducer.onnx_import.zipformer_weights import EdgeSums, FoldedPositions

H, R, P = 4, 4, 48


@pytest.mark.parametrize("is_rounded", [False, True], ids=["fp32", "int8"])
def test_estimated_positions_give_the_table(is_rounded):
    generator = np.random.default_rng(3)
    tables, truths = {}, {}
    # frames of a chunk and before it, in stacks at 50 and at 12.5 per second
    for name, T, L in (("a", 16, 64), ("b", 4, 16)):
        truths[name] = 0.15 * generator.standard_normal((H * R, P))
        features = offset_features(T, T + L, P, torch.zeros((), dtype=torch.float64)).numpy()
        table = (truths[name] @ features.T).reshape(H, R, -1)
        step = np.abs(table).max() / 127
        rounded = np.round(table / step) * step if is_rounded else table.astype(np.float32)
        tables[name] = FoldedPositions(rounded, step if is_rounded else None), T
    estimates = estimate_positions(tables)
    for name, (positions, T) in tables.items():
        # the number of features is found, too
        assert estimates[name].shape == (H * R, P)
        num_offsets = positions.table.shape[2]
        features = offset_features(T, num_offsets - T + 1, P, torch.zeros((), dtype=torch.float64)).numpy()
        error = estimates[name] @ features.T - truths[name] @ features.T
        size = np.sqrt(np.square(positions.table).mean())
        # less than the error of rounding, 1 / sqrt(12) of a step
        limit = 0.3 * positions.step if positions.step is not None else 1e-5 * size
        assert np.sqrt(np.square(error).mean()) < limit
        # far smaller than those of least squares, which are useless for other chunks
        assert np.abs(estimates[name]).max() < 1


@pytest.mark.parametrize(("T", "kernel"), [(4, 15), (16, 31), (8, 8), (16, 7), (16, 11)])
def test_split_edges_have_the_given_sum_and_favor_the_nearer_edge(T, kernel):
    sums = np.random.default_rng(4).standard_normal((3, T)).astype(np.float32)
    if T >= 2 * kernel:
        # frames that are near neither edge
        sums[:, kernel : T - kernel] = 0
    left, right = split_edges(EdgeSums(sums, kernel))
    whole = np.zeros((2, 3, T), np.float32)
    size = min(T, kernel)
    whole[0, :, :size], whole[1, :, T - size :] = left[:, :size], right[:, kernel - size :]
    np.testing.assert_allclose(whole.sum(0), sums, atol=1e-6)
    assert (np.abs(whole[0, :, 0]) > np.abs(whole[1, :, 0])).all()
    assert (np.abs(whole[1, :, -1]) > np.abs(whole[0, :, -1])).all()
