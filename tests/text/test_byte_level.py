from __future__ import annotations

import io

import pytest

from stateless_transducer.text.byte_level import is_byte_level, text_of_bytes, words_in_bytes
from stateless_transducer.text.tokens import SPECIAL, TokenTable, build_token_table, tidied

TEXT = "你好 hello wörld 世界"


def test_words_are_written_in_printable_bytes_and_read_back():
    words = words_in_bytes(TEXT)
    # an ideograph is a word of three bytes
    assert [len(word) for word in words] == [3, 3, 5, 6, 3, 3]
    # icefall writes 你 as E4 BD A0, the characters number 228, 189 and 160 of its alphabet
    assert words[0] == "\u018b\u0163\u0145"
    assert text_of_bytes("\u2581".join(words)) == "你 好 hello wörld 世 界"
    assert text_of_bytes(words[0][:2] + "a") == "a"
    assert is_byte_level(words) and not is_byte_level(["▁hello", "č"]) and not is_byte_level(["你"])


def test_table_of_other_characters_is_not_byte_level(tmp_path):
    with pytest.raises(ValueError, match="`unit` is \"bbpe\", but '你'"):
        TokenTable((*SPECIAL, "\u018b\u2581", "你"), "bbpe")
    TokenTable((*SPECIAL, "a"), "char").write(tmp_path)
    with pytest.raises(ValueError, match='`bpe_model` is .*bpe.vocab, but the unit of the tokens is "char"'):
        TokenTable.read(tmp_path, bpe_model=tmp_path / "bpe.vocab")


def test_bytes_learnt_from_texts_spell_other_texts(tmp_path):
    pytest.importorskip("sentencepiece")
    texts = ["今天天气很好", "hello 世界", "世界你好"] * 5
    table = build_token_table(texts, "bbpe", vocab_size=60)
    assert table.unit == "bbpe" and table.symbols[:3] == SPECIAL and len(table) <= 60
    # 佔 is in no text, but its bytes are
    for text in ("世界很好", "hello 你好", "佔"):
        assert (table.decode(table.encode(text)), table.unknown_units(text)) == (tidied(text), [])
    assert table.unknown_units("你 hellö world") == ["hellö", "world"]
    table.write(tmp_path)
    assert TokenTable.read(tmp_path) == table
    with pytest.raises(ValueError, match=r"`vocab_size` must be at least \d+.*different bytes.* but is 5"):
        build_token_table(texts, "bbpe", vocab_size=5)


def test_table_of_byte_level_pieces_spells_and_reads_any_text(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [" ".join(words_in_bytes(text)) for text in ["你好世界", "今天天气很好", "hello world", "世界你好"] * 5]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    assert pieces[:3] == list(SPECIAL)
    (tmp_path / "tokens.txt").write_text("".join(f"{piece} {i}\n" for i, piece in enumerate(pieces)), encoding="utf-8")
    scores = (f"{piece}\t{processor.get_score(i)}\n" for i, piece in enumerate(pieces))
    (tmp_path / "elsewhere.vocab").write_text("".join(scores), encoding="utf-8")
    table = TokenTable.read(tmp_path, bpe_model=tmp_path / "elsewhere.vocab")
    assert table.unit == "bbpe"
    for text in ("你好世界", "hello 世界", "今天 hello world"):
        assert table.decode(table.encode(text)) == text.replace(" 世", "世").replace("天 ", "天")
    # without scores, the table reads but cannot spell; written and read again, it has them
    reading = TokenTable.read(tmp_path)
    assert (reading.unit, reading.decode(table.encode("你好"))) == ("bbpe", "你好")
    with pytest.raises(ValueError, match="`bpe_model`"):
        reading.encode("你好")
    table.write(tmp_path / "written")
    assert TokenTable.read(tmp_path / "written") == table
