"""N-grams against the definition of back-off (Katz 1987), computed from the file's own lines."""

from __future__ import annotations

import gzip
import itertools
import math
import tracemalloc

import numpy as np
import pytest

from stateless_transducer.text.ngram import read_arpa
from stateless_transducer.text.tokens import build_token_table

ARPA = r"""
this head is a comment

\data\
ngram 1=7
ngram 2=6
ngram 3=3

\1-grams:
-1.2 </s>
-99 <s> -0.4
-0.9 a -0.3
-0.8 b -0.25
-1.5 c
-2.0 <unk>
-1.1 zz -0.1

\2-grams:
-0.3 <s> a -0.2
-0.5 a b -0.15
-0.7 b a
-0.6 b c
-0.4 c </s>
-0.2 zz a -0.7

\3-grams:
-0.1 <s> a b
-0.25 a b c
-0.35 b a b

\end\
"""
TOKENS = build_token_table(["abcd"], "char")


@pytest.fixture
def arpa(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def _definition(words, word):
    """log10 p(word | words), straight from the lines."""
    lines = [line.split() for line in ARPA.splitlines() if line.startswith("-")]
    lines = [line for line in lines if "zz" not in line]
    known = {}
    for fields in lines:
        has_backoff = len(fields) > 2 and fields[-1].startswith("-")
        grams = tuple(fields[1:-1] if has_backoff else fields[1:])
        known[grams] = (float(fields[0]), float(fields[-1]) if has_backoff else 0.0)
    words = tuple(words)[-2:]
    if (*words, word) in known:
        return known[(*words, word)][0]
    if not words:
        return known[("<unk>",)][0]
    return known.get(words, (0.0, 0.0))[1] + _definition(words[1:], word)


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_rows_are_those_of_the_definition(arpa, length):
    ngrams = read_arpa(arpa, TOKENS)
    assert ngrams.order == 3
    for words in itertools.product("abcd", repeat=length):
        context = ngrams.start
        for word in words:
            context = ngrams.advance(context, TOKENS.ids[word])
        row = ngrams.row(context)
        for word, column in (*((w, TOKENS.ids[w]) for w in "abcd"), ("</s>", -1)):
            wanted = _definition(("<s>", *words), word) * math.log(10)
            assert row[column] == pytest.approx(wanted, abs=1e-5), (words, word)


def test_compressed_file_is_the_same(arpa, tmp_path):
    path = tmp_path / "lm.arpa.gz"
    path.write_bytes(gzip.compress(ARPA.encode()))
    np.testing.assert_array_equal(read_arpa(path, TOKENS).keys, read_arpa(arpa, TOKENS).keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lm.arpa.*0 bytes"),
        ("\\1-grams:\n-1 a b c\n", r"lm.arpa:2: not an n-gram of order 1: '-1 a b c'"),
        ("\\1-grams:\nx a\n", r"lm.arpa:2: not an n-gram of order 1"),
        ("\\1-grams:\nnan a\n", r"lm.arpa:2: not an n-gram of order 1: 'nan a'"),
        ("\\1-grams:\n-1 a inf\n", r"lm.arpa:2: not an n-gram of order 1"),
        ("\\1-grams:\n-1 a\n\\3-grams:\n", r"lm.arpa:3: `\\2-grams:` should come here"),
        (
            "\\1-grams:\n-1 he\n-1 she\n\\end\\\n",
            r"knows only 0 of the model's 7 tokens; its words must be .*characters",
        ),
    ],
)
def test_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "lm.arpa"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_arpa(path, TOKENS)


def test_damaged_file_is_named(tmp_path):
    path, packed = tmp_path / "lm.arpa.gz", bytearray(gzip.compress(ARPA.encode()))
    packed[20:60] = bytes(40)
    path.write_bytes(packed)
    with pytest.raises(ValueError, match="lm.arpa.gz: cannot be read as an ARPA file: Error -3 while decompressing"):
        read_arpa(path, TOKENS)


def test_reading_takes_little_memory(tmp_path):
    """Arrays from the start: a tuple, its numbers and its place in a dictionary took over 300 bytes an n-gram."""
    letters = [chr(0x4E00 + i) for i in range(100)]
    lines = (f"-1 {a} {b} -0.5" for a in letters for b in letters)
    path, tokens = tmp_path / "lm.arpa", build_token_table(letters, "char")
    path.write_text("\n".join(["\\1-grams:", *(f"-1 {a} -0.5" for a in letters), "\\2-grams:", *lines, "\\end\\"]))
    tracemalloc.start()
    ngrams = read_arpa(path, tokens)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ngrams.keys) == 100 + 100**2 and peak < 200 * 100**2, peak / 100**2


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.arpa"):
        read_arpa(tmp_path / "none.arpa", TOKENS)


@pytest.mark.parametrize(
    ("truncated", "counts"),
    [
        (ARPA[: ARPA.index(r"\end")], ["`\\end\\` is missing"]),
        (ARPA[: ARPA.index("-0.25 a b c")], ["missing", "3 3-grams stated, 1 found"]),
        (ARPA[: ARPA.index("-0.7 b a")], ["6 2-grams stated, 2 found", "3 3-grams stated, 0 found"]),
        (ARPA[: ARPA.index(r"\1-grams")], ["7 1-grams stated, 0 found"]),
        # a part in the middle is lost
        (ARPA.replace("-0.7 b a\n", ""), ["6 2-grams stated, 5 found"]),
        (ARPA[: ARPA.index(r"\3-grams")] + "\\end\\\n", ["3 3-grams stated, 0 found"]),
        (ARPA.replace("ngram 3=3\n", ""), ["0 3-grams stated, 3 found"]),
    ],
)
@pytest.mark.parametrize("suffix", [".arpa", ".arpa.gz"])
def test_truncated_file_is_refused_with_its_counts(tmp_path, truncated, counts, suffix):
    path = tmp_path / f"lm{suffix}"
    path.write_bytes(gzip.compress(truncated.encode()) if suffix == ".arpa.gz" else truncated.encode())
    with pytest.raises(ValueError, match=f"lm{suffix}: truncated or damaged ARPA file") as refused:
        read_arpa(path, TOKENS)
    assert all(count in str(refused.value) for count in counts)


def test_file_without_counts_is_read_to_its_end(arpa, tmp_path):
    path = tmp_path / "plain.arpa"
    path.write_text(ARPA[ARPA.index(r"\1-grams") :])
    np.testing.assert_array_equal(read_arpa(path, TOKENS).keys, read_arpa(arpa, TOKENS).keys)
