"""What all searches share, on a small model with random weights."""

from __future__ import annotations

import pytest
import torch
from as_on_a_device import beam_search_in_arrays
from slow_search import slow_modified_beam_search

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.options import PLAIN, LogitOptions
from stateless_transducer.decoding.search import decode_features
from stateless_transducer.ops.subsampling import Subsampling


class Toy(torch.nn.Module):
    """Decoder and joiner of a transducer, sharp enough that hypotheses differ."""

    def __init__(self, vocab_size=12, dim=16, context_size=2, blank_id=0):
        super().__init__()
        self.blank_id, self.context_size = blank_id, context_size
        self.embedding = torch.nn.Embedding(vocab_size, dim)
        self.output = torch.nn.Linear(dim, vocab_size)
        with torch.no_grad():
            self.output.weight *= 6
            self.output.bias[blank_id] += 2

    def predict(self, contexts):
        return self.embedding(contexts).cumsum(1)[:, -1]

    def join(self, encoder_out, decoder_out):
        return self.output(torch.tanh(encoder_out + decoder_out))


@pytest.fixture
def lens():
    return torch.tensor([9, 23, 0, 17, 1])


@pytest.fixture
def encoder_out(lens):
    return torch.randn(len(lens), 23, 16)


def _all(model, encoder_out, lens, options=PLAIN):
    device = next(model.parameters()).device
    encoder_out, lens = encoder_out.to(device), lens.to(device)
    yield [[best] for best in greedy_search(model, encoder_out, lens, options=options)]
    yield modified_beam_search(model, encoder_out, lens, beam_size=4, options=options)
    yield beam_search(model, encoder_out, lens, beam_size=4, options=options)


@pytest.mark.parametrize("blank_id", [0, 11])
@pytest.mark.parametrize("context_size", [1, 2, 3])
@pytest.mark.parametrize("beam_size", [1, 2, 4, 7])
def test_modified_beam_search_equals_the_slow_one(beam_size, context_size, blank_id, lens, encoder_out, device):
    model = Toy(context_size=context_size, blank_id=blank_id)
    wanted = slow_modified_beam_search(model, encoder_out, lens, beam_size)
    model.to(device)
    found = modified_beam_search(model, encoder_out.to(device), lens.to(device), beam_size=beam_size)
    for mine, other in zip(found, wanted, strict=True):
        assert [h.tokens for h in mine] == [tokens for tokens, _, _ in other]
        assert [h.frames for h in mine] == [frames for _, frames, _ in other]
        assert [h.score for h in mine] == pytest.approx([log_prob for _, _, log_prob in other], abs=1e-4)


def test_a_beam_of_one_is_greedy(lens, encoder_out, device):
    model = Toy().to(device)
    beam = modified_beam_search(model, encoder_out.to(device), lens.to(device), beam_size=1)
    greedy = greedy_search(model, encoder_out.to(device), lens.to(device))
    assert [ranked[0].tokens for ranked in beam] == [best.tokens for best in greedy]
    assert [ranked[0].frames for ranked in beam] == [best.frames for best in greedy]
    for ranked, best in zip(beam, greedy, strict=True):
        assert ranked[0].log_probs == pytest.approx(best.log_probs, abs=1e-5)


def test_utterances_do_not_depend_on_their_batch(lens, encoder_out, device):
    model = Toy().to(device)
    together = list(_all(model, encoder_out, lens))
    for n in range(len(lens)):
        length = int(lens[n])
        alone = _all(model, encoder_out[n : n + 1, : max(length, 1)], lens[n : n + 1])
        for mine, other in zip(alone, together, strict=True):
            assert [h.tokens for h in mine[0]] == [h.tokens for h in other[n]]


def test_padding_is_not_listened_to(lens, encoder_out, device):
    model = Toy().to(device)
    wanted = list(_all(model, encoder_out, lens))
    for n, length in enumerate(lens.tolist()):
        encoder_out[n, length:] = torch.nan
    assert list(_all(model, encoder_out, lens)) == wanted


def test_an_utterance_without_frames_says_nothing(lens, encoder_out, device):
    for results in _all(Toy().to(device), encoder_out, lens):
        assert results[2][0].tokens == () and results[2][0].frames == ()


def test_hypotheses_are_ranked_and_different(lens, encoder_out, device):
    for results in list(_all(Toy().to(device), encoder_out, lens))[1:]:
        for ranked in results:
            scores = [h.score / (len(h.tokens) + 2) for h in ranked]
            assert scores == sorted(scores, reverse=True)
            assert len({h.tokens for h in ranked}) == len(ranked)
    assert max(len(ranked) for ranked in results) == 4


def test_blank_penalty_gives_more_tokens(lens, encoder_out, device):
    model = Toy().to(device)
    plain = list(_all(model, encoder_out, lens))
    eager = list(_all(model, encoder_out, lens, LogitOptions(blank_penalty=3.0)))
    for few, many in zip(plain, eager, strict=True):
        assert sum(len(ranked[0].tokens) for ranked in few) < sum(len(ranked[0].tokens) for ranked in many)


