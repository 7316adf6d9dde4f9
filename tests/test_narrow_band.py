"""``egs/digits/ASR/narrow_band.py``: copies at 8 kHz, and a table of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

SCRIPT = Path(__file__).parents[1] / "egs" / "digits" / "ASR" / "narrow_band.py"


def _run(folder):
    arguments = [SCRIPT, folder / "manifest.tsv", folder / "narrow"]
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_copies_have_the_rate_and_the_rows_of_the_table(tmp_path):
    t = np.arange(16000) / 16000
    # of two tones, the higher one is above what 8 kHz can hold
    soundfile.write(tmp_path / "a.flac", 0.2 * np.sin(2000 * np.pi * t) + 0.2 * np.sin(12000 * np.pi * t), 16000)
    (tmp_path / "manifest.tsv").write_text("id\tpath\tspeaker\ttext\tsplit\nx1\ta.flac\tann\tONE\tdev\n")
    ran = _run(tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path}/narrow/table.tsv: 1 utterance\n")
    lines = (tmp_path / "narrow" / "table.tsv").read_text().splitlines()
    assert lines == ["id\tpath\tspeaker\ttext\tsplit", "x1\twav/x1.wav\tann\tONE\tdev"]
    wave, rate = soundfile.read(tmp_path / "narrow" / "wav" / "x1.wav")
    assert rate == 8000 and len(wave) == 8000
    # away from the edges, where the filter rings
    np.testing.assert_allclose(wave[1000:-1000], 0.2 * np.sin(2000 * np.pi * t[::2])[1000:-1000], atol=2e-3)


def test_table_without_paths_and_missing_files_are_named(tmp_path):
    (tmp_path / "manifest.tsv").write_text("id\ttext\nx1\tONE\n")
    assert (
        _run(tmp_path).stderr
        == f"narrow_band.py: error: {tmp_path}/manifest.tsv must have rows with the column `path`\n"
    )
    (tmp_path / "manifest.tsv").write_text("id\tpath\nx1\tb.wav\n")
    ran = _run(tmp_path)
    assert ran.returncode == 1 and "b.wav" in ran.stderr and "Traceback" not in ran.stderr
