"""Estimates of weights that an exporter folded into others, so that the graph holds a function of them alone.

Letters: H heads, R position query size, P position features, C channels, K kernel, T frames of a chunk in a stack,
L frames before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from stateless_transducer.model.zipformer import offset_features
from stateless_transducer.onnx_import.zipformer_weights import EdgeSums, FoldedPositions

_POSITION_DIMS = (24, 32, 48, 64, 96, 128, 192)
"""Numbers of position features to try; 48 is icefall's default."""
_PRIOR_SIZES = np.geomspace(0.01, 1, 41)
"""Sizes to try for the weights before the table is seen; trained ones have 0.1 to 0.3."""
_FLOAT_NOISE = 1e-6
"""Rounding of a table in float32, relative to its size."""
_EDGE_POWER = 3.0
"""Power by which the share of an edge falls with the distance from it."""


@dataclass(frozen=True)
class _Fit:
    weight: np.ndarray
    log_evidence: float


def estimate_positions(tables: Mapping[str, tuple[FoldedPositions, int]]) -> dict[str, np.ndarray]:
    """Return weights (H * R, P) whose products with the position features are the given tables, of T frames each.

    A table has fewer offsets than a weight has columns, and neighboring offsets have similar features. Bayesian linear
    regression decides what the table does not: the weights are normal, with the size that makes the table most likely,
    and the errors are those of rounding. All tables have the same P.
    """
    fits = {dim: {name: _fit(table, T, dim) for name, (table, T) in tables.items()} for dim in _POSITION_DIMS}
    best = max(fits, key=lambda dim: sum(fit.log_evidence for fit in fits[dim].values()))
    return {name: fit.weight for name, fit in fits[best].items()}


def _fit(positions: FoldedPositions, T: int, dim: int) -> _Fit:
    table = positions.table.astype(np.float64)
    H, R, num_offsets = table.shape
    # its last offset is T-1
    features = offset_features(T, num_offsets - T + 1, dim, torch.zeros((), dtype=torch.float64)).numpy()
    rows = table.reshape(H * R, num_offsets)
    rms = np.sqrt((rows**2).mean())
    noise = _FLOAT_NOISE * rms if positions.step is None else positions.step / np.sqrt(12)
    u, s, vt = np.linalg.svd(features, full_matrices=False)
    projected = rows @ u  # (H * R, rank)
    evidence = [_log_evidence(projected, s, size, noise) for size in _PRIOR_SIZES]
    size = _PRIOR_SIZES[int(np.argmax(evidence))]
    weight = projected * (size**2 * s / (size**2 * s**2 + noise**2)) @ vt
    outside = ((rows**2).sum() - (projected**2).sum()) / noise**2
    num_outside = H * R * (num_offsets - len(s))
    log_outside = -0.5 * (outside + num_outside * np.log(noise**2))
    return _Fit(weight.astype(np.float32), max(evidence) + log_outside)


def _log_evidence(projected: np.ndarray, s: np.ndarray, size: float, noise: float) -> float:
    variance = size**2 * s**2 + noise**2
    return float(-0.5 * (np.log(variance) + projected**2 / variance).sum())


def split_edges(edges: EdgeSums) -> np.ndarray:
    """Return scales (2, C, K) for the left and the right edge of a chunk whose sums are the given ones.

    Each edge gets the larger share of the frames near it. Frames that lie in no chunk of this length get 0.
    """
    sums, K = edges.sums, edges.kernel
    C, T = sums.shape
    i = np.arange(T)
    right_share = (i + 1.0) ** _EDGE_POWER / ((i + 1.0) ** _EDGE_POWER + (T - i) ** _EDGE_POWER)
    # a frame that is further than the kernel from an edge belongs to the other one
    right_share = np.where(i >= K, 1.0, np.where(i < T - K, 0.0, right_share))
    scales = np.zeros((2, C, K), np.float32)
    near_left, near_right = i[:K], i[max(T - K, 0) :]
    scales[0][:, near_left] = (sums * (1 - right_share))[:, near_left]
    scales[1][:, near_right - (T - K)] = (sums * right_share)[:, near_right]
    return scales
