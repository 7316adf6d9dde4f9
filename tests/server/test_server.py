"""A real server on a loopback port: what it answers is what the recognizer says, for many at once, files and live."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import httpx
import numpy as np
import pytest
import soundfile
from processes import listen_to_sigint
from served import ask, running, served, slowed, wait
from tiny_talker import say, some_text
from warm import interpreter
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from stateless_transducer.cli import main
from stateless_transducer.commands.serve import _listening
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.formats import document
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.sounds import read_sound
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.server.app import Service
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine, StreamingEngine
from stateless_transducer.server.lifecycle import _Server, configure

SEGMENTS = SegmentConfig(vad="energy", max_segment_s=5.0)


@pytest.fixture(scope="module")
def recognizer(talker):
    return Recognizer.from_pretrained(talker / "onnx", segments=SEGMENTS, num_threads=1)


@pytest.fixture(scope="module")
def address(recognizer):
    with served(PiecewiseEngine(recognizer, BatchConfig()), max_upload_mb=1.0, max_live=2) as found:
        yield found


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Files of one sentence and of many, of several rates, with what is said in them."""
    folder, rng, made = tmp_path_factory.mktemp("sounds"), np.random.default_rng(3), {}
    for number in range(6):
        texts = [some_text(rng) for _ in range(1 if number < 4 else 5)]
        wave = np.concatenate([np.concatenate([say(text, rng), np.zeros(16000, np.float32)]) for text in texts])
        path = folder / f"{number}.wav"
        soundfile.write(path, wave, 16000)
        made[path] = texts
    return made


def test_many_at_once_get_what_each_would_get_alone(address, recognizer, sounds):
    paths = list(sounds) * 3
    with ThreadPoolExecutor(len(paths)) as pool:
        answers = list(pool.map(lambda path: ask(address, path, response_format="verbose_json").json(), paths))
    num_found = 0
    for path, answer in zip(paths, answers, strict=True):
        (alone,) = recognizer.transcribe([path])
        assert answer["text"] == alone.text
        num_found += len(set(sounds[path]) & {segment["text"] for segment in answer["segments"]})
        assert answer["duration"] == alone.duration and answer["warnings"] == list(alone.warnings)
        for found, wanted in zip(answer["segments"], alone.segments, strict=True):
            for name in ("text", "start", "end", "starts", "ends"):
                assert found[name] == json.loads(json.dumps(getattr(wanted, name)))
            # other company in the batch, other rounding
            assert found["confidences"] == pytest.approx(wanted.confidences, abs=2e-3)
    # and the model knows what it says
    assert num_found > 0.6 * sum(map(len, sounds.values())) * 3


@pytest.mark.parametrize("wanted", ["json", "text", "srt", "vtt", "tsv", "TextGrid"])
def test_each_format_is_the_one_that_transcribe_writes(address, recognizer, sounds, wanted):
    path = list(sounds)[-1]
    (alone,) = recognizer.transcribe([path])
    answer = ask(address, path, response_format=wanted, model="whisper-1", language="zh")
    assert answer.status_code == 200
    if wanted == "json":
        assert answer.json() == {"text": alone.text}
    elif wanted == "text":
        assert answer.text == alone.text + "\n"
    else:
        assert answer.text == document(wanted, path.name, alone, recognizer.token_table)
        assert answer.headers["content-type"].startswith({"vtt": "text/vtt"}.get(wanted, "text/"))


def test_a_channel_can_be_chosen(address, sounds, tmp_path):
    path = next(iter(sounds))
    wave, rate = soundfile.read(path)
    soundfile.write(tmp_path / "two.wav", np.stack([np.zeros_like(wave), wave], axis=1), rate)
    assert ask(address, tmp_path / "two.wav", channel=1).json()["text"] == sounds[path][0]
    assert ask(address, tmp_path / "two.wav", channel=0).json()["text"] == ""
    error = ask(address, tmp_path / "two.wav", channel=2)
    assert error.status_code == 400 and "channel" in error.json()["error"]["message"]


