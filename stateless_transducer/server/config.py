"""What the user chooses about the server. Free of NumPy and torch: ``--help`` need not load them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Interval, Unit
from tyro.conf import arg

from stateless_transducer.options import check_bounds


@dataclass(frozen=True)
class BatchConfig:
    """Batching of requests."""

    batch_seconds: Annotated[float, Gt(0), Unit("s"), arg(name="max-duration", aliases=("--batch-seconds",))] = 100.0
    """Seconds of audio per batch; more needs more memory."""
    max_wait_ms: Annotated[float, Interval(ge=0, le=1000), Unit("ms")] = 5.0
    """Milliseconds that sound waits for other requests when the model is idle."""

    def __post_init__(self) -> None:
        check_bounds(self)
