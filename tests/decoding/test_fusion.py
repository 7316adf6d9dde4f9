from __future__ import annotations

import itertools

import pytest
import torch
from as_on_a_device import beam_search_in_arrays
from test_searches import Toy

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.fusion import Hotwords
from stateless_transducer.decoding.modified_beam import modified_beam_search

PHRASES = [((1, 2, 3), 3.0), ((2, 3), 5.0), ((2, 2), 1.5), ((3,), 0.25), ((1, 2, 3, 1), -2.0)]


def _by_counting(tokens, phrases):
    """Every place where a phrase stands."""
    return sum(
        score
        for phrase, score in phrases
        for start in range(len(tokens))
        if tuple(tokens[start : start + len(phrase)]) == phrase
    )


def _walk(scorer, tokens, utterance, device):
    state, total = scorer.start(torch.tensor([utterance], device=device)), 0.0
    for token in tokens:
        total += scorer.scores(state)[0, token].item()
        state = scorer.advance(state, torch.tensor([token], device=device))
    return total + scorer.finish(state).item()


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_what_remains_at_the_end_are_the_full_matches(length, device):
    scorer = Hotwords([PHRASES], vocab_size=5)
    for tokens in itertools.product(range(1, 5), repeat=length):
        assert _walk(scorer, tokens, 0, device) == pytest.approx(_by_counting(tokens, PHRASES), abs=1e-5)


def test_each_utterance_has_its_own_hotwords(device):
    scorer = Hotwords([PHRASES[:1], PHRASES[1:], []], vocab_size=5)
    for n, own in enumerate((PHRASES[:1], PHRASES[1:], [])):
        for tokens in itertools.product(range(1, 5), repeat=4):
            assert _walk(scorer, tokens, n, device) == pytest.approx(_by_counting(tokens, own), abs=1e-5)


def test_a_blank_adds_nothing(device):
    scorer = Hotwords([PHRASES], vocab_size=5)
    state = scorer.start(torch.tensor([0], device=device))
    for token in (1, 2):
        assert scorer.scores(state)[0, 0] == 0
        state = scorer.advance(state, torch.tensor([token], device=device))


@pytest.mark.parametrize("find", [modified_beam_search, beam_search, beam_search_in_arrays])
def test_a_hotword_is_found_where_the_model_all_but_says_it(find, device):
    model = Toy().to(device)
    encoder_out, lens = torch.randn(3, 8, 16, device=device), torch.tensor([8, 4, 6], device=device)
    plain = find(model, encoder_out, lens, beam_size=4)
    said = {pair for pair in itertools.pairwise(plain[0][0].tokens)}
    others = {pair for h in plain[0][1:] for pair in itertools.pairwise(h.tokens)}
    wanted = min(pair for pair in others - said if pair[0] != pair[1])
    scorer = Hotwords([[(wanted, 8.0)], [], []], vocab_size=12)
    found = find(model, encoder_out, lens, beam_size=4, scorer=scorer)
    assert _by_counting(found[0][0].tokens, [(wanted, 1.0)]) >= 1
    assert found[0][0].score > plain[0][0].score
    # the others have none
    for n in (1, 2):
        assert [(h.tokens, h.frames) for h in found[n]] == [(h.tokens, h.frames) for h in plain[n]]
        # products of other numbers of rows may round otherwise
        assert [h.score for h in found[n]] == pytest.approx([h.score for h in plain[n]], abs=1e-5)


@pytest.mark.parametrize(
    "find", [modified_beam_search, beam_search, pytest.param(beam_search_in_arrays, marks=pytest.mark.sweep)]
)
def test_a_scorer_that_adds_nothing_changes_nothing(find, device):
    model = Toy().to(device)
    encoder_out, lens = torch.randn(3, 8, 16, device=device), torch.tensor([8, 4, 6], device=device)
    scorer = Hotwords([[((5, 7), 0.0)]], vocab_size=12)
    assert find(model, encoder_out, lens, scorer=scorer) == find(model, encoder_out, lens)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ([], "must hold a list for each utterance"),
        ([[((), 1.0)]], "at least one token"),
        ([[((0,), 1.0)]], r"Token 0 of a hotword must be in 0..4 and not the blank"),
        ([[((5,), 1.0)]], r"Token 5 of a hotword must be in 0..4"),
    ],
)
def test_bad_phrase_is_named(phrases, message):
    with pytest.raises(ValueError, match=message):
        Hotwords(phrases, vocab_size=5)