def test_what_cannot_be_used_is_said_in_a_line(address, sounds, tmp_path):
    def refused(answer, status, message):
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["code"] == status and re.search(message, error["message"]), error
        assert "Traceback" not in answer.text

    (tmp_path / "no.wav").write_bytes(b"hello" * 100)
    refused(ask(address, tmp_path / "no.wav"), 400, r"^no\.wav: not a sound file")
    refused(ask(address, next(iter(sounds)), response_format="docx"), 400, "`response_format`: Input should be 'json'")
    refused(httpx.post(f"{address}/v1/audio/transcriptions"), 400, "`file`: Field required")
    twice = [("file", path.read_bytes()) for path in list(sounds)[:2]]
    refused(httpx.post(f"{address}/v1/audio/transcriptions", files=twice), 400, "has one `file`")
    refused(httpx.get(f"{address}/nowhere"), 404, "Not Found")
    refused(ask(address, next(iter(sounds)), stream="true", response_format="srt"), 400, "`stream` needs .* not srt")
    refused(ask(address, tmp_path / "no.wav", stream="true"), 400, r"^no\.wav: not a sound file")
    (tmp_path / "large.wav").write_bytes(bytes(2**20 + 1))
    refused(ask(address, tmp_path / "large.wav"), 413, "The request is larger than 1 MiB")


def test_a_large_request_of_unknown_length_is_refused(address):
    def parts():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**16)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{address}/v1/audio/transcriptions", content=parts(), headers=headers)
    assert answer.status_code == 413 and "larger than 1 MiB" in answer.json()["error"]["message"]


def test_pages_of_other_origins_are_let_in_by_name(recognizer, address, sounds, tmp_path):
    (tmp_path / "large.wav").write_bytes(bytes(2**20 + 1))
    home, path, other = "https://a.org", "/v1/audio/transcriptions", [403, 403]
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    def allowed(where, origin, expected=(200, 413)):
        """What a browser learns of: its question before, an answer, a refusal."""
        asked = httpx.options(f"{where}{path}", headers={"Origin": origin, **wish})
        answers = []
        for sound in (next(iter(sounds)), tmp_path / "large.wav"):
            with sound.open("rb") as file:
                answers.append(httpx.post(f"{where}{path}", files={"file": file}, headers={"Origin": origin}))
        assert [answer.status_code for answer in answers] == list(expected)
        return [answer.headers.get("access-control-allow-origin") for answer in (asked, *answers)]

    with served(PiecewiseEngine(recognizer, BatchConfig()), origins=[home], max_upload_mb=1) as where:
        assert allowed(where, home) == [home] * 3
        assert allowed(where, "https://b.org", other) == [None] * 3
    with served(PiecewiseEngine(recognizer, BatchConfig()), origins=["*"], max_upload_mb=1) as where:
        assert allowed(where, home) == ["*"] * 3
    assert allowed(address, home, other) == [None] * 3
    # its own page
    assert allowed(address, address) == [None] * 3


@pytest.fixture
def slow(recognizer):
    """An engine that recognizes nothing before it may: the engine, that it has begun, that it may go on."""
    with slowed(recognizer) as found:
        yield found


def test_who_comes_when_too_many_wait_is_told_to_come_again(slow, sounds):
    engine, has_begun, may_go_on = slow
    path = next(iter(sounds))
    with served(engine, max_uploads=2) as address, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, address, path) for _ in range(2)]
        assert has_begun.wait(10)
        wait(lambda: httpx.get(f"{address}/health").json()["uploads"] == 2)
        # before its body is read
        refused = ask(address, path)
        # who only looks is let in, and so is live sound
        assert httpx.get(f"{address}/health").json()["waiting_s"] > 0.1
        with connect(f"{address.replace('http', 'ws')}/v1/live") as socket:
            socket.send("end")
            assert json.loads(socket.recv()) == {"type": "end"}
        may_go_on.set()
        assert {each.result().status_code for each in waiting} == {200}
    assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
    assert refused.json()["error"]["message"] == "2 sounds are being transcribed; try again later."


def test_a_client_that_has_gone_is_not_worked_for(slow, recognizer, tmp_path):
    engine, has_begun, may_go_on = slow
    rng, seen = np.random.default_rng(8), []
    wave = np.concatenate([np.concatenate([say("今天气很好吗", rng), np.zeros(16000)]) for _ in range(14)])
    soundfile.write(tmp_path / "long.wav", wave, 16000)
    slowly = engine._batcher._answers_to
    engine._batcher._answers_to = lambda pieces: seen.extend(pieces) or slowly(pieces)
    with served(engine) as address:
        with pytest.raises(httpx.TimeoutException), (tmp_path / "long.wav").open("rb") as file:
            httpx.post(f"{address}/v1/audio/transcriptions", files={"file": file}, timeout=0.5)
        assert has_begun.wait(10)
        # what is worked on keeps the server waiting, and nothing behind it is begun
        wait(lambda: httpx.get(f"{address}/health").json()["uploads"] == 0)
        may_go_on.set()
        wait(lambda: httpx.get(f"{address}/health").json()["waiting_s"] == 0)
    assert len(seen) < len(list(recognizer.pipeline.pieces(read_sound(tmp_path / "long.wav", 16000, warn=print))))


