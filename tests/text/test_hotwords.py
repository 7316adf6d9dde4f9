from __future__ import annotations

import pytest

from stateless_transducer.text.hotwords import read_hotwords, spell_hotwords
from stateless_transducer.text.tokens import build_token_table

TABLE = build_token_table(["今天天气很好"], "char")


def test_file_is_read(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("天气\n\n很好 :1.5\n", encoding="utf-8")
    ids = TABLE.ids
    assert read_hotwords(path, TABLE, 2.0) == [((ids["天"], ids["气"]), 4.0), ((ids["很"], ids["好"]), 3.0)]


def test_file_of_another_system_is_read(tmp_path):
    """Windows puts a mark before the text; an accent may be a character of its own."""
    table, path = build_token_table(["caf\u00e9"], "char"), tmp_path / "words.txt"
    path.write_bytes("\ufeffcafe\u0301\r\ncaf\u00e9\r\n".encode())
    first, second = read_hotwords(path, table, 1.0)
    assert first == second and first[0] == tuple(table.encode("caf\u00e9"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("天气\n很好 :nan\n", r"words.txt:2: `nan` after the colon is not a finite number"),
        ("天气 :-inf\n", r"words.txt:1: `-inf` after the colon is not a finite number"),
        ("天气 :many\n", r"words.txt:1: `many` after the colon is not a number"),
        ("\n\n", "words.txt: holds no phrase"),
        ("天气\n雷雨\n", r"cannot spell `雷雨`: it lacks '雷', '雨'"),
    ],
)
def test_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "words.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_hotwords(path, TABLE, 2.0)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.txt"):
        read_hotwords(tmp_path / "none.txt", TABLE, 2.0)


def test_words_are_spelt_by_the_unit_of_the_table():
    table = build_token_table(["call the office now"], "word")
    (phrase,) = spell_hotwords([("the office", 1.0)], table)
    assert phrase == ((table.ids["the"], table.ids["office"]), 2.0)
