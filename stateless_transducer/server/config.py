"""What the user chooses about the server. Free of NumPy and torch: ``--help`` need not load them."""

from __future__ import annotations

from dataclasses import dataclass

from stateless_transducer.recognition.config import check_batch_seconds


@dataclass(frozen=True)
class BatchConfig:
    """How those who use a server at the same time share the model."""

    batch_seconds: float = 100.0
    """Seconds of audio worked on at once; more needs more memory."""
    max_wait_ms: float = 5.0
    """Milliseconds that sound waits for other people's when the model has nothing to do."""

    def __post_init__(self) -> None:
        check_batch_seconds(self.batch_seconds)
        if not 0 <= self.max_wait_ms <= 1000:
            raise ValueError(f"`--max-wait-ms` must be in 0..1000, but is {self.max_wait_ms:g}.")
