"""Hotwords of one sound: it is recognized as by a recognizer of its own, and what shares its batch as ever."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import soundfile
from served import ask, served
from tiny_talker import say
from websockets.sync.client import connect

from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.sounds import read_sound
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine, StreamingEngine

# so much that it is said whatever the sound is
CONFIG = SearchConfig("modified_beam_search", hotwords_score=30.0)
SEGMENTS = SegmentConfig(vad="energy", max_segment_s=5.0)


def _recognizer(talker, **options):
    options = {"config": CONFIG, "segments": SEGMENTS, "num_threads": 1} | options
    return Recognizer.from_pretrained(talker / "onnx", **options)


@pytest.fixture(scope="module")
def recognizer(talker):
    return _recognizer(talker)


@pytest.fixture(scope="module")
def address(recognizer):
    with served(PiecewiseEngine(recognizer, BatchConfig(max_wait_ms=200))) as found:
        yield found


@pytest.fixture(scope="module")
def wave():
    return say("今天气很好", np.random.default_rng(4))


@pytest.fixture
def sound(tmp_path, wave):
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    return tmp_path / "a.wav"


def test_pieces_of_a_batch_have_hotwords_of_their_own(talker, recognizer, wave):
    wanted = [[], ["吗吗"], ["好今", "气吗"]]
    alone = [_recognizer(talker, hotwords=own).transcribe([wave])[0].text for own in wanted]
    assert len(set(alone)) == 3
    (piece,) = recognizer.pipeline.pieces(read_sound(wave, 16000, warn=print))
    pieces = [replace(piece, phrases=recognizer.pipeline.scorers.spell(own)) for own in wanted]
    assert [segment.text for segment in recognizer.pipeline.recognize(pieces)] == alone


def test_a_call_has_hotwords_of_its_own(talker, recognizer, wave):
    alone = _recognizer(talker, hotwords=["吗吗"]).transcribe([wave])
    assert recognizer.transcribe([wave], hotwords=["吗吗"]) == alone
    assert list(recognizer.transcribe_each([wave, wave], hotwords=["吗吗"])) == 2 * alone
    assert tuple(recognizer.stream_transcribe(wave, hotwords=["吗吗"])) == alone[0].segments
    assert recognizer.transcribe([wave]) != alone
    with pytest.raises(ValueError, match="Hotwords need a search with a beam"):
        _recognizer(talker, config=SearchConfig()).transcribe([wave], hotwords=["吗吗"])


def test_hotwords_of_all_sounds_stay(talker, wave, tmp_path):
    (tmp_path / "names.txt").write_text("吗吗\n", encoding="utf-8")
    common = _recognizer(talker, config=replace(CONFIG, hotwords_file=tmp_path / "names.txt"))
    (piece,) = common.pipeline.pieces(read_sound(wave, 16000, warn=print))
    (found,) = common.pipeline.recognize([replace(piece, phrases=common.pipeline.scorers.spell(["好今"]))])
    (both,) = _recognizer(talker, hotwords=["吗吗", "好今"]).transcribe([wave])
    assert found.text == both.text


def test_uploads_at_once_have_their_own(talker, recognizer, address, sound, wave):
    wanted = [{}, {"hotwords": "吗吗"}, {"hotwords": ["好今", "气吗"]}, {"hotwords": "好今\n气吗\n"}]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda fields: ask(address, sound, **fields).json()["text"], wanted))
    alone = [_recognizer(talker, hotwords=own).transcribe([wave])[0].text for own in ([], ["吗吗"], ["好今", "气吗"])]
    assert found == [*alone, alone[-1]]
    assert httpx.get(f"{address}/health").json()["hotwords"] is True


def test_live_sound_has_its_own(address, wave):
    texts = []
    for options in ("", f"?hotwords={quote('吗吗')}%0A{quote('好今')}"):
        with connect(f"{address.replace('http', 'ws')}/v1/live{options}") as socket:
            socket.send(np.round(wave * 32767).astype("<i2").tobytes())
            socket.send("end")
            heard = [json.loads(message) for message in socket]
        texts.append("".join(each["text"] for each in heard if each["type"] == "final"))
    assert "吗吗" not in texts[0] and "吗吗" in texts[1]


def test_what_cannot_be_wanted_is_said(talker, address, tiny_model, sound):
    def refused(where, message):
        answer = ask(where, sound, hotwords="吗狗")
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
        with connect(f"{where.replace('http', 'ws')}/v1/live?hotwords={quote('吗狗')}") as socket:
            told = json.loads(socket.recv())
        assert told["type"] == "error" and message in told["message"]

    many = ask(address, sound, hotwords="今天\n" * 501)
    assert many.status_code == 400 and "have 1002 tokens, but 1000 are the most" in many.json()["error"]["message"]
    # before they are spelled, which would take time
    long = ask(address, sound, hotwords=["今天\n" * 4000] * 2)
    assert long.status_code == 400 and "24000 characters, but 20000 are the most" in long.json()["error"]["message"]
    refused(address, "hotwords: the model's tokens cannot spell `吗狗`: it lacks '狗'.")
    with served(PiecewiseEngine(_recognizer(talker, config=SearchConfig()), BatchConfig())) as greedy:
        refused(greedy, "Hotwords need a search with a beam")
    with served(StreamingEngine(StreamingRecognizer.from_pretrained(tiny_model().folder), BatchConfig())) as streaming:
        refused(streaming, "Hotwords need a search with a beam")
        assert httpx.get(f"{streaming}/health").json()["hotwords"] is False
