"""Kneser-Ney smoothing against the paper's formulas in dictionaries, and against KenLM."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from stateless_transducer.text.arpa import END, START, write_arpa
from stateless_transducer.text.kneser_ney import estimate
from stateless_transducer.text.ngram import ngrams_of, read_arpa
from stateless_transducer.text.tokens import BLANK, SOS_EOS, build_token_table

TOKENS = build_token_table(["abcde"], "char")
V, UNSAID = len(TOKENS), [TOKENS.ids[BLANK], TOKENS.ids[SOS_EOS]]
SAID = [*(i for i in range(V) if i not in UNSAID), V + 1]
# lmplz -o 3 --discount_fallback, of KenLM 0.3.0; common logarithms
KENLM_TEXT = "abcab abd ba cabc aab d"
KENLM = """
a 2 -0.60206 -0.30103
<unk> 2 -1.146128 0
d </s> 1 -0.20412 0
<s> a 1 -0.42596874 -0.30103
a a 1 -0.6478175 -0.30103
c a 1 -0.33881855 -0.30103
<s> b 1 -0.81033593 -0.30103
a b 1 -0.4301247 -0.30103
b d 1 -0.70679533 -0.30103
b a </s> 0 -0.2128939 0
a b </s> 0 -0.48811665 0
b c </s> 0 -0.40248764 0
<s> d </s> 0 -0.090176634 0
<s> b a 0 -0.20412 0
b c a 0 -0.31951338 0
<s> a b 0 -0.2847928 0
a b d 0 -0.702865 0
"""


def _sentences(count: int) -> list[list[int]]:
    """Some tokens and pairs much more often than others, and an unknown one now and then; no `e`."""
    draw = random.Random(count)
    choices = [TOKENS.ids[c] for c in "aaaabbbcd"] + [TOKENS.unknown_id]
    sentences = []
    for _ in range(count):
        sentence = []
        while draw.random() < 0.85:
            again = sentence and draw.random() < 0.3
            sentence.append(sentence[-1] if again else draw.choice(choices))
        sentences.append(sentence)
    return sentences


class _Definition:
    """Equations 21 to 27 of Chen and Goodman's report, n-gram by n-gram."""

    def __init__(self, sentences: list[list[int]], order: int, min_count: int) -> None:
        text = [(V, *sentence, V + 1) for sentence in sentences]
        self._counts = Counter(
            tuple(sentence[i : i + n])
            for sentence in text
            for n in range(1, order + 1)
            for i in range(len(sentence) - n + 1)
        )
        self._min_count = min_count
        behind = Counter(gram[1:] for gram in self._counts if len(gram) > 1)
        self._seen = {
            gram: count if len(gram) == order or gram[0] == V else behind[gram]
            for gram, count in self._counts.items()
            if gram != (V,)
        }
        self._discounts = {n: self._of_order(n) for n in range(1, order + 1)}

    def _of_order(self, n: int) -> tuple[float, ...]:
        t = Counter(seen for gram, seen in self._seen.items() if len(gram) == n)
        if not (t[1] and t[2] and t[3]):
            return (0.5, 1, 1.5)
        y = t[1] / (t[1] + 2 * t[2])
        found = tuple(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
        return found if min(found) > 0 else (0.5, 1, 1.5)

    def _taken(self, gram: tuple[int, ...]) -> float:
        if len(gram) > 2 and self._counts[gram] < self._min_count:
            return self._seen[gram]
        return self._discounts[len(gram)][min(self._seen[gram], 3) - 1]

    def prob(self, context: tuple[int, ...], token: int) -> float:
        grams = [gram for gram in self._seen if gram[:-1] == context]
        shorter = self.prob(context[1:], token) if context else 1 / len(SAID)
        if not grams:
            return shorter
        total = sum(self._seen[gram] for gram in grams)
        gram = (*context, token)
        own = (self._seen[gram] - self._taken(gram)) / total if gram in self._seen else 0.0
        return own + sum(map(self._taken, grams)) / total * shorter


@pytest.mark.parametrize(
    ("count", "order", "min_count"), [(300, 3, 1), (300, 3, 2), (300, 3, 4), (40, 4, 2), (20, 2, 1), (30, 1, 1)]
)
def test_probabilities_are_those_of_the_definition(count, order, min_count):
    sentences = _sentences(count)
    levels = estimate(sentences, vocab_size=V, unsaid=UNSAID, order=order, min_count=min_count)
    ngrams, definition = (
        ngrams_of(levels, vocab_size=V, unknown_id=TOKENS.unknown_id),
        _Definition(sentences, order, min_count),
    )
    for length in range(4):
        for words in itertools.product([TOKENS.ids[c] for c in "abce"], repeat=length):
            context = ngrams.start
            for word in words:
                context = ngrams.advance(context, word)
            row = np.exp(ngrams.row(context))
            whole = (V, *words)[-order + 1 :] if order > 1 else ()
            wanted = [definition.prob(whole, token) for token in SAID]
            np.testing.assert_allclose(row[SAID], wanted, rtol=1e-5)
            assert sum(wanted) == pytest.approx(1)


def test_counts_give_discounts():
    """What the test above compares is not the fallback alone."""
    levels = {n: _Definition(_sentences(300), 3, 1)._discounts[n] for n in (2, 3)}
    assert levels[3] != (0.5, 1, 1.5) and levels[2] == (0.5, 1, 1.5)


def test_probabilities_are_kenlms(tmp_path):
    sentences = [TOKENS.encode(text) for text in KENLM_TEXT.split()]
    # KenLM knows the tokens of the text alone, and <unk>
    levels = estimate(sentences, vocab_size=V, unsaid=[*UNSAID, TOKENS.ids["e"]], order=3)
    assert [len(level.tokens) for level in levels] == [7, 14, 14]
    write_arpa(tmp_path / "lm.arpa", levels, [*TOKENS.symbols, START, END])
    found = {}
    for line in (tmp_path / "lm.arpa").read_text().splitlines():
        log_prob, *rest = line.split("\t")
        if rest:
            found[rest[0]] = (float(log_prob), float(rest[1]) if len(rest) > 1 else 0.0)
    assert found["<s>"] == (-99.0, pytest.approx(-0.30103))
    for line in KENLM.strip().splitlines():
        *gram, longer, log_prob, backoff = line.split()
        assert found[" ".join(gram)] == pytest.approx((float(log_prob), float(backoff)), abs=2e-6), longer


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_file_holds_what_was_estimated(tmp_path, name):
    sentences = _sentences(100)
    levels = estimate(sentences, vocab_size=V, unsaid=UNSAID, order=4, min_count=2)
    write_arpa(tmp_path / "new" / name, levels, [*TOKENS.symbols, START, END])
    read, own = (
        read_arpa(tmp_path / "new" / name, TOKENS),
        ngrams_of(levels, vocab_size=V, unknown_id=TOKENS.unknown_id),
    )
    np.testing.assert_array_equal(read.keys, own.keys)
    np.testing.assert_allclose(read.backoffs, own.backoffs, atol=1e-5)
    for sentence in sentences[:20]:
        np.testing.assert_allclose(read.log_probs_of(sentence), own.log_probs_of(sentence), atol=1e-5)


def test_score_of_a_sentence_is_that_of_its_rows():
    sentences = _sentences(60)
    levels = estimate(sentences, vocab_size=V, unsaid=UNSAID, order=3)
    ngrams = ngrams_of(levels, vocab_size=V, unknown_id=TOKENS.unknown_id)
    for sentence in [*sentences[:10], [TOKENS.ids["e"]], []]:
        context, wanted = ngrams.start, []
        for token in (*sentence, V + 1):
            wanted.append(ngrams.row(context)[token])
            context = ngrams.advance(context, token)
        np.testing.assert_allclose(ngrams.log_probs_of(sentence), wanted, atol=1e-5)


def test_context_foresees_repetitions():
    scores = []
    for order in (1, 2):
        levels = estimate(_sentences(2000), vocab_size=V, unsaid=UNSAID, order=order)
        ngrams = ngrams_of(levels, vocab_size=V, unknown_id=TOKENS.unknown_id)
        scores.append(sum(ngrams.log_probs_of(sentence).sum() for sentence in _sentences(200)))
    assert scores[1] > 0.95 * scores[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"order": 0}, "`order` must be in 1..10, but is 0"),
        ({"order": 11}, "`order` must be in 1..10, but is 11"),
        ({"min_count": 0}, "`min_count` must be at least 1, but is 0"),
    ],
)
def test_bad_setting_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        estimate([[3]], vocab_size=V, **setting)


@pytest.mark.parametrize("sentences", [[], [[], []]])
def test_texts_without_tokens_are_refused(sentences):
    with pytest.raises(ValueError, match="hold no token"):
        estimate(sentences, vocab_size=V)


def test_short_texts_have_short_ngrams():
    levels = estimate([[3, 4]], vocab_size=V, unsaid=UNSAID, order=9)
    assert [len(level.tokens) for level in levels[1:]] == [3, 2, 1]
