"""``egs/finetune/ASR/pinyin_units.py``: a table in the tokens of a model, with held-out words."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

from stateless_transducer.text.tokens import build_token_table

SCRIPT = Path(__file__).parents[1] / "egs" / "finetune" / "ASR" / "pinyin_units.py"


def test_table_is_in_the_tokens_of_the_model_and_holds_out_words_that_no_other_row_has(tmp_path, monkeypatch, capsys):
    build_token_table(["y ī á w ǒ"], "word").write(tmp_path / "model")
    # the first is repeated; the second is the first one to hold out, the last has a unit that the model lacks
    words = [
        ("yi1 a2", "train"),
        ("yi1", "train"),
        ("wo3", "train"),
        ("yi1 a2", "dev"),
        ("gone", "dev"),
        ("yi4", "train"),
    ]
    rows = [{"path": f"{n}.wav", "pinyin": pinyin, "split": split} for n, (pinyin, split) in enumerate(words)]
    for row in rows:
        if row["pinyin"] != "gone":
            (tmp_path / row["path"]).touch()
    with (tmp_path / "manifest.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "split", "pinyin"], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    arguments = [tmp_path / "manifest.tsv", tmp_path / "model" / "tokens.txt", tmp_path / "units"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert "1 without a sound file" in out and "yi4 (ì)" in out
    with (tmp_path / "units" / "table.tsv").open(encoding="utf-8", newline="") as file:
        table = [(row["text"], row["split"]) for row in csv.DictReader(file, delimiter="\t")]
    assert table == [("y ī á", "train"), ("y ī", "dev"), ("w ǒ", "train"), ("y ī á", "test")]
    assert (tmp_path / "units" / "lang" / "tokens.txt").read_bytes() == arguments[1].read_bytes()
