"""Live sound with a causal checkpoint, beside the same model on whole sounds."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_talker import TOKENS, say, some_text

from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.streaming import StreamingRecognizer

BEAM = SearchConfig("modified_beam_search", hotwords_score=3.0)
# the talker pauses within a sound
NO_RULES = EndpointRules(*(1e3,) * 3)
CHUNKS = {"chunk_ms": 320, "left_ms": 640}


@pytest.fixture(scope="module")
def spoken():
    """Texts and sounds that the model has not seen; 0.1 s of silence may be all before the first word."""
    rng = np.random.default_rng(9)
    texts = [some_text(rng) for _ in range(16)]
    return [(text, say(text, rng)) for text in texts]


def _live(path, config=None, **options):
    return StreamingRecognizer.from_pretrained(path, config, rules=NO_RULES, device="cpu", **{**CHUNKS, **options})


def _together(recognizer, sounds, hotwords=None):
    """Final segments of sounds as streams that receive 50 ms at a time, and their partial results."""
    streams = [recognizer.create_stream(phrases) for phrases in hotwords or [()] * len(sounds)]
    partial = [[] for _ in sounds]
    for start in range(0, max(map(len, sounds)) + 800, 800):
        for stream, sound in zip(streams, sounds, strict=True):
            if start < len(sound):
                stream.accept(sound[start : start + 800], 16000)
            else:
                stream.finish()
        while recognizer.advance(streams):
            for stream, results in zip(streams, partial, strict=True):
                results.append(stream.result)
    return [stream.result for stream in streams], partial


def test_first_and_last_words_are_not_lost(live_talker, spoken):
    """Streams recall as many of both as the whole sound does."""
    offline = Recognizer.from_pretrained(live_talker, device="cpu", segments=SegmentConfig(vad="none"))
    texts, sounds = zip(*spoken, strict=True)
    whole = [transcript.text for transcript in offline.transcribe(list(sounds))]
    assert sum(map(str.__eq__, whole, texts)) > 0.8 * len(texts)
    for config in (SearchConfig(), BEAM):
        segments, _ = _together(_live(live_talker, config), sounds)
        for place in (0, -1):
            recall, offline_recall = (
                sum(text[place] == heard[place : place + 1 or None] for text, heard in zip(texts, results, strict=True))
                for results in ([segment.text for segment in segments], whole)
            )
            assert recall >= offline_recall


def test_results_grow_and_end_with_details(live_talker, spoken):
    _, sounds = zip(*spoken, strict=True)
    details = DetailConfig(nbest=3)
    final, partial = _together(_live(live_talker, BEAM, details=details), sounds[:6])
    assert sum(len(segment.tokens) for segment in final) > 10
    num_stable = 0
    for segment, sound, results in zip(final, sounds, partial, strict=False):
        unfinished = [result for result in results if result.num_stable_tokens is not None]
        for result in unfinished:
            stable = result.num_stable_tokens
            # what is stable once is part of all later results
            assert segment.tokens[:stable] == result.tokens[:stable] and not result.starts
        num_stable += max(result.num_stable_tokens for result in unfinished)
        assert segment.num_stable_tokens is None and segment.alternatives
        assert len(segment.starts) == len(segment.ends) == len(segment.confidences) == len(segment.tokens)
        assert "".join(word.word for word in segment.words) == segment.text
        bounds = [time for span in zip(segment.starts, segment.ends, strict=True) for time in span]
        assert bounds == sorted(bounds) and 0 <= bounds[0] and bounds[-1] <= len(sound) / 16000 + 1e-3
        assert all(start - 0.3 <= time for start, time in zip(segment.starts, segment.times, strict=True))
        assert 0 < segment.confidence <= 1
    assert num_stable > 0
    # alone, without details
    (plain,) = _live(live_talker, BEAM, details=DetailConfig(align=False)).transcribe(sounds[0]).segments
    assert (plain.tokens, plain.times, plain.starts) == (final[0].tokens, final[0].times, ())


def test_hotwords_belong_to_a_stream(live_talker, spoken):
    recognizer, (_, sound) = _live(live_talker, BEAM), spoken[0]
    boosted = [["吗吗"], [], ["天今", "好好"]]
    segments, _ = _together(recognizer, [sound] * 3, boosted)
    alone = [recognizer.transcribe(sound, hotwords=phrases).segments[0] for phrases in boosted]
    assert [segment.tokens for segment in segments] == [segment.tokens for segment in alone]
    # strong enough to appear in sounds that do not contain it
    loud = _live(live_talker, SearchConfig("modified_beam_search", hotwords_score=60.0))
    with_hotword, without = _together(loud, [sound] * 2, [["吗吗吗"], []])[0]
    assert with_hotword.text != without.text == alone[1].text and "吗吗吗" in with_hotword.text
    with pytest.raises(ValueError, match="Hotwords need a search with a beam"):
        _live(live_talker).create_stream(["今天"])


def test_segments_of_a_long_sound_follow_each_other(live_talker, spoken):
    pause = np.zeros(24000, np.float32)
    sound = np.concatenate([part for _, wave in spoken[:4] for part in (wave, pause)]).astype(np.float32)
    rules = EndpointRules(rule2_min_trailing_silence=0.8)
    recognizer = StreamingRecognizer.from_pretrained(live_talker, rules=rules, device="cpu", **CHUNKS)
    transcript = recognizer.transcribe(sound)
    assert len(transcript.segments) == 4 and transcript.spans
    ends = [(segment.start, *segment.starts, segment.end) for segment in transcript.segments]
    assert sum(ends, ()) == tuple(sorted(sum(ends, ())))
    assert len(transcript.confidences) == len(transcript.tokens)
    whole = "".join(text for text, _ in spoken[:4])
    assert len(transcript.text) == pytest.approx(len(whole), abs=2)


def test_models_of_whole_utterances_are_refused(talker, live_talker):
    with pytest.raises(ValueError, match="--causal true"):
        StreamingRecognizer.from_pretrained(talker / "model.pt")
    with pytest.raises(ValueError, match="`chunk_ms` must be a multiple of 40 ms, but is 50"):
        _live(live_talker, chunk_ms=50)
    with pytest.raises(ValueError, match="`precision` int8"):
        _live(live_talker, precision="int8")
    assert len(TOKENS) == _live(live_talker).vocab_size
