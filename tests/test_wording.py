"""Counts in messages."""

from __future__ import annotations

from stateless_transducer.wording import counted


def test_counts_have_the_singular_and_regular_plurals():
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert counted(2, "consecutive batch") == "2 consecutive batches" and counted(3, "process") == "3 processes"
