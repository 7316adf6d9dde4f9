"""Recipes that are told to stop while they train: training saves and ends well, and nothing behind it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

EGS = Path(__file__).parents[1] / "egs"
# what each recipe would make first, and takes as it is
THERE = (
    "joined_noisy/table.tsv",
    "joined_clean/table.tsv",
    "table.tsv",
    "noise_8khz/x.wav",
    "travel/table.tsv",
    "corpus/model.pt",
    "corpus/manifest.tsv",
    "start.pt",
    "mandarin.pt",
    "narrow/table.tsv",
    "joined/table.tsv",
)
TRANSDUCER = """#!/usr/bin/env bash
[ "$1" = train ] && trap 'exit 0' INT
echo "$1" >> {log}
[ "$1" = train ] || exit 0
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(
    "command_line",
    [
        *(f"{recipe}/ASR/run.sh corpus" for recipe in ("digits", "hsk", "so762", "adaptation", "yesno")),
        "digits/ASR/finetune.sh corpus ann",
        "digits/ASR/english.sh corpus",
    ],
)
def test_nothing_begins_behind_a_training_that_was_told_to_stop(command_line, tmp_path):
    for name in THERE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    log = tmp_path / "log"
    script, *arguments = command_line.split()
    command = tmp_path / "bin" / "transducer"
    command.parent.mkdir()
    command.write_text(TRANSDUCER.format(log=log))
    command.chmod(0o755)
    process = subprocess.Popen(
        [str(EGS / script), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 60
        while "train\n" not in (log.read_text() if log.exists() else ""):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        # as Ctrl-C does: the recipe and what it runs are both told
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert log.read_text().splitlines()[-1] == "train"
