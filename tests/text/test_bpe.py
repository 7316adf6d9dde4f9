"""Pieces of words as tokens: learnt by sentencepiece, spelt without it."""

from __future__ import annotations

import io
import pickle
import random
import sys

import pytest
import sentencepiece

from stateless_transducer.text.bpe import Segmenter
from stateless_transducer.text.hotwords import spell_hotwords
from stateless_transducer.text.symbols import SymbolTable, read_vocabulary
from stateless_transducer.text.tokens import SPECIAL, TokenTable, build_token_table

SYLLABLES = ["ka", "to", "mi", "sun", "re", "lo", "ven", "ti", "a", "o"]


def _texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of made-up words, some much more often than others."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(120)]
    weights = [1 / (n + 1) for n in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=draw.randint(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return build_token_table(_texts(400), "bpe", vocab_size=90)


def test_tokens_are_special_ones_and_pieces(table):
    assert len(table) == 90 and table.symbols[:3] == SPECIAL and table.unit == "bpe"
    characters = {c for text in _texts(400) for c in text} - {" "}
    assert characters | {"▁"} <= set(table.symbols)
    assert any(len(symbol) > 3 for symbol in table.symbols[3:])


def test_text_comes_back_from_its_tokens(table):
    for text in _texts(50, seed=1):
        assert table.decode(table.encode(text)) == text
    assert table.encode("  kato   mi ") == table.encode("kato mi")
    assert table.encode("") == [] and table.join(["kato", "", "mi"]) == "kato mi"


def test_words_are_cut_as_sentencepiece_cuts_them():
    """The same scores, and the same pieces, of words seen and never seen."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_texts(400)),
        model_writer=model,
        model_type="unigram",
        vocab_size=90,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = Segmenter({theirs.id_to_piece(i): theirs.get_score(i) for i in range(3, len(theirs))})
    draw = random.Random(2)
    seen = [word for text in _texts(100, seed=0) for word in text.split()]
    unseen = ["".join(draw.choices("katomisunrelovt", k=draw.randint(1, 12))) for _ in range(500)]
    for word in (*seen, *unseen):
        assert list(ours.pieces("▁" + word)) == theirs.encode_as_pieces(word), word


def test_character_without_a_piece_of_its_own_is_spelt_by_a_longer_one():
    assert Segmenter({"▁": -1.0, "a": -1.0, "ßa": -9.0}).pieces("▁ßaß") == ("▁", "ßa", "ß")


def test_unknown_characters_stand_alone_and_are_told(table):
    assert table.unknown_units("kaßto ßé") == ["ß", "ß", "é"]
    ids = table.encode("kaßto")
    assert ids.count(table.unknown_id) == 1 and table.decode(ids).startswith("ka<unk>")
    assert table.split("<unk>")[1:2] == ["<"] and table.encode("▁ka") == table.encode("ka")


def test_ideographs_are_spelt_as_one_word_however_they_are_cut():
    table = build_token_table(["今天 天气 ok", "天气 好"], "bpe", vocab_size=14)
    assert table.encode("今天 天气") == table.encode("今天天气")
    assert table.decode(table.encode("天 气 ok ok")) == "天气ok ok"


def test_names_of_special_tokens_in_a_text_are_text():
    table = build_token_table(["a<unk>b <blk> <sos/eos>"], "bpe", vocab_size=40)
    assert table.symbols[:3] == SPECIAL and table.unknown_units("a<unk>b <blk> <sos/eos>") == []
    assert table.decode(table.encode("<blk> a")) == "<blk> a" and table.blank_id not in table.encode("<blk>")


def test_characters_that_sentencepiece_cannot_have_are_unknown():
    table = build_token_table(["ka\u2585to", "m\0i", "re\ud800"], "bpe", vocab_size=30)
    assert table.unknown_units("ka\u2585to m\0i") == ["\u2585", "\0"]
    with pytest.raises(ValueError, match="training texts are empty"):
        build_token_table(["\u2585"], "bpe")


def test_bare_marks_of_words_leave_no_blanks(table):
    ids = [table.ids["▁"], table.ids["▁"], *table.encode("kato"), table.ids["▁"]]
    assert table.decode(ids) == "kato"


def test_table_goes_to_other_processes(table):
    """As a table does whose texts have been counted already."""
    wanted = table.encode("kato mi")
    assert pickle.loads(pickle.dumps(table)).encode("kato mi") == wanted


def test_fewer_tokens_where_the_texts_offer_no_more():
    table = build_token_table(["ab ab"], "bpe", vocab_size=500)
    assert 6 <= len(table) < 20
    assert table.decode(table.encode("ab ba")) == "ab ba"


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["abc"], 6, r"`vocab_size` must be at least 7, .* 3 special tokens, but is 6"),
        (["", " "], 50, "the training texts are empty"),
    ],
)
def test_what_cannot_be_learnt_is_told(texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        build_token_table(texts, "bpe", vocab_size=vocab_size)


def test_least_number_of_tokens_can_be_learnt():
    assert build_token_table(["abc"], "bpe", vocab_size=7).unknown_units("cab") == []


def test_sentencepiece_is_needed_to_learn_and_for_nothing_else(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"pip install 'stateless-transducer\[train\]'"):
        build_token_table(["abc"], "bpe")
    assert TokenTable.from_facts(table.facts()).encode("kato mi") == table.encode("kato mi")


def test_written_table_is_read_back(table, tmp_path):
    table.write(tmp_path, corpus="mine")
    assert TokenTable.read(tmp_path) == TokenTable.read(tmp_path / "tokens.txt") == table
    assert TokenTable.from_facts(table.facts()) == table
    lines = (tmp_path / "bpe.vocab").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == list(table.symbols)
    assert all(float(line.split("\t")[1]) <= 0 for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"bpe\.vocab: must have a score for each of the tokens in tokens\.txt"),
        ("<blk>\t0\nka\tx\n", r"bpe\.vocab:2: must be `piece<tab>score`"),
        ("<blk>\tnan\n", r"bpe\.vocab:1: must be `piece<tab>score`"),
        ("<blk>\t0\n", r"bpe\.vocab: must have a score for each of the tokens in tokens\.txt"),
    ],
)
def test_scores_that_cannot_be_are_told(table, tmp_path, content, message):
    table.write(tmp_path)
    path = tmp_path / "bpe.vocab"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        TokenTable.read(tmp_path)


def test_icefalls_folder_is_read(tmp_path):
    """tokens.txt and bpe.model, as its ``train_bpe_model.py`` writes them."""
    folder = tmp_path / "lang_bpe_60"
    folder.mkdir()
    with (folder / "bpe.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_texts(400)),
            model_writer=file,
            model_type="unigram",
            vocab_size=60,
            user_defined_symbols=["<blk>", "<sos/eos>"],
            unk_id=2,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    lines = [f"{theirs.id_to_piece(i)} {i}\n" for i in range(len(theirs))]
    (folder / "tokens.txt").write_text("".join(lines) + "#0 60\n#1 61\n", encoding="utf-8")
    table = TokenTable.read(folder)
    assert len(table) == 60
    for text in _texts(30, seed=5):
        assert table.encode(text) == theirs.encode(text) and table.decode(table.encode(text)) == text
    (folder / "bpe.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"bpe\.model: cannot be read as a model of sentencepiece"):
        TokenTable.read(folder)
    with (folder / "bpe.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_texts(400)), model_writer=file, model_type="bpe", vocab_size=60, minloglevel=2
        )
    with pytest.raises(ValueError, match=r"bpe\.model: is not a unigram model"):
        TokenTable.read(folder)


@pytest.mark.parametrize(("unit", "scores"), [("bpe", ()), ("bpe", (0.0,)), ("char", (0.0,) * 4)])
def test_scores_belong_to_pieces(unit, scores):
    with pytest.raises(ValueError, match=rf"4 {unit} tokens cannot have {len(scores)} scores"):
        TokenTable((*SPECIAL, "a"), unit, scores)


def test_somebody_elses_pieces_spell_hotwords(table, tmp_path):
    """A folder with tokens.txt and bpe.vocab alone, as sherpa-onnx's models come."""
    table.write(tmp_path)
    (tmp_path / "lang.json").unlink()
    found = read_vocabulary(tmp_path / "tokens.txt", len(table))
    assert found == table
    ((tokens, score),) = spell_hotwords([("kato mi", 2.0)], found)
    assert list(tokens) == table.encode("kato mi") and score == 2.0 * len(tokens)
    with pytest.raises(ValueError, match="cannot spell `zoë`: it lacks 'z', 'ë'"):
        spell_hotwords([("zoë", 2.0)], found)


def test_pieces_that_are_bytes_are_somebody_elses(table, tmp_path):
    """They make text of ids, as before; text in pieces of bytes is not spelt."""
    bytes_too = TokenTable((*table.symbols, "<0xE4>"), "bpe", (*table.scores, 0.0))
    bytes_too.write(tmp_path)
    (tmp_path / "lang.json").unlink()
    assert isinstance(read_vocabulary(tmp_path / "tokens.txt", len(bytes_too)), SymbolTable)


@pytest.mark.parametrize(
    ("tokens", "vocab"),
    [
        ("你 90\n好 91\n", ""),
        ("", "no score\n"),
        ("", "ka\tnan\n"),
    ],
    ids=["characters beside pieces", "bad line", "no number"],
)
def test_somebody_elses_folder_still_says_text(table, tmp_path, tokens, vocab):
    """What cannot be spelt does not keep the ids from being read."""
    table.write(tmp_path)
    (tmp_path / "lang.json").unlink()
    for name, more in (("tokens.txt", tokens), ("bpe.vocab", vocab)):
        (tmp_path / name).write_text((tmp_path / name).read_text(encoding="utf-8") + more, encoding="utf-8")
    found = read_vocabulary(tmp_path / "tokens.txt", len(table) + 2 * bool(tokens))
    assert isinstance(found, SymbolTable) and found.decode(table.encode("kato mi")) == "kato mi"
    if tokens:
        # in training, they are what they were before there were pieces
        assert TokenTable.read(tmp_path).unit == "char"


def test_marks_behind_the_tokens_and_of_the_files_do_not_count(table, tmp_path):
    table.write(tmp_path)
    (tmp_path / "lang.json").unlink()
    for name, more in (("tokens.txt", "<s> 90\n#0 91\n"), ("bpe.vocab", "\n<s> 0\n")):
        content = (tmp_path / name).read_text(encoding="utf-8") + more
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read_vocabulary(tmp_path / "tokens.txt", len(table)) == table
