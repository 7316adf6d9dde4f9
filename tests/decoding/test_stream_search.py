"""Searches carried from chunk to chunk against the searches of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from as_on_a_device import as_on_a_device

from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Hotwords, Scorer, SumOfScorers
from stateless_transducer.decoding.language_model import NgramScorer
from stateless_transducer.decoding.search import decode_encoder_out
from stateless_transducer.decoding.stream_search import (
    FLUSH_S,
    StreamSearch,
    decode_features_in_chunks,
    num_common_tokens,
)
from stateless_transducer.features import FbankConfig
from stateless_transducer.text.ngram import read_arpa
from stateless_transducer.text.tokens import build_token_table

BLANK, UNKNOWN, VOCAB_SIZE, DIM = 0, 2, 12, 16


class Toy(torch.nn.Module):
    """Decoder and joiner, sharp enough that hypotheses differ."""

    blank_id, context_size, vocab_size = BLANK, 2, VOCAB_SIZE

    def __init__(self):
        super().__init__()
        self.embedding, self.output = torch.nn.Embedding(VOCAB_SIZE, DIM), torch.nn.Linear(DIM, VOCAB_SIZE)
        with torch.no_grad():
            self.output.weight *= 6
            self.output.bias[BLANK] += 2

    def predict(self, contexts):
        return self.embedding(contexts).cumsum(1)[:, -1]

    def join(self, encoder_out, decoder_out):
        return self.output(torch.tanh(encoder_out + decoder_out))


BEAM = SearchConfig("modified_beam_search", blank_penalty=0.5, temperature=1.2)
CONFIGS = {
    "greedy": SearchConfig(),
    "two symbols": SearchConfig(max_sym_per_frame=2, temperature=0.8),
    "beam": BEAM,
    "large beam": replace(BEAM, beam_size=9, length_norm=0.3),
}


def _hotwords(*phrases):
    return Hotwords([[(phrase, 3.0) for phrase in phrases]], vocab_size=VOCAB_SIZE)


def _carried(search, sounds, scorers):
    """Final and stable hypotheses of sounds (T, D) as streams, which begin and end at different times."""
    rng = np.random.default_rng(1)
    states = [search.start(scorer) for scorer in scorers]
    done, stable = [0] * len(sounds), [()] * len(sounds)
    while any(frames < len(sound) for frames, sound in zip(done, sounds, strict=True)):
        active = [n for n, sound in enumerate(sounds) if done[n] < len(sound) and rng.random() < 0.6]
        if not active:
            continue
        rng.shuffle(active)
        T = min(int(rng.integers(1, 9)), *(len(sounds[n]) - done[n] for n in active))
        encoder_out = torch.stack([sounds[n][done[n] : done[n] + T] for n in active])
        before = [states[n] for n in active]
        after, again = search.advance(encoder_out, before), search.advance(encoder_out, before)
        for n, state, twin in zip(active, after, again, strict=True):
            # a state is a value: advancing it twice gives the same
            assert state.hypotheses == twin.hypotheses
            states[n] = state
            done[n] += T
            ranked = search.ranked(state, is_final=False)
            tokens = ranked[0].tokens[: num_common_tokens(ranked)]
            assert tokens[: len(stable[n])] == stable[n]
            stable[n] = tokens
    return [search.ranked(state) for state in states], stable


@pytest.mark.parametrize("way", ["host", "device"])
@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_give_what_the_whole_gives(name, way, device):
    """For streams of any age in one batch, with scorers of their own, on the host and as on a GPU."""
    config, model = CONFIGS[name], Toy().to(device)
    sounds = [torch.randn(length, DIM, device=device) for length in (31, 9, 1, 23, 17)]
    hotwords, total = _hotwords((5, 3)), SumOfScorers([_hotwords((7, 7), (1,)), _hotwords((4, 5, 6))])
    scorers = [hotwords, total, None, hotwords, _hotwords((8,))]
    if config.decoding_method == "greedy_search":
        scorers = [None] * len(sounds)
    search = StreamSearch(model, config)
    if way == "device":
        carried, stable = as_on_a_device(_carried, search, sounds, scorers)
    else:
        carried, stable = _carried(search, sounds, scorers)
    num_tokens = 0
    for sound, scorer, ranked, common in zip(sounds, scorers, carried, stable, strict=True):
        (whole,) = decode_encoder_out(model, sound[None], torch.tensor([len(sound)]), config, scorer)
        assert [(h.tokens, h.frames) for h in ranked] == [(h.tokens, h.frames) for h in whole]
        for mine, other in zip(ranked, whole, strict=True):
            assert mine.score == pytest.approx(other.score, abs=1e-4)
            assert mine.log_probs == pytest.approx(other.log_probs, abs=1e-4)
            assert mine.tokens[: len(common)] == common
        num_tokens += len(whole[0].tokens)
    assert num_tokens > 20 and sum(map(len, stable)) > 8


class _Frames:
    """Says what the frame asks for (one-hot), unless the last token is 5: then 3. A decoder's output is that token."""

    blank_id, context_size, vocab_size = BLANK, 2, 6

    def predict(self, contexts):
        return contexts[:, 1:].astype(np.float32)

    def join(self, encoder_out, decoder_out):
        return 4 * encoder_out + 9 * (decoder_out == 5) * np.eye(6, dtype=np.float32)[3]


