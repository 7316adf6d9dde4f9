"""``transducer prepare lang``."""

from __future__ import annotations

import pytest
from lhotse import SupervisionSegment, SupervisionSet

from stateless_transducer.cli import main
from stateless_transducer.text.tokens import TokenTable


def _write(folder, prefix, texts):
    for split, said in texts.items():
        segments = [
            SupervisionSegment(id=f"{prefix}{n}", recording_id=f"{prefix}{n}", start=0.0, duration=1.0, text=text)
            for n, text in enumerate(said)
        ]
        SupervisionSet.from_segments(segments).to_file(folder / f"{prefix}_supervisions_{split}.jsonl.gz")


def test_tokens_are_those_of_all_training_texts(tmp_path, capsys):
    (tmp_path / "manifests").mkdir()
    _write(tmp_path / "manifests", "one", {"train": ["今天 好"], "test": ["坏"]})
    _write(tmp_path / "manifests", "two", {"train": ["天气 ok ok"]})
    flags = ["--data-dir", str(tmp_path), "--lang-dir", str(tmp_path / "lang")]
    assert main(["prepare", "lang", "one", "two", *flags]) == 0
    assert f"{tmp_path}/lang: 10 tokens" in capsys.readouterr().out
    assert TokenTable.read(tmp_path / "lang").symbols[3:] == (*"今天好气ok", "▁")
    assert main(["prepare", "lang", "one", "two", *flags, "--token", "word"]) == 0
    table = TokenTable.read(tmp_path / "lang")
    assert (table.unit, table.symbols[3:]) == ("word", ("今天", "好", "天气", "ok"))


def test_fewer_pieces_than_asked_for_are_told(tmp_path, capsys):
    (tmp_path / "manifests").mkdir()
    _write(tmp_path / "manifests", "one", {"train": ["the cat sat", "on a mat"]})
    flags = ["--data-dir", str(tmp_path), "--lang-dir", str(tmp_path / "lang"), "--token", "bpe"]
    assert main(["prepare", "lang", "one", *flags]) == 0
    count = len(TokenTable.read(tmp_path / "lang"))
    said = f"lang: {count} tokens, not `--vocab-size` 500: the texts have no more pieces\n"
    assert count < 30 and capsys.readouterr().out.endswith(said)
    assert main(["prepare", "lang", "one", *flags, "--vocab-size", str(count)]) == 0
    assert capsys.readouterr().out.endswith(f"lang: {count} tokens\n")


def test_corpus_that_is_not_prepared_is_named(tmp_path, capsys):
    flags = ["--data-dir", str(tmp_path), "--lang-dir", str(tmp_path / "lang")]
    assert main(["prepare", "lang", "one", *flags]) == 1
    assert "one_supervisions_train.jsonl.gz is missing; run `transducer prepare` first." in capsys.readouterr().err
    assert not (tmp_path / "lang").exists()


def test_pieces_of_words(tmp_path, capsys):
    (tmp_path / "manifests").mkdir()
    _write(tmp_path / "manifests", "one", {"train": ["the cat sat on the mat", "the bat sat"] * 20})
    flags = ["--data-dir", str(tmp_path), "--lang-dir", str(tmp_path / "lang"), "--token", "bpe"]
    assert main(["prepare", "lang", "one", *flags, "--vocab-size", "16"]) == 0
    assert f"{tmp_path}/lang: 16 tokens" in capsys.readouterr().out
    table = TokenTable.read(tmp_path / "lang")
    assert table.unit == "bpe" and table.decode(table.encode("the mat sat")) == "the mat sat"
    assert main(["prepare", "lang", "one", *flags, "--vocab-size", "5"]) == 1
    assert "`--vocab-size` must be at least 14" in capsys.readouterr().err
    # the tokens that were there stay
    assert TokenTable.read(tmp_path / "lang") == table


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--token", "word", "--vocab-size", "50"], "`--vocab-size` 50 needs `--token bpe`"),
        (["--token", "bpe", "--vocab-size", "0"], "`--vocab-size` must be at least 1, but is 0."),
    ],
)
def test_vocab_size_belongs_to_pieces(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "lang", "one", "--lang-dir", str(tmp_path / "lang"), *flags])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