def test_what_comes_in_live_while_the_model_is_busy_is_kept(slow):
    engine, has_begun, may_go_on = slow
    rng = np.random.default_rng(5)
    wave = np.concatenate([np.concatenate([say(text, rng), np.zeros(16000)]) for text in ("天气很好", "好吗", "很好")])
    with served(engine) as address, connect(f"{address.replace('http', 'ws')}/v1/live") as socket:
        samples = np.round(wave * 32767).astype("<i2")
        for start in range(0, len(samples), 1600):
            socket.send(samples[start : start + 1600].tobytes())
        assert has_begun.wait(10)
        # it still listens: a ping is answered while the model works
        assert socket.ping().wait(5)
        socket.send("end")
        may_go_on.set()
        heard = [json.loads(message) for message in socket]
    assert [each["type"] for each in heard].count("final") == 3 and heard[-1] == {"type": "end"}


def test_live_sound_is_told_what_is_final_when_the_server_is_stopped(recognizer):
    rng = np.random.default_rng(5)
    samples = np.round(np.concatenate([say("天气很好", rng), np.zeros(3200)]) * 32767).astype("<i2")
    with served(PiecewiseEngine(recognizer, BatchConfig())) as address:
        socket = connect(f"{address.replace('http', 'ws')}/v1/live")
        # the other half of the last sample is on its way
        socket.send(samples.tobytes() + b"\0")
        wait(lambda: httpx.get(f"{address}/health").json()["live"] == 1)
        time.sleep(0.3)
    heard = [json.loads(message) for message in socket]
    assert heard[-1] == {"type": "end"} and heard[-2]["type"] == "final" and heard[-2]["text"]


def test_who_comes_while_the_server_stops_is_sent_away(recognizer, sounds):
    service = Service(PiecewiseEngine(recognizer, BatchConfig()), "talker")
    with running(service) as address:
        service.is_ending = True
        answer = ask(address, next(iter(sounds)))
        assert answer.status_code == 503 and "being stopped" in answer.json()["error"]["message"]
        with connect(f"{address.replace('http', 'ws')}/v1/live") as socket:
            assert "being stopped" in json.loads(socket.recv())["message"]
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001


