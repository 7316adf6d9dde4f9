from __future__ import annotations

import pytest

from stateless_transducer.text.symbols import SymbolTable


def _read(tmp_path, text, encoding="utf-8"):
    (tmp_path / "tokens.txt").write_bytes(text.encode(encoding))
    return SymbolTable.read(tmp_path / "tokens.txt")


def test_lines_may_have_tabs_any_order_gaps_and_windows_ends(tmp_path):
    table = _read(tmp_path, "b\t4\r\n<blk> 0\r\n<unk> 2\r\n#0 9\r\n\r\n")
    assert table.symbols == {4: "b", 0: "<blk>", 2: "<unk>", 9: "#0"}


def test_line_with_an_id_alone_is_a_blank_between_words(tmp_path):
    assert _read(tmp_path, "<blk> 0\na 1\n 2\nb 3\n").decode([1, 2, 3]) == "a b"


def test_words_are_apart_where_a_piece_begins_one(tmp_path):
    table = _read(tmp_path, "<blk> 0\n\u2581he 1\nllo 2\n\u2581you 3\n")
    assert table.decode([1, 2, 3]) == "hello you" and table.decode([]) == ""
    assert not table.is_byte_level


def test_bytes_make_the_character_that_no_token_spells(tmp_path):
    lines = ["<blk> 0", "a 1", *(f"<0x{b:02X}> {2 + i}" for i, b in enumerate("魏".encode()))]
    table = _read(tmp_path, "\n".join(lines))
    assert table.decode([1, 2, 3, 4, 1]) == "a魏a"
    # while it is still being said
    assert table.decode([1, 2, 3]) == "a"


def test_byte_level_pieces_are_put_together(tmp_path):
    # what icefall writes for the bytes E4 BD A0 of 你 and E5 A5 BD of 好
    table = _read(tmp_path, "<blk> 0\n\u2581\u018b\u0163\u0145 1\n\u018c\u014b\u0163 2\n\u2581hi 3\n")
    assert table.is_byte_level
    assert table.decode([1, 2]) == "你好" and table.decode([3, 3]) == "hi hi" and table.decode([3, 1]) == "hi 你"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<blk> 0\na b 1\n", r"tokens.txt:2: must be `symbol id`, but is 'a b 1'"),
        ("<blk> 0\na one\n", r"tokens.txt:2: must be `symbol id`, but is 'a one'"),
        ("<blk> 0\na 1\nb 1\n", r"tokens.txt:3: id 1 stands for 'a' already"),
    ],
)
def test_line_that_cannot_be_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, text)


def test_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(ValueError, match="no.txt: no such file"):
        SymbolTable.read(tmp_path / "no.txt")
    with pytest.raises(ValueError, match="tokens.txt: is not UTF-8 text"):
        _read(tmp_path, "ü 1", "latin-1")
