"""A folder where the AISHELL recipe runs, with this very package's commands on its PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from warm import interpreter

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "egs" / "aishell" / "ASR"
PREPARE = RECIPE / "prepare.sh"


class Folder:
    """Where commands run; with ``does_work=False``, ``transducer`` just tells what it was called with."""

    def __init__(self, path: Path, *, does_work: bool = True) -> None:
        self.path = path
        python = interpreter()
        self._put("transducer", f"exec {python} -m stateless_transducer.cli" if does_work else "echo transducer")
        self._put("python3", f"exec {python}")
        self._put("torchrun", f"exec {python} -m torch.distributed.run")
        self._put("tensorboard", f"exec {python} -m tensorboard.main")
        self.environment = {
            **os.environ,
            "PATH": f"{path / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHON_EXEC": str(python),  # of torchrun's processes
        }

    def _put(self, name: str, does: str) -> None:
        command = self.path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\n{does} "$@"\n')
        command.chmod(0o755)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=self.path, env=self.environment, capture_output=True, text=True)
