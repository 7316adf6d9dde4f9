"""Provenance of a figure: command, commit, machine, date."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch


def about(device: str = "cpu", **more: object) -> dict[str, object]:
    """Return the provenance of this run."""
    commit = "unknown"
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    machine = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit or "unknown",
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else machine,
        "torch": torch.__version__,
        **more,
    }


def print_about(facts: dict[str, object]) -> None:
    """Print the provenance as a line of Markdown above a table."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n", flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
