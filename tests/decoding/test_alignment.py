"""Confidences against the loss and against all that could be said instead; times against paths that are forced."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_searches import Toy

from stateless_transducer.decoding import alignment
from stateless_transducer.decoding.alignment import align
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.ops.lattice import lattice_nll

TOPOLOGIES = {1: "modified_open", None: "standard"}


def _nlls(model, frames, texts, topology):
    """Of texts of one length, (N, U): from the lattice of all logits (N, T, U+1, V)."""
    (N, U), T, C = texts.shape, len(frames), model.context_size
    contexts = torch.nn.functional.pad(texts, (C, 0), value=model.blank_id).unfold(1, C, 1)
    decoder_out = model.predict(contexts.reshape(-1, C)).reshape(N, 1, U + 1, -1)
    log_probs = model.join(frames[None, :, None], decoder_out).double().log_softmax(-1)
    symbols = log_probs[:, :, :U].gather(3, texts[:, None, :, None].expand(-1, T, -1, 1))
    lens = torch.full((N,), T), torch.full((N,), U)
    return lattice_nll(log_probs[..., model.blank_id], symbols[..., 0], *lens, topology)


def _nll(model, frames, tokens, topology):
    return _nlls(model, frames, torch.tensor([tokens], dtype=torch.int64), topology).item()


@pytest.mark.parametrize("context_size", [1, 2])
@pytest.mark.parametrize("max_symbols", TOPOLOGIES)
@torch.no_grad()
def test_confidence_is_the_probability_of_the_loss(max_symbols, context_size, monkeypatch):
    # a random model is sure of nothing: all cells count
    monkeypatch.setattr(alignment, "BAND", 100)
    model, encoder_out, lens = Toy(context_size=context_size), torch.randn(3, 9, 16), torch.tensor([9, 4, 7])
    hypotheses = [ranked[0] for ranked in modified_beam_search(model, encoder_out, lens, beam_size=4)]
    hypotheses[1] = Hypothesis((), (), ())
    found = align(model, encoder_out, lens, hypotheses, max_symbols_per_frame=max_symbols)
    for n, (mine, hypothesis) in enumerate(zip(found, hypotheses, strict=True)):
        nll = _nll(model, encoder_out[n, : lens[n]], hypothesis.tokens, TOPOLOGIES[max_symbols])
        assert math.log(mine.confidence) == pytest.approx(-nll, rel=1e-4)
        assert len(mine.confidences) == len(mine.frames) == len(hypothesis.tokens)


@pytest.mark.parametrize("max_symbols", TOPOLOGIES)
@torch.no_grad()
def test_confidence_of_a_token_is_the_share_of_what_may_follow_its_prefix(max_symbols):
    """Prefix probabilities, by adding up all transcripts with the prefix, of a model that stops saying symbols."""
    model, frames = Toy(vocab_size=3, dim=4), torch.randn(4, 4)
    model.output.bias[0] += 2.0
    tokens = (1, 2)
    (found,) = align(
        model,
        frames[None],
        torch.tensor([4]),
        [Hypothesis(tokens, (0, 1), (0.0, 0.0))],
        max_symbols_per_frame=max_symbols,
    )
    # of the standard topology any length is possible; beyond ten tokens there is next to nothing
    longest = 4 if max_symbols == 1 else 10
    total = {length: 0.0 for length in range(3)}
    for length in range(longest + 1):
        texts = list(itertools.product((1, 2), repeat=length))
        nlls = _nlls(model, frames, torch.tensor(texts, dtype=torch.int64), TOPOLOGIES[max_symbols])
        for said, probability in zip(texts, (-nlls).exp().tolist(), strict=True):
            for u in range(3):
                if said[:u] == tokens[:u]:
                    total[u] += probability
    assert total[0] == pytest.approx(1.0, abs=1e-3)
    assert found.confidences == pytest.approx([total[1] / total[0], total[2] / total[1]], abs=2e-3)


@torch.no_grad()
def test_hesitation_about_the_time_is_no_doubt_about_the_token():
    """Half on one frame, all of the rest on the next: certain in sum."""

    class Hesitant:
        blank_id, context_size = 0, 1

        def predict(self, contexts):
            return contexts[:, :1].double()

        def join(self, encoder_out, decoder_out):
            # before the token: even on frame 1, then sure; behind it: blank
            p = torch.where(decoder_out[:, 0] > 0, 0.0, encoder_out[:, 0]).clamp(1e-9, 1 - 1e-9)
            return torch.stack([1 - p, p], 1).log()

    frames = torch.tensor([[0.0], [0.5], [1.0], [0.0]])[None].double()
    (hypothesis,) = greedy_search(Hesitant(), frames, torch.tensor([4]))
    assert hypothesis.tokens == (1,)
    (found,) = align(Hesitant(), frames, torch.tensor([4]), [hypothesis])
    assert found.confidences == pytest.approx((1.0,), abs=1e-6) and found.frames in ((1,), (2,))
    assert found.confidence == pytest.approx(1.0, abs=1e-6)


@torch.no_grad()
def test_band_is_wide_enough_where_the_model_is_sure():
    """In a band, as over the whole lattice, of a long utterance."""
    model = Toy()
    model.output.weight *= 2
    encoder_out, lens = torch.randn(1, 120, 16), torch.tensor([120])
    (ranked,) = modified_beam_search(model, encoder_out, lens, beam_size=4)
    (narrow,) = align(model, encoder_out, lens, ranked[:1])
    nll = _nll(model, encoder_out[0], ranked[0].tokens, "modified_open")
    assert math.log(narrow.confidence) == pytest.approx(-nll, rel=1e-3)
    assert len(ranked[0].tokens) > 4 * alignment.BAND


@torch.no_grad()
def test_band_holds_all_that_is_said_on_a_frame(monkeypatch):
    model, frames, lens = Toy(), torch.randn(1, 5, 16), torch.tensor([5])
    crowded = Hypothesis((1, 2, 3, 1, 2, 3, 1, 2, 3), (1,) * 8 + (4,), (0.0,) * 9)
    (found,) = align(model, frames, lens, [crowded], max_symbols_per_frame=None)
    monkeypatch.setattr(alignment, "BAND", 100)
    (whole,) = align(model, frames, lens, [crowded], max_symbols_per_frame=None)
    assert all(0 < each <= 1 for each in found.confidences)
    assert 0.5 * whole.confidence < found.confidence <= whole.confidence


@torch.no_grad()
def test_times_follow_one_another():
    model, encoder_out, lens = Toy(), torch.randn(2, 60, 16), torch.tensor([60, 31])
    hypotheses = [ranked[0] for ranked in modified_beam_search(model, encoder_out, lens, beam_size=4)]
    for found, hypothesis in zip(align(model, encoder_out, lens, hypotheses), hypotheses, strict=True):
        assert list(found.frames) == sorted(found.frames)
        assert all(0 < confidence <= 1 for confidence in found.confidences)
        assert max(abs(a - b) for a, b in zip(found.frames, hypothesis.frames, strict=True)) <= 6
