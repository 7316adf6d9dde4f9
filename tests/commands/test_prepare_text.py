"""``transducer prepare text``."""

from __future__ import annotations

import pytest

from stateless_transducer.cli import main
from stateless_transducer.text.tokens import build_token_table

CHINESE, ENGLISH = ["今天 天气 很好", "你好 吗"], ["the cat sat", "on a mat"]


@pytest.mark.parametrize(
    ("texts", "unit", "wanted"),
    [
        (CHINESE, "char", "今 天 天 气 很 好\n你 好 吗\n"),
        (CHINESE, "word", "今天 天气 很好\n你好 吗\n"),
        (ENGLISH, "char", "t h e ▁ c a t ▁ s a t\no n ▁ a ▁ m a t\n"),
    ],
)
def test_texts_are_written_in_tokens(tmp_path, capsys, texts, unit, wanted):
    table = build_token_table(texts, unit, keep_spaces=unit == "char")
    table.write(tmp_path / "lang")
    # as Windows writes it, with an empty line between
    (tmp_path / "a.txt").write_bytes("\ufeff{}\r\n\r\n{}".format(*texts).encode())
    flags = ["prepare", "text", str(tmp_path / "a.txt"), "--lang-dir", str(tmp_path / "lang")]
    assert main(flags) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (wanted, "")
    assert main([*flags, "--output", str(tmp_path / "out.txt")]) == 0
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == wanted
    assert f"out.txt: 2 lines, {len(wanted.split())} tokens" in capsys.readouterr().out
    assert all(token in table.ids for token in wanted.split())


def test_pieces_of_words_are_those_that_training_learns(tmp_path, capsys):
    table = build_token_table(ENGLISH, "bpe", vocab_size=18)
    table.write(tmp_path / "lang")
    (tmp_path / "a.txt").write_text("the mat\n")
    assert main(["prepare", "text", str(tmp_path / "a.txt"), "--lang-dir", str(tmp_path / "lang")]) == 0
    assert [table.ids[piece] for piece in capsys.readouterr().out.split()] == table.encode("the mat")


def test_what_cannot_be_written_is_told(tmp_path, capsys):
    build_token_table(CHINESE, "char").write(tmp_path / "lang")
    text = tmp_path / "a.txt"
    text.write_text("今天下雨\n雨\n", encoding="utf-8")
    table = tmp_path / "mine.TSV"
    table.write_text("path\ttext\na.wav\t今天\n", encoding="utf-8")
    flags = ["--lang-dir", str(tmp_path / "lang")]
    assert main(["prepare", "text", str(text), *flags]) == 0
    assert f"3 of 5 units are not tokens of {tmp_path}/lang: 雨 下" in capsys.readouterr().err
    for given, said in (
        ([str(text), "--output", str(text)], f"`--output` {text} is one of the texts"),
        ([str(tmp_path / "no.txt")], "no.txt: no such file."),
        ([str(text), str(table)], f"{table} is a table, not a text"),
    ):
        assert main(["prepare", "text", *given, *flags]) == 1
        assert said in capsys.readouterr().err
    text.write_bytes("今".encode("gbk"))
    assert main(["prepare", "text", str(text), *flags, "--output", str(tmp_path / "out.txt")]) == 1
    assert "a.txt is not UTF-8" in capsys.readouterr().err and not (tmp_path / "out.txt").exists()
