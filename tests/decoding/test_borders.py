"""What somebody else's model and arrays may get wrong: a sentence that names it, never a wrong transcript."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from as_on_a_device import beam_search_in_arrays, greedy_search_in_arrays, modified_beam_search_in_arrays
from test_searches import Toy

from stateless_transducer.decoding.alignment import align
from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.hypothesis import LOST, Hypothesis
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.options import LogitOptions
from stateless_transducer.decoding.search import decode_encoder_out

SEARCHES = [greedy_search, beam_search, modified_beam_search]
SEARCHES += [greedy_search_in_arrays, beam_search_in_arrays, modified_beam_search_in_arrays]


@pytest.fixture(params=SEARCHES, ids=lambda search: search.__name__)
def search(request):
    """A search; beams are small, since they take long on arrays of a device."""
    return request.param if "greedy" in request.param.__name__ else partial(request.param, beam_size=2)


def _best(found):
    return [each if isinstance(each, Hypothesis) else each[0] for each in found]


@pytest.mark.parametrize(
    ("shape", "lens", "message"),
    [
        ((2, 16), [2, 2], r"`encoder_out` must be \(N, T, D\), but is \(2, 16\)"),
        ((3, 4, 16), [4, 4], r"`encoder_out_lens` must be 3 integers, one for each row .* but is \(2,\) of int64"),
        ((2, 4, 16), [4.0, 4.0], r"must be 2 integers, .* but is \(2,\) of float32"),
        ((2, 4, 16), [[4, 4]], r"must be 2 integers, .* but is \(1, 2\) of int64"),
        # a flat index would reach the neighbor's frames
        ((2, 4, 16), [4, 6], r"`encoder_out_lens` must be in 0\.\.4, but holds 6"),
        ((2, 4, 16), [-3, 4], r"`encoder_out_lens` must be in 0\.\.4, but holds -3"),
    ],
)
def test_lens_that_do_not_fit_are_refused(search, shape, lens, message):
    with pytest.raises(ValueError, match=message):
        search(Toy(), torch.zeros(shape), torch.tensor(lens))


@pytest.mark.parametrize(
    ("encoder_out", "lens", "message"),
    [
        (torch.zeros(2, 4, 16), [4, 4], r"`encoder_out_lens` must be a torch tensor or .* array \(N,\), but is a list"),
        ([[[0.0]]], torch.tensor([1]), r"`encoder_out` must be a torch tensor or .* array \(N, T, D\), but is a list"),
    ],
    ids=["lens", "encoder_out"],
)
def test_lists_are_refused(search, encoder_out, lens, message):
    with pytest.raises(ValueError, match=message):
        search(Toy(), encoder_out, lens)


def test_lengths_may_be_of_the_other_kind(search):
    model, encoder_out, lens = Toy(), torch.randn(2, 4, 16), torch.tensor([4, 3])
    assert _best(search(model, encoder_out, lens.numpy())) == _best(search(model, encoder_out, lens))


def test_answers_of_another_shape_are_refused(search):
    """As icefall's decoder and joiner have them: an argmax over the wrong axis would say nothing, without a word."""

    class Wide(Toy):
        def predict(self, contexts):
            return super().predict(contexts)[:, None]

    class Wider(Toy):
        def join(self, encoder_out, decoder_out):
            return super().join(encoder_out, decoder_out)[:, None]

    given = torch.randn(2, 4, 16), torch.tensor([4, 4])
    with pytest.raises(ValueError, match=r"`predict` .* decoder_out \(\d, D\) .*, 1, 16\)"):
        search(Wide(), *given)
    with pytest.raises(ValueError, match=r"`join` .* logits \(\d+, V\) .* \(\d+, 16\), .*, 1, 12\)"):
        search(Wider(), *given)


@pytest.mark.parametrize("blank_id", [0, pytest.param(11, marks=pytest.mark.sweep)])
def test_infinite_logits_are_no_numbers_either(search, blank_id):
    class Sudden(Toy):
        """Endlessly sure of a token, or of the blank, on a frame."""

        def join(self, encoder_out, decoder_out):
            logits = super().join(encoder_out, decoder_out)
            logits[encoder_out[:, 0] == 100, token] = torch.inf
            return logits

    encoder_out, lens = torch.randn(2, 4, 16), torch.tensor([4, 4])
    encoder_out[0, 2, 0] = 100
    for token in (5, blank_id):
        found = _best(search(Sudden(blank_id=blank_id), encoder_out, lens))
        assert math.isnan(found[0].score) and not math.isnan(found[1].score), token


