"""The searches on every kind of array: NumPy, torch, and torch where nobody may look at values before the end."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from test_searches import Toy

from stateless_transducer.decoding import arrays, beam_arrays
from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.beam_arrays import search_in_arrays
from stateless_transducer.decoding.beam_walks import search_by_walks
from stateless_transducer.decoding.fusion import Hotwords
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.options import LogitOptions

LENS = [9, 23, 0, 17, 1]
SHORT = [4, 8, 0, 6, 1]


class NumpyToy:
    """A model without torch."""

    def __init__(self, toy: Toy) -> None:
        self.blank_id, self.context_size = toy.blank_id, toy.context_size
        self._embedding = toy.embedding.weight.detach().numpy()
        self._weight, self._bias = (parameter.detach().numpy() for parameter in toy.output.parameters())

    def predict(self, contexts):
        return self._embedding[contexts].cumsum(1)[:, -1]

    def join(self, encoder_out, decoder_out):
        return np.tanh(encoder_out + decoder_out) @ self._weight.T + self._bias


def _searches(scorer):
    yield lambda *given: [[h] for h in greedy_search(*given)]
    yield lambda *given: [[h] for h in greedy_search(*given, max_symbols_per_frame=3)]
    for find in (modified_beam_search, beam_search):
        yield find
        yield lambda *given, find=find: find(*given, scorer=scorer, beam_size=7)


def _equal(found, wanted):
    for mine, other in zip(found, wanted, strict=True):
        assert [(h.tokens, h.frames) for h in mine] == [(h.tokens, h.frames) for h in other]
        assert [h.score for h in mine] == pytest.approx([h.score for h in other], abs=1e-4)
        assert mine[0].log_probs == pytest.approx(other[0].log_probs, abs=1e-4)


def test_numpy_arrays_give_what_tensors_give():
    toy, encoder_out = Toy(), torch.randn(len(SHORT), 8, 16)
    for find in _searches(Hotwords([[((5, 7), 3.0), ((4,), 1.0)]], vocab_size=12)):
        _equal(find(NumpyToy(toy), encoder_out.numpy(), np.array(SHORT)), find(toy, encoder_out, torch.tensor(SHORT)))


def test_without_a_look_at_values_the_searches_give_the_same(monkeypatch):
    """The way that a GPU takes: every hypothesis is asked for, dead or not, and no array's size depends on values."""
    toy, encoder_out, lens = Toy(), torch.randn(len(SHORT), 8, 16), torch.tensor(SHORT)
    searches = list(_searches(Hotwords([[((5, 7), 3.0), ((4,), 1.0)]], vocab_size=12)))
    wanted = [find(toy, encoder_out, lens) for find in searches]
    for name in ("arrays", "greedy", "modified_beam", "beam", "inputs"):
        monkeypatch.setattr(sys.modules[f"stateless_transducer.decoding.{name}"], "is_on_host", lambda _: False)
    for find, before in zip(searches, wanted, strict=True):
        _equal(find(toy, encoder_out, lens), before)


@pytest.mark.parametrize(
    ("context_size", "lens"), [(3, SHORT), *(pytest.param(size, LENS, marks=pytest.mark.sweep) for size in (1, 3))]
)
@pytest.mark.parametrize("beam_size", [2, *(pytest.param(size, marks=pytest.mark.sweep) for size in (1, 5))])
def test_beam_search_in_arrays_walks_as_it_does_in_python(beam_size, context_size, lens):
    toy, encoder_out = Toy(context_size=context_size), torch.randn(len(lens), max(lens), 16)
    lens = torch.tensor(lens)
    for scorer in (None, Hotwords([[((5, 7), 3.0), ((4,), 1.0)]] * len(lens), vocab_size=12)):
        given = (beam_size, LogitOptions(blank_penalty=0.5), scorer)
        with torch.inference_mode():
            in_arrays = search_in_arrays(toy, encoder_out, lens, *given)
            by_walks = search_by_walks(*search_inputs(toy, encoder_out, lens), *given)
        for mine, other in zip(in_arrays, by_walks, strict=True):
            wanted = {h.tokens: h for h in other}
            assert {h.tokens: h.frames for h in mine} == {h.tokens: h.frames for h in other}
            for h in mine:
                assert h.score == pytest.approx(wanted[h.tokens].score, abs=1e-4)
                assert h.log_probs == pytest.approx(wanted[h.tokens].log_probs, abs=1e-4)


def test_beam_search_in_arrays_waits_for_the_device_a_few_times_in_all(monkeypatch):
    """Whoever looks at values waits for a GPU, and so does a copy to it: only between rounds, and seldom."""
    expand, retire, calls = beam_arrays._Search.expand, beam_arrays._Search.retire, Counter()

    def wait(*_, **__):
        raise AssertionError("the device would have been waited for")

    def guarded_expand(search, num_rounds):
        calls["rounds"] += num_rounds
        with pytest.MonkeyPatch.context() as patch:
            for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
                patch.setattr(torch.Tensor, name, wait)
            for name in ("like", "to_numpy"):
                patch.setattr(beam_arrays, name, wait)
            expand(search, num_rounds)

    def counted_retire(search):
        calls["retire"] += 1
        return retire(search)

    monkeypatch.setattr(beam_arrays._Search, "expand", guarded_expand)
    monkeypatch.setattr(beam_arrays._Search, "retire", counted_retire)
    toy = Toy()
    with torch.no_grad():
        toy.output.bias[0] += 6  # as of a trained model: most frames say nothing
    with torch.inference_mode():
        found = search_in_arrays(toy, torch.randn(2, 60, 16), torch.tensor([60, 47]), 4, LogitOptions(), None)
    assert all(own[0].tokens for own in found)
    assert calls["retire"] <= 15 and calls["rounds"] >= 4 * 60


@pytest.mark.parametrize("k", [1, 4, 8, 9, 20])
def test_top_is_topk(k):
    x = torch.randn(5, 20)
    for mine, other in zip(arrays.top(x.numpy(), k), x.topk(k), strict=True):
        np.testing.assert_array_equal(mine, other.numpy())


@pytest.mark.parametrize("k", [3, 12])
def test_top_gives_no_value_twice_where_few_are_above_minus_infinity(k):
    x = np.full((2, 15), -np.inf, np.float32)
    # in the first place, too, where a search for the largest of nothing ends
    x[0, 0], x[1, [2, 7]] = 5.0, [1.0, 3.0]
    values, places = arrays.top(x, k)
    assert values[0].tolist() == [5.0] + [-np.inf] * (k - 1) and places[0, 0] == 0
    assert values[1].tolist() == [3.0, 1.0] + [-np.inf] * (k - 2) and places[1, :2].tolist() == [7, 2]


def test_log_sum_exp_keeps_minus_infinity():
    x = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf], [800.0, 800.0]])
    np.testing.assert_allclose(arrays.log_sum_exp(x.numpy()), x.logsumexp(-1).numpy(), rtol=1e-6)
