"""``transducer prepare ngram``, as far as a decoder that uses it."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from stateless_transducer.cli import main
from stateless_transducer.text.ngram import read_arpa
from stateless_transducer.text.tokens import build_token_table

CHINESE, ENGLISH = ["今天 天气 很好", "你好 吗", "今天 好 吗"], ["the cat sat", "on a mat"]


@pytest.fixture
def lang(tmp_path):
    build_token_table(CHINESE, "char").write(tmp_path / "lang")
    return tmp_path / "lang"


def _ngram(lang, *arguments):
    return main(["prepare", "ngram", *map(str, arguments), "--lang-dir", str(lang)])


def test_model_of_a_text_is_written_and_foresees_it(tmp_path, lang, capsys):
    table = build_token_table(CHINESE, "char")
    (tmp_path / "a.txt").write_text("\n".join(CHINESE), encoding="utf-8")
    (tmp_path / "b.txt").write_text("天今 吗很\n", encoding="utf-8")
    output = tmp_path / "lm" / "lm.arpa.gz"
    perplexities = []
    for held_out in ("a.txt", "b.txt"):
        flags = ["--output", output, "--order", "3", "--held-out", tmp_path / held_out]
        assert _ngram(lang, tmp_path / "a.txt", *flags) == 0
        printed = capsys.readouterr().out
        assert f"{output}: 10 1-grams, 12 2-grams, 11 3-grams of 3 sentences, 13 tokens" in printed
        perplexities.append(float(re.search(rf"{held_out}: perplexity (\S+) per token", printed)[1]))
    assert perplexities[0] < 3 < perplexities[1]
    ngrams = read_arpa(output, table)
    assert ngrams.order == 3
    today = ngrams.advance(ngrams.start, table.ids["今"])
    assert ngrams.row(today).argmax() == table.ids["天"]


@pytest.mark.parametrize(("texts", "unit"), [(ENGLISH, "char"), (ENGLISH, "word"), (ENGLISH, "bpe")])
def test_tokens_are_those_that_training_learns(tmp_path, texts, unit):
    table = build_token_table(texts, unit, keep_spaces=unit == "char", vocab_size=18 if unit == "bpe" else None)
    table.write(tmp_path / "lang")
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert _ngram(tmp_path / "lang", tmp_path / "a.txt", "--output", tmp_path / "lm.arpa", "--order", "2") == 0
    ngrams = read_arpa(tmp_path / "lm.arpa", table)
    context = ngrams.start
    for token in table.encode("the cat"):
        # each is likelier than what is nowhere behind it
        row = ngrams.row(context)
        assert row[token] > row[table.unknown_id]
        context = ngrams.advance(context, token)


def test_manifests_and_packed_texts_are_the_same(tmp_path, lang):
    plain, packed, manifest = tmp_path / "a.txt", tmp_path / "a.txt.gz", tmp_path / "supervisions.jsonl.gz"
    text = "\ufeff" + "\r\n\r\n".join(CHINESE)
    plain.write_bytes(text.encode())
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    rows = [json.dumps({"id": f"{n}", "text": text}) for n, text in enumerate([*CHINESE, ""])]
    manifest.write_bytes(gzip.compress("\n".join(rows).encode()))
    found = []
    for path in (plain, packed, manifest):
        assert _ngram(lang, path, "--output", tmp_path / "lm.arpa") == 0
        found.append((tmp_path / "lm.arpa").read_text(encoding="utf-8"))
    assert found[0] == found[1] == found[2]


def test_unknown_characters_are_told(tmp_path, lang, capsys):
    (tmp_path / "a.txt").write_text("今天下雨\n", encoding="utf-8")
    assert _ngram(lang, tmp_path / "a.txt", "--output", tmp_path / "lm.arpa") == 0
    assert f"2 of 4 units are not tokens of {lang}: 下 雨" in capsys.readouterr().err
    assert "<unk>" in (tmp_path / "lm.arpa").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("a.txt", b"\n \n", [], "The texts hold no token"),
        ("a.txt", "今".encode("gbk"), [], "a.txt is not UTF-8"),
        ("a.txt.gz", b"no gzip", [], "a.txt.gz: cannot be read"),
        ("a.txt.gz", gzip.compress("今天\n".encode() * 99, mtime=0)[:-9], [], "a.txt.gz: cannot be read"),
        ("a.jsonl", '{"text": "今"}\n{"words": 3}\n'.encode(), [], 'a.jsonl:2: not an object with a "text"'),
        ("a.jsonl", b'{"text": 3}\n', [], 'a.jsonl:1: not an object with a "text"'),
        ("a.jsonl", b"[]\n", [], 'a.jsonl:1: not an object with a "text"'),
        ("a.txt", "今天".encode(), ["--held-out", "/dev/null"], "/dev/null"),
        ("a.txt", "今天".encode(), ["--held-out", "absent.txt"], "absent.txt: no such file"),
    ],
)
def test_bad_input_is_named_and_nothing_written(tmp_path, lang, capsys, name, content, flags, message):
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "lm.arpa"
    assert _ngram(lang, tmp_path / name, "--output", output, *flags) != 0
    assert message in capsys.readouterr().err and not output.exists()


def test_a_text_is_not_written_over(tmp_path, lang, capsys):
    text = tmp_path / "a.txt"
    text.write_text("今天\n", encoding="utf-8")
    assert _ngram(lang, text, "--output", text) == 1
    assert f"`--output` {text} is one of the texts" in capsys.readouterr().err
    assert text.read_text(encoding="utf-8") == "今天\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--order", "11"], "`--order` must be in 1..10, but is 11"),
        (["--min-count", "0"], "`--min-count` must be at least 1, but is 0"),
    ],
)
def test_bad_option_is_named(lang, capsys, flags, message):
    with pytest.raises(SystemExit) as error:
        _ngram(lang, "a.txt", "--output", "lm.arpa", *flags)
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("role", ["text", "held out"])
def test_tables_are_no_texts(tmp_path, lang, capsys, role):
    (tmp_path / "a.txt").write_text("今天\n", encoding="utf-8")
    with gzip.open(tmp_path / "mine.csv.gz", "wt", encoding="utf-8") as file:
        file.write("path,text\na.wav,今天\n")
    texts = ["mine.csv.gz"] if role == "text" else ["a.txt", "--held-out", "mine.csv.gz"]
    flags = [text if text.startswith("--") else tmp_path / text for text in texts]
    assert _ngram(lang, *flags, "--output", tmp_path / "lm.arpa") == 1
    assert "mine.csv.gz is a table, not a text" in capsys.readouterr().err
    assert not (tmp_path / "lm.arpa").exists()


def test_empty_held_out_text_is_named(tmp_path, lang, capsys):
    (tmp_path / "a.txt").write_text("今天\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    flags = ["--output", tmp_path / "lm.arpa", "--held-out", tmp_path / "empty.txt"]
    assert _ngram(lang, tmp_path / "a.txt", *flags) == 1
    assert "empty.txt holds no token" in capsys.readouterr().err and not (tmp_path / "lm.arpa").exists()
