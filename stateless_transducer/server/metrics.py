"""Counters of a server in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter

MEDIA_TYPE = "text/plain; version=0.0.4"


class Metrics:
    """Totals since the start of the server."""

    def __init__(self) -> None:
        self._answers: Counter[int] = Counter()
        self.audio_s: float = 0.0
        """Seconds of audio in files that were transcribed."""

    def count_answer(self, status: int) -> None:
        """Count one answer by its status."""
        self._answers[status] += 1

    def text(self, *, uploads: int, live: int, waiting_s: float) -> str:
        """All totals, and the given present values."""
        answers = [f'{{status="{status}"}} {count}' for status, count in sorted(self._answers.items())]
        tables = (
            ("answers_total", "counter", "HTTP answers by status.", answers),
            ("audio_seconds_total", "counter", "Seconds of audio in transcribed files.", [f" {self.audio_s:g}"]),
            ("uploads", "gauge", "Sound files in progress.", [f" {uploads}"]),
            ("live_sounds", "gauge", "Live sounds in progress.", [f" {live}"]),
            ("waiting_seconds", "gauge", "Seconds of audio that wait for the model.", [f" {waiting_s:g}"]),
        )
        lines = []
        for name, kind, meaning, values in tables:
            name = f"transducer_{name}"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *(name + value for value in values)]
        return "\n".join(lines) + "\n"
