"""The plain form of transcripts, and what in them looks like noise."""

from __future__ import annotations

import pytest

from stateless_transducer.text.normalize import normalize, suspect_characters


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Ｈello, WORLD！", "hello world"),
        ("it’s rock'n'roll, 'quoted'", "it's rock'n'roll quoted"),
        ("今天２号。", "今天2号"),
        ("CAFE\u0301 well-known soft\u00adhyphen", "café well known softhyphen"),
        ("नमस्ते, ▁x", "नमस्ते ▁x"),
        ("?!", ""),
    ],
)
def test_normalized_text_has_small_letters_without_punctuation(text, plain):
    assert normalize(text) == plain
    assert normalize(plain) == plain


def test_noise_is_what_the_texts_have_little_of_or_twice():
    found = suspect_characters(["今天He 1 2 , ! 天气", "二〇二二 人々", "今天天气" * 100])
    assert sorted(sorted(counts) for counts in found.values()) == [["!", ","], ["1", "2"], ["H", "e"]]
    assert {reason: dict(counts) for reason, counts in suspect_characters(["HELLO HE", "IT'S"]).items()} == {}
    (capitals,) = suspect_characters(["Hello it's", "He"]).values()
    assert capitals == {"H": 2}
