"""``egs/yesno/ASR/make_table.py``: splits and pairs of words of recordings with pauses."""

from __future__ import annotations

import csv
import itertools
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parents[1] / "egs" / "yesno" / "ASR" / "make_table.py"
RATE = 8000


@pytest.fixture
def folder(tmp_path):
    """Eight recordings of eight bursts of 0.3 s, every 0.6 s from 0.5 s on; the second one lacks the last burst."""
    random = np.random.default_rng(0)
    for number, words in enumerate(itertools.islice(itertools.product("01", repeat=8), 8)):
        level = np.full(RATE * 6, 1e-3)
        for place in range(7 if number == 1 else 8):
            begin = int((0.5 + 0.6 * place) * RATE)
            level[begin : begin + int(0.3 * RATE)] = 0.1
        soundfile.write(tmp_path / f"{'_'.join(words)}.wav", random.normal(size=len(level)) * level, RATE)
    (tmp_path / "README.txt").touch()
    return tmp_path


def _table(folder, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["make_table.py", str(folder), str(folder / "table.tsv"), *options])
    assert runpy.run_path(str(SCRIPT))["main"]() == 0
    with (folder / "table.tsv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_first_half_is_train_and_is_cut_into_pairs_at_the_pauses(folder, monkeypatch):
    rows = _table(folder, monkeypatch)
    whole = {id_: row["split"] for id_, row in rows.items() if "-" not in id_}
    assert list(whole.values()) == ["train"] * 4 + ["test"] * 4 and list(whole) == sorted(whole)
    assert rows["0_0_0_0_0_0_1_0"]["text"] == "NO NO NO NO NO NO YES NO"
    pairs = [row for id_, row in rows.items() if id_.startswith("0_0_0_0_0_0_1_0-")]
    assert [row["text"] for row in pairs] == ["NO NO"] * 5 + ["NO YES", "YES NO"]
    # pauses are from 0.8, 1.4, ... to 1.1, 1.7, ... s
    assert [float(row["start"]) for row in pairs] == pytest.approx([0.3, *np.arange(0.95, 4.5, 0.6)], abs=0.04)
    assert [float(row["end"]) for row in pairs] == pytest.approx([*np.arange(1.55, 5, 0.6), 5.2], abs=0.04)
    assert "0_0_0_0_0_0_0_1-0" not in rows and "0_0_0_0_0_1_0_0-0" not in rows


def test_fold_holds_out_a_third_of_the_training_half(folder, monkeypatch):
    rows = _table(folder, monkeypatch, "--fold", "1")
    whole = [row["split"] for id_, row in rows.items() if "-" not in id_]
    assert whole == ["train", "dev", "train", "train"]


def test_folder_without_recordings_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_table.py", str(tmp_path), str(tmp_path / "table.tsv")])
    assert runpy.run_path(str(SCRIPT))["main"]() == 1
    assert f"{tmp_path} needs 6 files" in capsys.readouterr().err and not (tmp_path / "table.tsv").exists()