def _of(*symbols):
    """(1, T, D) of the symbols that frames ask for."""
    return np.eye(6, dtype=np.float32)[np.array([symbols])]


@pytest.mark.parametrize("config", [SearchConfig(), SearchConfig("modified_beam_search")], ids=lambda c: c.key)
def test_unknown_token_is_a_blank(config, tmp_path):
    search = StreamSearch(_Frames(), config, unknown_id=UNKNOWN)
    scorers: list[Scorer | None] = [None]
    if config.decoding_method != "greedy_search":
        arpa = tmp_path / "lm.arpa"
        arpa.write_text("\\1-grams:\n-1 </s>\n-99 <s>\n-3 <unk>\n-0.5 a\n-0.7 b\n-0.9 c\n\\end\\\n")
        ngrams = read_arpa(arpa, build_token_table(["abc"], "char"))
        scorers += [Hotwords([[((4, 3), 3.0)]], vocab_size=6), NgramScorer(ngrams, scale=0.5)]
    for scorer in scorers:
        ranked = []
        for symbol in (UNKNOWN, BLANK):
            (state,) = search.advance(_of(4, symbol, symbol, 3), [search.start(scorer)])
            ranked.append(search.ranked(state))
        best = ranked[0][0]
        assert (best.tokens, best.frames, state.num_frames) == ((4, 3), (0, 3), 4)
        # no scorer has a price for it
        assert [h.score for h in ranked[0]] == pytest.approx([h.score for h in ranked[1]], abs=1e-5)


@pytest.mark.parametrize("config", [SearchConfig(), SearchConfig("modified_beam_search")], ids=lambda c: c.key)
def test_segment_after_an_endpoint_continues_from_the_last_tokens(config):
    search = StreamSearch(_Frames(), config)
    (state,) = search.advance(_of(5), [search.start()])
    after = search.restart(state)
    assert (after.context, after.num_frames, after.hypotheses[0].tokens) == ((0, 5), 0, ())
    (state,) = search.advance(_of(0), [after])
    assert search.ranked(state)[0].tokens == (3,), "the decoder should still see the 5"
    assert search.restart(search.restart(after)).context == (0, 0), "a segment without tokens starts anew"


def test_first_token_after_a_silent_segment_is_scored_as_before_it():
    """As in sherpa-onnx."""
    search = StreamSearch(_Frames(), SearchConfig())
    (state,) = search.advance(_of(5), [search.start()])
    fresh = search.restart(search.restart(state))
    (state,) = search.advance(_of(0, 0), [fresh])
    assert (fresh.context, search.ranked(state)[0].tokens) == ((0, 0), (3,))


def test_output_that_is_not_finite_ends_the_hypothesis():
    for config in (SearchConfig(), SearchConfig("modified_beam_search")):
        search = StreamSearch(_Frames(), config)
        states = search.advance(np.concatenate([_of(4), _of(1)]), [search.start(), search.start()])
        spoiled = np.concatenate([_of(4) * np.nan, _of(1)])
        lost, well = (search.ranked(state) for state in search.advance(spoiled, states))
        assert np.isnan(lost[0].score) and lost[0].tokens == () and well[0].tokens == (1, 1)


class _Chunks(_Frames):
    """Encoder of three frames at a time, for which silence asks for a blank; a state is the number of frames so far."""

    fbank_config, chunk_shift, chunk_frames = FbankConfig(frame_shift_ms=20), 3, 3

    def __init__(self):
        self.num_frames = 0

    def initial_state(self):
        return 0

    def encode_chunk(self, features, states):
        self.num_frames = max(self.num_frames, *(state + 3 for state in states))
        return np.where(features < 0, _of(BLANK), features), [state + 3 for state in states]


@pytest.mark.parametrize("config", [SearchConfig(), SearchConfig("modified_beam_search")], ids=lambda c: c.key)
def test_test_set_is_decoded_as_live_sound_is(config):
    features, lens = np.concatenate([_of(4, 2, 3, 1, 2), _of(1, 2, 4, 5, 5)]), np.array([5, 3])
    for unknown_id, expected in ((None, [(4, 2, 3, 1, 2), (1, 2, 4)]), (UNKNOWN, [(4, 3, 1), (1, 4)])):
        model = _Chunks()
        best = decode_features_in_chunks(model, features, lens, config, unknown_id=unknown_id)
        assert [hypothesis.tokens for hypothesis in best] == expected
        # half a second of frames of 20 ms, in whole chunks
        assert 5 + FLUSH_S / 0.02 <= model.num_frames < 5 + FLUSH_S / 0.02 + 3
    with pytest.raises(ValueError, match="not finite for utterance 2 of a batch of 2"):
        decode_features_in_chunks(_Chunks(), features * [[[1]], [[np.nan]]], lens, config)


def test_graves_beam_search_is_refused():
    with pytest.raises(ValueError, match="`decoding_method` beam_search .*modified_beam_search"):
        StreamSearch(_Frames(), SearchConfig("beam_search"))