@pytest.mark.parametrize("blank_id", [0, pytest.param(11, marks=pytest.mark.sweep)])
def test_an_utterance_without_numbers_is_lost_alone(search, blank_id):
    model, encoder_out, lens = Toy(blank_id=blank_id), torch.randn(3, 4, 16), torch.tensor([4, 4, 3])
    wanted = _best(search(model, encoder_out, lens))
    encoder_out[1, 2] = torch.nan
    found = _best(search(model, encoder_out, lens))
    assert found[1].tokens == LOST.tokens and math.isnan(found[1].score)
    for n in (0, 2):
        assert found[n].tokens == wanted[n].tokens and found[n].score == pytest.approx(wanted[n].score, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.sweep)])
def test_a_model_in_half_precision_is_searched_on_a_cpu(search, dtype):
    model, encoder_out, lens = Toy(), torch.randn(3, 4, 16), torch.tensor([4, 4, 3])
    wanted = _best(search(model.to(dtype).float(), encoder_out.to(dtype).float(), lens))
    found = _best(search(model.to(dtype), encoder_out.to(dtype), lens))
    same = sum(a.tokens == b.tokens for a, b in zip(found, wanted, strict=True))
    assert same >= 2 and all(math.isfinite(each.score) for each in found)


def test_what_the_model_gives_is_not_written_to(search):
    class Remembering(Toy):
        """Gives the same arrays when it is asked the same."""

        def __init__(self):
            super().__init__()
            self.known = {}

        def predict(self, contexts):
            key = tuple(contexts.flatten().tolist())
            return self.known.setdefault(key, super().predict(contexts))

        def join(self, encoder_out, decoder_out):
            key = tuple(encoder_out.flatten().tolist() + decoder_out.flatten().tolist())
            return self.known.setdefault(key, super().join(encoder_out, decoder_out))

    model, encoder_out, lens = Remembering(), torch.randn(1, 4, 16), torch.tensor([4])
    first = search(model, encoder_out, lens, options=LogitOptions(blank_penalty=0.7))
    kept = {key: value.clone() for key, value in model.known.items()}
    again = search(model, encoder_out, lens, options=LogitOptions(blank_penalty=0.7))
    assert first == again
    assert all(torch.equal(value, kept[key]) for key, value in model.known.items())


def test_searching_leaves_a_model_that_can_be_trained(search):
    class Lazy(Toy):
        """Makes a table when it is first needed."""

        table = None

        def join(self, encoder_out, decoder_out):
            if self.table is None:
                self.table = torch.eye(16)
            return super().join(encoder_out @ self.table, decoder_out)

    model = Lazy()
    search(model, torch.randn(1, 5, 16), torch.tensor([5]))
    model.join(
        torch.randn(2, 16, requires_grad=True), model.predict(torch.zeros(2, 2, dtype=torch.int64))
    ).sum().backward()


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_are_refused(size):
    given = Toy(), torch.randn(1, 5, 16), torch.tensor([5])
    with pytest.raises(ValueError, match=f"`max_symbols_per_frame` must be at least 1, but is {size}"):
        greedy_search(*given, max_symbols_per_frame=size)
    for search in (beam_search, modified_beam_search):
        with pytest.raises(ValueError, match=f"`beam_size` must be at least 1, but is {size}"):
            search(*given, beam_size=size)


def test_a_method_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`decoding_method` must be one of greedy_search, .*, but is 'beam'"):
        SearchConfig(decoding_method="beam")  # pyright: ignore


def test_hotwords_of_a_configuration_are_not_passed_over(tmp_path):
    config = SearchConfig("modified_beam_search", hotwords_file=tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"`scorer` is None.* `hotwords_file`.*make_scorer"):
        decode_encoder_out(Toy(), torch.randn(1, 5, 16), torch.tensor([5]), config)


def test_aligning_several_symbols_a_frame_must_be_allowed():
    model, encoder_out, lens = Toy(), torch.randn(1, 5, 16), torch.tensor([5])
    crowded = Hypothesis((3, 4), (2, 2), (-1.0, -1.0))
    with pytest.raises(ValueError, match="`max_symbols_per_frame` is 1, but hypothesis 0 "):
        align(model, encoder_out, lens, [crowded])
    (found,) = align(model, encoder_out, lens, [crowded], max_symbols_per_frame=None)
    assert 0 < found.confidence < 1


def test_a_batch_without_utterances_has_no_results(search):
    encoder_out, lens = torch.zeros(0, 4, 16), torch.zeros(0, dtype=torch.int64)
    assert search(Toy(), encoder_out, lens) == align(Toy(), encoder_out, lens, []) == []