def test_temperature_changes_how_sure_greedy_search_is_and_not_what_it_says(lens, encoder_out, device):
    model = Toy().to(device)
    plain, *_ = _all(model, encoder_out, lens)
    flat, *_ = _all(model, encoder_out, lens, LogitOptions(temperature=2.0))
    assert [ranked[0].tokens for ranked in plain] == [ranked[0].tokens for ranked in flat]
    assert sum(ranked[0].score for ranked in flat) < sum(ranked[0].score for ranked in plain)


def test_beam_larger_than_the_vocabulary(lens, encoder_out, device):
    model = Toy(vocab_size=3).to(device)
    for find in (modified_beam_search, beam_search):
        results = find(model, encoder_out.to(device), lens.to(device), beam_size=9)
        assert all(len(ranked) >= 1 for ranked in results)


def test_greedy_search_says_several_symbols_a_frame(lens, encoder_out, device):
    model = Toy().to(device)
    encoder_out, lens = encoder_out.to(device), lens.to(device)
    one, three = (greedy_search(model, encoder_out, lens, max_symbols_per_frame=s) for s in (1, 3))
    assert sum(len(h.tokens) for h in three) > sum(len(h.tokens) for h in one)
    assert max(h.frames.count(frame) for h in three for frame in h.frames) in (2, 3)


def test_a_long_utterance_is_read_back_in_order(device):
    model = Toy(vocab_size=5, dim=4).to(device)
    frames = torch.randn(1, 1500, 4, device=device)
    (ranked,) = modified_beam_search(model, frames, torch.tensor([1500], device=device), beam_size=4)
    assert len(ranked[0].tokens) > 150
    assert ranked[0].frames == tuple(sorted(set(ranked[0].frames)))


@pytest.mark.parametrize("method", ["modified_beam_search", "beam_search"])
def test_model_without_numbers_is_named(method, device, monkeypatch):
    model = Toy().to(device)
    model.subsampling = Subsampling(factor=4, min_frames=7)
    model.encode = lambda features, lens: (torch.full((2, 5, 16), torch.nan, device=device), lens)
    lens = torch.tensor([5, 5], device=device)
    monkeypatch.setattr("stateless_transducer.decoding.search.beam_search", beam_search_in_arrays)
    with pytest.raises(ValueError, match="not finite for utterance 1 of a batch of 2"):
        decode_features(model, torch.zeros(2, 23, 80, device=device), lens, SearchConfig(method, beam_size=2))


@pytest.mark.parametrize("N", [0, 2])
def test_batch_of_nothing_says_nothing(N, device):
    model, lens = Toy().to(device), torch.zeros(N, dtype=torch.int64, device=device)
    for find in (beam_search, beam_search_in_arrays, modified_beam_search):
        found = find(model, torch.zeros(N, 0, 16, device=device), lens)
        assert [[h.tokens for h in own] for own in found] == [[()]] * N


def test_results_of_other_settings_have_other_names():
    settings = ({}, {"blank_penalty": 1.5}, {"temperature": 2.0}, {"decoding_method": "beam_search"}, {"beam_size": 8})
    settings = [*settings, {"decoding_method": "beam_search", "beam_size": 8}]
    names = [SearchConfig(**setting).suffix(2) for setting in settings]
    assert names[1] == "context-2-max-sym-per-frame-1-blank-penalty-1.5"
    assert len(set(names)) == len(names) - 1  # greedy search has no beam


@pytest.mark.parametrize(
    ("option", "files"),
    [
        ("ngram_lm", ["lm.3gram.arpa", "lm.4gram.arpa.gz", "b/lm.3gram.arpa"]),
        ("lodr_lm", ["lm.2gram.arpa", "lm.3gram.arpa", "b/lm.2gram.arpa"]),
        ("hotwords_file", ["names.txt", "names", "b/names.txt"]),
    ],
)
def test_results_with_other_files_have_other_names(tmp_path, option, files):
    (tmp_path / "b").mkdir()
    suffixes = []
    for name in [*files, files[0]]:
        # the last takes the place of the first
        (tmp_path / name).write_text(f"{len(suffixes)}")
        suffixes.append(SearchConfig("modified_beam_search", **{option: tmp_path / name}).suffix(2))
    assert len(set(suffixes)) == len(suffixes)
    (tmp_path / "b" / files[0]).write_bytes((tmp_path / files[0]).read_bytes())
    moved = SearchConfig("modified_beam_search", **{option: tmp_path / "b" / files[0]})
    assert moved.suffix(2) == suffixes[-1]


@pytest.mark.parametrize("setting", ["beam_size", "max_sym_per_frame", "temperature"])
def test_bad_setting_is_named(setting):
    with pytest.raises(ValueError, match=rf"`{setting}` must be (at least 1|above 0), but is 0"):
        SearchConfig(**{setting: 0})


@pytest.mark.parametrize(
    ("method", "most", "is_modified"),
    [
        ("greedy_search", 1, True),
        ("greedy_search", 3, False),
        ("modified_beam_search", 3, True),
        ("beam_search", 1, False),
    ],
)
def test_symbols_of_a_frame_are_greedy_searchs_option_alone(method, most, is_modified):
    assert SearchConfig(method, max_sym_per_frame=most).is_modified == is_modified
