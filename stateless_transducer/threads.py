"""Cores of this process, and the policy of waiting threads: sleep, unless the user chooses to spin.

A spinning thread occupies a core that other work could use. On an idle machine, spinning was up to 25 % faster; beside
other work, sleeping was 12 to 14 times faster (benchmarks/results/2026-11-30-threads.md).
"""

from __future__ import annotations

import os

_CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def sleep_while_waiting() -> None:
    """Have OpenMP's threads sleep while they wait, unless a variable of the environment says how they wait.

    OpenMP reads the environment once, when torch is imported: call this before.
    """
    if not any(name in os.environ for name in _CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def may_spin() -> bool:
    """Return whether the user has asked for threads that spin, with ``OMP_WAIT_POLICY=ACTIVE``."""
    return os.environ.get("OMP_WAIT_POLICY", "").strip().upper() == "ACTIVE"


def num_cores() -> int:
    """Return the number of cores that this process may use, which schedulers and containers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
