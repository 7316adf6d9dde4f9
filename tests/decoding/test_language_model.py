"""Language models in the two beams: what they add is what the whole transcript is worth to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from as_on_a_device import beam_search_in_arrays
from test_searches import Toy

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Hotwords, SumOfScorers
from stateless_transducer.decoding.language_model import NeuralScorer, NgramScorer
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.search import make_scorer
from stateless_transducer.files import sha256
from stateless_transducer.text.ngram import read_arpa
from stateless_transducer.text.tokens import build_token_table

V = 12
TOKENS = build_token_table(["abcdefghi"], "char")


class Lstm(torch.nn.Module):
    """A network with a state, by the protocol of `NeuralScorer`; tokens 0..V-1, V is the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = torch.nn.Embedding(V, 8), torch.nn.LSTMCell(8, 8)
        self.output = torch.nn.Linear(8, V + 1)
        self.calls = 0

    def start(self):
        zeros = (torch.zeros(8), torch.zeros(8))
        log_probs, states = self.step(np.array([0]), [zeros])
        return log_probs[0], states[0]

    @torch.no_grad()
    def step(self, tokens, states):
        self.calls += 1
        h, c = self.cell(self.embedding(torch.from_numpy(tokens)), tuple(map(torch.stack, zip(*states, strict=True))))
        return (3 * self.output(h)).log_softmax(-1).numpy(), list(zip(h, c, strict=True))

    def of_text(self, tokens):
        row, state = self.start()
        total = 0.0
        for token in tokens:
            total += row[token]
            (row,), (state,) = self.step(np.array([token]), [state])
        return total + row[V]


@pytest.fixture
def arpa(tmp_path):
    path, letters = tmp_path / "lm.arpa", "abcdefghi"
    unigrams = "".join(f"-{1 + i / 10} {letter} -0.2\n" for i, letter in enumerate(letters))
    bigrams = "".join(f"-{0.1 + i / 20} {a} {b}\n" for i, (a, b) in enumerate(zip(letters, letters[2:], strict=False)))
    path.write_text(f"\\1-grams:\n-1 </s>\n-99 <s> 0\n{unigrams}\\2-grams:\n-0.2 <s> a\n{bigrams}\\end\\\n")
    return path


FINDS = [modified_beam_search, beam_search, pytest.param(beam_search_in_arrays, marks=pytest.mark.sweep)]


def _problem(device):
    return Toy().to(device), torch.randn(3, 8, 16, device=device), torch.tensor([8, 4, 6], device=device)


def _ngram_of_text(ngrams, tokens):
    context, total = ngrams.start, 0.0
    for token in tokens:
        total += ngrams.row(context)[token]
        context = ngrams.advance(context, token)
    return total + ngrams.row(context)[-1]


@pytest.mark.parametrize("find", FINDS)
@pytest.mark.parametrize("kind", ["ngram", pytest.param("neural", marks=pytest.mark.sweep)])
def test_score_is_the_models_and_the_language_models(find, kind, arpa, device):
    """With a scale too small to change the search, the scores part by what the language model says of the text."""
    model, encoder_out, lens = _problem(device)
    scale = 1e-4
    if kind == "ngram":
        ngrams = read_arpa(arpa, TOKENS)
        scorer, of_text = NgramScorer(ngrams, scale=scale), lambda tokens: _ngram_of_text(ngrams, tokens)
    else:
        lstm = Lstm()
        scorer, of_text = NeuralScorer(lstm, scale=scale), lstm.of_text
    plain = find(model, encoder_out, lens, beam_size=4)
    fused = find(model, encoder_out, lens, beam_size=4, scorer=scorer)
    for before, after in zip(plain, fused, strict=True):
        assert before[0].tokens == after[0].tokens != ()
        difference = (after[0].score - before[0].score) / scale
        # scores are sums of float32 numbers of about 100
        assert difference == pytest.approx(of_text(before[0].tokens), abs=2.0, rel=0.02)


@pytest.mark.parametrize("find", FINDS)
def test_a_strong_language_model_decides(find, arpa, device):
    model, encoder_out, lens = _problem(device)
    ngrams = read_arpa(arpa, TOKENS)
    plain = find(model, encoder_out, lens, beam_size=4)
    fused = find(model, encoder_out, lens, beam_size=4, scorer=NgramScorer(ngrams, scale=2.0))
    for before, after in zip(plain, fused, strict=True):
        own = [_ngram_of_text(ngrams, found[0].tokens) / (len(found[0].tokens) + 1) for found in (before, after)]
        assert own[1] > own[0]