def test_a_second_signal_gives_up_with_a_status(slow, tmp_path):
    """The first lets requests come to their end; and whoever has not, is told so, once the batch is done."""
    engine, has_begun, may_go_on = slow
    rng, told = np.random.default_rng(8), []
    wave = np.concatenate([np.concatenate([say("今天气很好吗", rng), np.zeros(16000)]) for _ in range(14)])
    soundfile.write(tmp_path / "long.wav", wave, 16000)
    with _listening("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as pool:
        service = Service(engine, "talker")
        server = _Server(configure(service), service, told.append)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        answer = pool.submit(ask, f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "long.wav")
        assert has_begun.wait(10)
        server.handle_exit(signal.SIGINT, None)
        wait(lambda: told)
        assert not answer.done()
        server.handle_exit(signal.SIGINT, None)
        time.sleep(0.3)
        may_go_on.set()
        refused = answer.result(20)
        thread.join(20)
    assert told == ["finishing 1 sound files and 0 live sounds; Ctrl-C again gives them up"]
    assert refused.status_code == 503 and refused.json()["error"]["message"] == "The server is being stopped."
    assert not thread.is_alive()


def test_a_certificate_that_is_none_is_named(talker, tmp_path, capsys):
    (tmp_path / "c.pem").write_text("no certificate")
    assert main(["serve", str(talker / "onnx"), "--port", "0", "--ssl-certfile", str(tmp_path / "c.pem")]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert f"`--ssl-certfile` {tmp_path}/c.pem, `--ssl-keyfile` (not set: the same file): " in printed


def test_an_upload_cannot_name_files_of_the_server(address, sounds, tmp_path, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(next(iter(sounds)).read_bytes())
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile secret.wav\n")
    answer = ask(address, tmp_path / "list.txt")
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("list.txt: ")


def test_warnings_and_errors_have_the_files_own_name(address, sounds, tmp_path):
    wave, rate = soundfile.read(next(iter(sounds)))
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, np.clip(wave * 50, -1, 1), rate)
    (warning,) = ask(address, loud, response_format="verbose_json").json()["warnings"]
    assert re.match(r"loud\.wav: clipped", warning)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(next(iter(sounds)).read_bytes()[:20000])
    answer = ask(address, cut, response_format="verbose_json").json()
    assert re.match(r"cut\.wav: truncated: its header says", answer["warnings"][0])
    (tmp_path / "empty.wav").write_bytes(b"")
    message = ask(address, tmp_path / "empty.wav").json()["error"]["message"]
    assert message.startswith("empty.wav: ") and "object at" not in message


def test_silence_and_absurd_samples_say_nothing(address, tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(48000), 16000)
    found = ask(address, tmp_path / "zeros.wav", response_format="verbose_json").json()
    assert (found["text"], found["segments"], found["duration"]) == ("", [], 3.0)
    soundfile.write(tmp_path / "huge.wav", np.full(16000, 3e38), 16000, subtype="FLOAT")
    assert "holds samples of 3e+38 times full scale" in ask(address, tmp_path / "huge.wav").json()["error"]["message"]


def test_the_page_and_what_it_asks_for(address):
    page = httpx.get(f"{address}/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for asked in re.findall(r'(?:fetch\("|new URL\(`)([\w/]+)', page.text):
        # a WebSocket's address is no page
        assert asked == "v1/live" or httpx.get(f"{address}/{asked}").status_code in (200, 405)
    # nothing of it comes from elsewhere
    assert not re.findall(r"(?:src|href)=(?!.data:)|https?://|@import", page.text)
    health = httpx.get(f"{address}/health").json()
    busy = {"waiting_s": 0.0, "uploads": 0, "live": 0}
    assert health == {"status": "ok", "model": "talker", "hotwords": False, "api_key": False, **busy}
    assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "talker"
    assert httpx.get(f"{address}/v1/models/talker").json()["object"] == "model"
    assert httpx.get(f"{address}/v1/models/other").status_code == 404


def _listen(address, wave, *, options="", size=3200, dtype="<i2"):
    """All that a server says about a sound, so many bytes a message."""
    with connect(f"{address.replace('http', 'ws')}/v1/live{options}") as socket:
        if dtype == "<i2":
            wave = np.round(wave * 32767)
        sound = wave.astype(dtype).tobytes()
        for start in range(0, len(sound), size):
            socket.send(sound[start : start + size])
        socket.send("end")
        return [json.loads(message) for message in socket]


@pytest.mark.parametrize(
    ("options", "rate", "size", "dtype"),
    # messages, too, may end in the middle of a sample, as pipes cut anywhere
    [("", 16000, 3200, "<i2"), ("?sample_rate=48000&format=f32le", 48000, 28003, "<f4")],
)
def test_live_sound_is_final_at_each_pause(address, recognizer, options, rate, size, dtype):
    rng = np.random.default_rng(5)
    waves = [np.concatenate([say(text, rng), np.zeros(16000, np.float32)]) for text in ("今天", "天气很好", "好吗")]
    wave, ends = np.concatenate(waves), np.cumsum([len(each) / 16000 for each in waves])
    said = wave
    if rate != 16000:
        wave = np.repeat(wave, rate // 16000)
    heard = _listen(address, wave, options=options, size=size, dtype=dtype)
    assert heard[-1] == {"type": "end"}
    final = [each for each in heard if each["type"] == "final"]
    assert len(final) == 3
    for each, begin, end in zip(final, [0, *ends], ends, strict=False):
        assert begin - 0.3 < each["start"] < each["end"] < end
        (alone,) = recognizer.transcribe([said[round(each["start"] * 16000) : round(each["end"] * 16000)]])
        assert each["text"] == alone.text != ""
    # times are those of the whole sound
    assert all(each["start"] <= each["starts"][0] <= each["ends"][-1] <= each["end"] for each in final)


def test_an_utterance_that_goes_on_is_told_so_far(address):
    rng = np.random.default_rng(6)
    wave = np.concatenate([say("今天气很好吗", rng), np.zeros(16000, np.float32)])
    with connect(f"{address.replace('http', 'ws')}/v1/live") as socket:
        heard = []
        samples = np.round(wave * 32767).astype("<i2")
        for start in range(0, len(samples), 8000):
            socket.send(samples[start : start + 8000].tobytes())
            time.sleep(0.1)
        socket.send("end")
        heard = [json.loads(message) for message in socket]
    kinds = [each["type"] for each in heard]
    assert kinds[0] == "partial" and kinds[-2:] == ["final", "end"]
    partial = [each["text"] for each in heard if each["type"] == "partial"]
    assert heard[-2]["text"] == "今天气很好吗" and len(partial[0]) < 6


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ("?sample_rate=10", None, "`sample_rate` must be a whole number in 1000..1000000 Hz, but is 10."),
        ("?sample_rate=44100.5", None, "but is 44100.5."),
        ("?format=mp3", None, "`format` must be s16le or f32le, but is mp3."),
        ("?samplerate=8000", None, "There is no option samplerate, only `sample_rate`, `format`"),
        ("", b"abc", "The sound ends in the middle of a sample of 2 bytes"),
        ("?format=f32le", np.array([np.nan], "<f4").tobytes(), "must be floats in"),
    ],
)
def test_live_sound_that_cannot_be_is_refused(address, options, data, message):
    with connect(f"{address.replace('http', 'ws')}/v1/live{options}") as socket:
        if data is not None:
            socket.send(data)
            socket.send("end")
        told = json.loads(socket.recv())
        assert told["type"] == "error" and message in told["message"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1007
    assert httpx.get(f"{address}/health").json()["live"] == 0


def test_so_many_may_speak_at_a_time(address):
    where = f"{address.replace('http', 'ws')}/v1/live"
    with connect(where) as first, connect(where) as second:
        for socket in (first, second):
            socket.send(bytes(3200))
        wait(lambda: httpx.get(f"{address}/health").json()["live"] == 2)
        with connect(where) as third:
            assert "2 live sounds are in progress" in json.loads(third.recv())["message"]
    wait(lambda: httpx.get(f"{address}/health").json()["live"] == 0)


def test_a_streaming_model_is_served_too(tiny_model, tmp_path):
    tiny = tiny_model()
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(48000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    recognizer = StreamingRecognizer.from_pretrained(tiny.folder)
    stream = recognizer.create_stream()
    stream.accept(wave, 16000)
    stream.finish()
    while recognizer.advance([stream]):
        pass
    wanted = stream.result
    assert wanted.text
    with served(StreamingEngine(StreamingRecognizer.from_pretrained(tiny.folder), BatchConfig())) as address:
        found = ask(address, tmp_path / "a.wav", response_format="verbose_json").json()
        assert found["text"] == wanted.text and found["duration"] == 3.0
        assert found["segments"][0]["times"] == list(wanted.times)
        # the silence that lets the last words out is not part of the sound
        assert found["segments"][-1]["end"] == 3.0
        heard = _listen(address, wave, options="?format=f32le", dtype="<f4")
        assert heard[-2]["type"] == "final" and heard[-2]["text"] == wanted.text
        assert {each["type"] for each in heard[:-2]} == {"partial"}


def test_words_are_given_where_they_are_asked_for(address, sounds, recognizer, tiny_model):
    path = next(iter(sounds))
    (wanted,) = recognizer.transcribe([path])
    asked = {"timestamp_granularities[]": ["word", "segment"]}
    found = ask(address, path, response_format="verbose_json", **asked).json()
    assert wanted.words and found["words"] == [asdict(word) for word in wanted.words]
    assert "words" not in ask(address, path, response_format="verbose_json").json()
    assert ask(address, path, response_format="ctm").text == document("ctm", path.name, wanted, recognizer.token_table)
    refused = ask(address, path, **asked)
    assert refused.status_code == 400 and "needs `response_format` verbose_json" in refused.json()["error"]["message"]
    plain = StreamingRecognizer.from_pretrained(tiny_model().folder, details=DetailConfig(align=False))
    with served(StreamingEngine(plain, BatchConfig())) as address:
        for how in ({"response_format": "ctm"}, {"response_format": "verbose_json", **asked}):
            refused = ask(address, path, **how)
            assert refused.status_code == 400 and "`align=True`" in refused.json()["error"]["message"]


def test_the_command_serves_until_it_is_interrupted(talker, sounds):
    command = [interpreter(), "-m", "stateless_transducer.cli", "serve", str(talker / "onnx"), "--port", "0"]
    command += ["--allow-origin", "https://a.org", "--allow-host", "b.org", "--max-seconds", "3"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_sigint
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        match = re.fullmatch(rf"serving {talker}/onnx on (http://127\.0\.0\.1:\d+) - press Ctrl-C to stop\n", said)
        assert match, said
        wait(lambda: _answers(match[1]))
        assert ask(match[1], next(iter(sounds))).json()["text"]
        answer = httpx.get(f"{match[1]}/health", headers={"Origin": "https://a.org"})
        assert answer.headers["access-control-allow-origin"] == "https://a.org"
        for host, status in (("b.org", 200), ("c.org", 403)):
            assert httpx.get(f"{match[1]}/health", headers={"Host": host}).status_code == status
        assert ask(match[1], list(sounds)[-1]).status_code == 413
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.communicate() == ("", "")
    finally:
        process.kill()


def _answers(address):
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False
