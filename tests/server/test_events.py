"""Answers in events: together they say what an answer without them says."""

from __future__ import annotations

import json
import threading
import time

import httpx
import numpy as np
import pytest
import soundfile
from served import ask, served, slowed, wait
from tiny_talker import say

from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.sounds import read_sound
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine, StreamingEngine


@pytest.fixture(scope="module")
def recognizer(talker):
    return Recognizer.from_pretrained(
        talker / "onnx", segments=SegmentConfig(vad="energy", max_segment_s=5.0), num_threads=1
    )


@pytest.fixture(scope="module")
def address(recognizer):
    with served(PiecewiseEngine(recognizer, BatchConfig())) as found:
        yield found


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sentences with pauses between them: many more than wait for the model at a time."""
    path, rng = tmp_path_factory.mktemp("sound") / "long.wav", np.random.default_rng(8)
    wave = [np.concatenate([say("今天气很好吗", rng), np.zeros(16000)]) for _ in range(12)]
    soundfile.write(path, np.concatenate(wave), 16000)
    return path


def _events(lines):
    """What is sent; each event is a line and an empty one."""
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def _of(found, kind):
    return [each for each in found if each.get("type") == f"transcript.text.{kind}"]


@pytest.mark.parametrize("wanted", ["json", "text", "verbose_json"])
def test_events_are_the_answer_in_parts(address, sound, wanted):
    words = {"timestamp_granularities[]": "word"} if wanted == "verbose_json" else {}
    whole = ask(address, sound, response_format="verbose_json", **words).json()
    answer = ask(address, sound, stream="true", response_format=wanted, **words)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    found = _events(answer.text.split("\n"))
    assert "".join(each["delta"] for each in _of(found, "delta")) == whole["text"]
    assert found[-1].pop("type") == "transcript.text.done"
    if wanted == "verbose_json":
        segments = [{name: each[name] for name in each if name != "type"} for each in _of(found, "segment")]
        assert len(segments) >= 8
        for each in (*segments, *found[-1]["segments"], *whole["segments"]):
            # other company in the batch, other rounding
            for name in ("confidence", "confidences", "log_probs", "words"):
                each.pop(name)
        assert segments == whole["segments"]
        assert len(found[-1].pop("words")) == len(whole.pop("words"))
        assert found[-1] == whole
    else:
        assert found[-1] == {"text": whole["text"]} and not _of(found, "segment")


def test_words_are_joined_with_blanks(tiny_model, sound):
    """A model that spells English: what deltas add has the blank before it."""
    with served(StreamingEngine(StreamingRecognizer.from_pretrained(tiny_model().folder), BatchConfig())) as address:
        found = _events(ask(address, sound, stream="true").text.split("\n"))
    assert found[-1]["text"] and "".join(each["delta"] for each in _of(found, "delta")) == found[-1]["text"]


def test_what_is_known_is_told_while_the_rest_is_worked_on(recognizer, sound):
    with slowed(recognizer, batches_at_once=1) as (engine, has_begun, may_go_on), served(engine) as address:
        url, form = f"{address}/v1/audio/transcriptions", {"stream": "true", "response_format": "verbose_json"}
        with sound.open("rb") as file, httpx.stream("POST", url, files={"file": file}, data=form) as answer:
            lines = answer.iter_lines()
            first = json.loads(next(lines).removeprefix("data: "))
            assert has_begun.wait(10) and not may_go_on.is_set()
            assert first["type"] == "transcript.text.delta" and first["delta"]
            assert httpx.get(f"{address}/health").json()["uploads"] == 1
            may_go_on.set()
            assert _events(lines)[-1]["type"] == "transcript.text.done"
        wait(lambda: httpx.get(f"{address}/health").json()["uploads"] == 0)


def test_a_client_that_has_gone_is_not_worked_for(recognizer, sound):
    seen = []
    with slowed(recognizer, batches_at_once=1) as (engine, has_begun, may_go_on), served(engine) as address:
        slowly = engine._batcher._answers_to
        engine._batcher._answers_to = lambda pieces: seen.extend(pieces) or slowly(pieces)
        url, form = f"{address}/v1/audio/transcriptions", {"stream": "true"}
        with sound.open("rb") as file, httpx.stream("POST", url, files={"file": file}, data=form) as answer:
            # an iterator that nobody holds closes the connection
            lines = answer.iter_lines()
            next(lines)
            assert has_begun.wait(10)
        wait(lambda: httpx.get(f"{address}/health").json()["uploads"] == 0)
        may_go_on.set()
        wait(lambda: httpx.get(f"{address}/health").json()["waiting_s"] == 0)
    assert len(seen) < len(list(recognizer.pipeline.pieces(read_sound(sound, 16000, warn=print))))


def test_a_sound_that_is_still_read_stays_open(recognizer, sound, monkeypatch):
    """The thread of a client that has gone comes to its end some time after the answer."""
    engine, read, done = PiecewiseEngine(recognizer, BatchConfig()), [], threading.Event()

    def transcribe(sound, is_abandoned, tell):
        tell(recognizer.transcribe([np.zeros(1600, np.float32) + 0.1])[0].segments[0])
        wait(is_abandoned)
        time.sleep(0.3)
        try:
            read.append(sound.file.read(4))
        finally:
            done.set()

    monkeypatch.setattr(engine, "transcribe", transcribe)
    with served(engine) as address:
        url, form = f"{address}/v1/audio/transcriptions", {"stream": "true", "response_format": "verbose_json"}
        with sound.open("rb") as file, httpx.stream("POST", url, files={"file": file}, data=form) as answer:
            lines = answer.iter_lines()
            next(lines)
        assert done.wait(10)
    assert read == [b"RIFF"]


def test_what_goes_wrong_on_the_way_is_the_last_event(recognizer, sound):
    with slowed(recognizer, batches_at_once=1) as (engine, has_begun, may_go_on), served(engine) as address:
        url, form = f"{address}/v1/audio/transcriptions", {"stream": "true"}
        with sound.open("rb") as file, httpx.stream("POST", url, files={"file": file}, data=form) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert has_begun.wait(10)
            closing = threading.Thread(target=engine.close)
            closing.start()
            may_go_on.set()
            last = _events(lines)[-1]
            closing.join()
    assert last["error"]["code"] == 503 and "being stopped" in last["error"]["message"]


def test_an_error_of_the_servers_on_the_way_is_told_too(recognizer, sound):
    engine, recognize, done = PiecewiseEngine(recognizer, BatchConfig()), None, []
    recognize = engine._batcher._answers_to

    def once(pieces):
        if done:
            raise RuntimeError("the GPU is full")
        done.append(pieces)
        return recognize(pieces)

    engine._batcher._answers_to = once
    with served(engine) as address:
        found = _events(ask(address, sound, stream="true").text.split("\n"))
    assert _of(found, "delta") and found[-1]["error"]["code"] == 500 and "RuntimeError" in found[-1]["error"]["message"]


@pytest.mark.sweep
def test_words_of_a_model_that_does_not_know_them_are_an_error(tiny_model, sound):
    plain = StreamingRecognizer.from_pretrained(tiny_model().folder, details=DetailConfig(align=False))
    with served(StreamingEngine(plain, BatchConfig())) as address:
        asked = {"response_format": "verbose_json", "timestamp_granularities[]": "word", "stream": "true"}
        found = _events(ask(address, sound, **asked).text.split("\n"))
    assert "`align=True`" in found[-1]["error"]["message"]