def test_neural_model_sees_each_history_once(device):
    lstm = Lstm()
    model, encoder_out, lens = _problem(device)
    scorer = NeuralScorer(lstm, scale=0.3)
    found = modified_beam_search(model, encoder_out, lens, scorer=scorer)
    # one call a frame at most, and one at the end
    assert 1 < lstm.calls <= 8 + 2
    assert modified_beam_search(model, encoder_out, lens, scorer=scorer) == found


@pytest.mark.sweep
def test_forgotten_histories_are_evaluated_again(device, monkeypatch):
    model, encoder_out, lens = _problem(device)
    lstm = Lstm()
    wanted = beam_search(model, encoder_out, lens, scorer=NeuralScorer(lstm, scale=0.3))
    monkeypatch.setattr("stateless_transducer.decoding.language_model._CACHED_BYTES", 0)
    found = beam_search(model, encoder_out, lens, scorer=NeuralScorer(lstm, scale=0.3))
    assert [[h.tokens for h in own] for own in found] == [[h.tokens for h in own] for own in wanted]


@pytest.mark.parametrize("find", FINDS)
def test_scorers_add_up(find, arpa, device):
    model, encoder_out, lens = _problem(device)
    ngrams, phrases = read_arpa(arpa, TOKENS), [[((5, 7), 3.0), ((4,), 1.0)]]
    half = [NgramScorer(ngrams, scale=0.2), Hotwords(phrases, vocab_size=V), NgramScorer(ngrams, scale=0.2)]
    whole = [NgramScorer(ngrams, scale=0.4), Hotwords(phrases, vocab_size=V)]
    found, wanted = (find(model, encoder_out, lens, scorer=SumOfScorers(scorers)) for scorers in (half, whole))
    for mine, other in zip(found, wanted, strict=True):
        assert [h.tokens for h in mine] == [h.tokens for h in other]
        assert [h.score for h in mine] == pytest.approx([h.score for h in other], abs=1e-4)


def test_configuration_makes_the_scorer(arpa, tmp_path, device):
    hotwords = tmp_path / "names.txt"
    hotwords.write_text("ad\n")
    config = SearchConfig("modified_beam_search", hotwords_file=hotwords, ngram_lm=arpa, lm_scale=0.5)
    names = rf"names-{sha256(hotwords)[:8]}-score-2-lm-{sha256(arpa)[:8]}-scale-0.5"
    assert config.suffix(2) == f"modified_beam_search-beam-size-4-{names}"
    model, encoder_out, lens = _problem(device)
    scorer = make_scorer(config, TOKENS)
    assert scorer.state_size == 2
    assert modified_beam_search(model, encoder_out, lens, scorer=scorer) != modified_beam_search(
        model, encoder_out, lens
    )


@pytest.mark.parametrize("scale", [0.3, 0.2])
def test_low_order_model_is_taken_away(arpa, device, scale):
    """What is added and taken away of the same model is their difference."""
    model, encoder_out, lens = _problem(device)
    config = SearchConfig("modified_beam_search", ngram_lm=arpa, lm_scale=0.5, lodr_lm=arpa, lodr_scale=scale)
    found = modified_beam_search(model, encoder_out, lens, scorer=make_scorer(config, TOKENS))
    difference = NgramScorer(read_arpa(arpa, TOKENS), scale=0.5 - scale)
    wanted = modified_beam_search(model, encoder_out, lens, scorer=difference)
    for mine, other in zip(found, wanted, strict=True):
        assert [h.tokens for h in mine] == [h.tokens for h in other]
        assert [h.score for h in mine] == pytest.approx([h.score for h in other], abs=1e-4)


@pytest.mark.parametrize("never", ["-99", "-inf"])
def test_what_is_never_said_is_not_taken_away(tmp_path, never):
    path = tmp_path / "low.arpa"
    path.write_text(
        "\\1-grams:\n-99 <s>\n-1 </s>\n" + "".join(f"-1 {c}\n" for c in "abcdefgh") + f"{never} i\n\\end\\\n"
    )
    scorer = NgramScorer(read_arpa(path, TOKENS), scale=-0.5)
    scores = scorer.scores(scorer.start(np.array([0])))[0]
    assert scores[TOKENS.ids["i"]] == 0 and scores[TOKENS.ids["a"]] == pytest.approx(0.5 * np.log(10))
    assert NgramScorer(read_arpa(path, TOKENS), scale=0.5).scores(scorer.start(np.array([0])))[0].min() < -100


def test_language_model_without_a_beam_is_refused(arpa):
    with pytest.raises(ValueError, match="`ngram_lm` .* needs a beam"):
        SearchConfig("greedy_search", ngram_lm=arpa)
