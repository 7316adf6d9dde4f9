from __future__ import annotations

import pytest

from stateless_transducer.text.symbols import read_vocabulary
from stateless_transducer.text.tokens import SPECIAL, TokenTable, build_token_table, lang_corpus, write_char_lang


def test_char_lang_equals_icefalls(golden, tmp_path):
    theirs = golden / "lang_char"
    written = write_char_lang(tmp_path, (theirs / "text").read_text(encoding="utf-8").splitlines())
    for name in ("text", "words.txt", "tokens.txt", "lexicon.txt", "lexicon_disambig.txt"):
        assert (tmp_path / name).read_bytes() == (theirs / name).read_bytes(), name
    assert TokenTable.read(theirs) == written


def test_characters_drop_white_space_of_a_cut_transcript():
    table = build_token_table(["今天 天气"], "char")
    assert table.symbols == (*SPECIAL, "今", "天", "气")
    assert table.encode("天气 今天") == [4, 5, 3, 4]
    assert table.decode([4, 5]) == "天气"


def test_characters_keep_blanks_between_alphabetic_words():
    table = build_token_table(["turn on", "打开 tv 机"], "char", keep_spaces=True)
    assert table.decode(table.encode("no  turn ")) == "no turn"
    # not beside an ideograph
    assert table.decode(table.encode("打开 tv 机")) == "打开tv机"


def test_words_are_tokens():
    table = build_token_table(["four nine four"], "word")
    assert table.symbols == (*SPECIAL, "four", "nine")
    assert table.decode(table.encode("nine four")) == "nine four"


@pytest.mark.parametrize("unit", ["char", "word"])
def test_unknown_units_become_the_unknown_token_and_are_listed(unit):
    table = build_token_table(["a b"], unit)
    assert table.encode("a c b") == [3, table.unknown_id, 4]
    assert table.unknown_units("a c b") == ["c"]


@pytest.mark.parametrize("unit", ["char", "word"])
def test_written_table_is_read_back(unit, tmp_path):
    table = build_token_table(["a #1 b"], unit, keep_spaces=True)
    table.write(tmp_path)
    assert TokenTable.read(tmp_path) == table


def test_token_file_itself_is_read(tmp_path):
    table = build_token_table(["a b"], "word")
    table.write(tmp_path)
    assert TokenTable.read(tmp_path / "tokens.txt") == table


def test_characters_of_others_are_read_as_their_pieces_are(tmp_path):
    """As sherpa-onnx reads them: a mark before the text, an id alone for a blank, empty lines."""
    path = tmp_path / "tokens.txt"
    path.write_bytes("\ufeff<blk> 0\r\n<unk> 1\r\na 2\r\n 3\r\nb 4\r\n\r\n".encode())
    table = TokenTable.read(path)
    assert table == TokenTable(("<blk>", "<unk>", "a", "\u2581", "b")) == read_vocabulary(path, 5)
    assert table.decode(table.encode("a b")) == "a b"


@pytest.mark.parametrize("content", ["{}", "[]", "unit", '"char"'])
def test_settings_without_the_unit_are_explained(tmp_path, content):
    build_token_table(["a"], "char").write(tmp_path)
    (tmp_path / "lang.json").write_text(content)
    with pytest.raises(
        ValueError, match=r'lang.json: must be {"unit": "char"}, or "word", "bpe" or "bbpe". Correct it, or remove'
    ):
        TokenTable.read(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("<blk> 0\n<unk> 1\na\n", r"tokens.txt:3: must be `symbol id`, but is 'a'"),
        ("<blk> 0\n<unk> 1\na 1\n", r"tokens.txt:3: id 1 stands for '<unk>' already"),
        ("<blk> 0\n<unk> 1\na 3\n", r"ids must run from 0 without a gap, but 2 is missing"),
        ("<blk> 0\n<unk> 1\na 2\na 3\n", r"holds 'a' twice"),
        ("a 0\n<unk> 1\n", r"lacks '<blk>'"),
    ],
)
def test_bad_token_file_is_explained(tmp_path, lines, message):
    (tmp_path / "tokens.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        TokenTable.read(tmp_path)


def test_missing_token_file_is_explained(tmp_path):
    with pytest.raises(ValueError, match="holds no tokens.txt; make it with `transducer prepare`"):
        TokenTable.read(tmp_path)


@pytest.mark.parametrize(
    ("table", "texts", "joined"),
    [
        (build_token_table(["今天"], "char"), ["今", "", "天"], "今天"),
        (build_token_table(["a b"], "char", keep_spaces=True), ["a b", "", "b"], "a b b"),
        (build_token_table(["今 a b"], "char", keep_spaces=True), ["今", "a", "今"], "今a今"),
        (build_token_table(["今 天"], "word"), ["今", "天"], "今 天"),
    ],
)
def test_texts_are_joined_as_words_are(table, texts, joined):
    assert table.join(texts) == joined


@pytest.mark.parametrize("content", ["", "[]", "{}", "char"])
def test_folder_without_a_record_of_its_corpus_has_none(tmp_path, content):
    assert lang_corpus(tmp_path) is None
    build_token_table(["a"], "char").write(tmp_path, corpus="digits")
    assert lang_corpus(tmp_path) == "digits"
    (tmp_path / "lang.json").write_text(content)
    assert lang_corpus(tmp_path) is None
