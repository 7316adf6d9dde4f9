"""The largest batches that a plan may hold are foreseen."""

from __future__ import annotations

import numpy as np
import pytest

from stateless_transducer.data.plan import BatchLimits, Lengths, plan_epoch
from stateless_transducer.training.memory import worst_batches


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("seconds", [60.0, 12.0, 7.3])
def test_no_process_gets_more_than_is_tried(parts, seconds):
    """Of 60 s with a limit of 200 s, eight processes share 26: two of them get 4, which is 240 s."""
    count, frames = 400, round(seconds * 100)
    lengths = Lengths(np.full(count, seconds), np.full(count, frames), np.full(count, 30))
    limits = BatchLimits(200.0)
    plan = plan_epoch(lengths, limits, num_buckets=1, parts=parts, random=np.random.default_rng(0))
    largest = max(len(batch[part::parts]) for batch in plan for part in range(parts))
    assert worst_batches(lengths, limits, parts) == [(largest, frames, 30)]


def test_large_lattices_are_among_them():
    seconds = np.array([2.0, 2.0, 10.0])
    lengths = Lengths(seconds, (seconds * 100).astype(int), np.array([40, 2, 10]))
    found = worst_batches(lengths, BatchLimits(20.0, max_cells=4000), 1)
    # 200 frames are 49 behind the subsampling, 1000 are 249: 49 * 41 and 249 * 11 places
    assert found == [(1, 200, 40), (1, 1000, 10)]
