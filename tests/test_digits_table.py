"""``egs/digits/ASR/leave_one_out_table.py``: each speaker, mean, median and worst."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "egs" / "digits" / "ASR" / "leave_one_out_table.py"
RATES = {"ann": (4, 3), "bob": (12, 10.5), "cai": (5, 6)}


def _run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["leave_one_out_table.py", *map(str, arguments)])
    return runpy.run_path(str(SCRIPT))["main"]()


def test_table_has_each_speaker_and_the_mean_median_and_worst(tmp_path, monkeypatch, capsys):
    for speaker, rates in RATES.items():
        for method, rate in zip(("greedy_search", "modified_beam_search"), rates, strict=True):
            folder = tmp_path / speaker / "exp" / "log" / method / "wer"
            folder.mkdir(parents=True)
            interval = {"confidence": 0.95, "low": rate - 1, "high": rate + 1}
            figures = {"error_rate": rate, "confidence_interval": interval, "reference_units": 2000}
            (folder / "result-dev-epoch-1.json").write_text(json.dumps(figures))
            live = {**figures, "error_rate": rate + 1}
            (folder / "result-dev-epoch-1-streaming-320.json").write_text(json.dumps(live))
    assert _run(monkeypatch, *(tmp_path / speaker for speaker in RATES)) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2] == ["ann", "4.00 (3.00..5.00)", "3.00 (2.00..4.00)", "2000"]
    assert [row[:3] for row in rows[5:]] == [
        ["mean", "7.00", "6.50"],
        ["median", "5.00", "6.00"],
        ["worst", "12.00", "10.50"],
    ]
    assert _run(monkeypatch, "--streaming", *(tmp_path / speaker for speaker in RATES)) == 0
    assert "| mean | 8.00 | 7.50 | |" in capsys.readouterr().out


def test_speaker_without_a_result_is_named(tmp_path, monkeypatch, capsys):
    assert _run(monkeypatch, tmp_path / "dan") == 1
    assert f"{tmp_path / 'dan'} has no result of greedy_search" in capsys.readouterr().err
