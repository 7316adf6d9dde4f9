"""A server under attack: slow, endless and foreign requests, a full disk; a real server on a loopback port."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import soundfile
from served import ask, served, slowed, wait
from tiny_talker import say
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from stateless_transducer.recognition.config import SegmentConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.descriptors import SpareDescriptor
from stateless_transducer.server.engine import PiecewiseEngine, StreamingEngine

PATH = "/v1/audio/transcriptions"
HEADERS = {"content-type": "multipart/form-data; boundary=x"}
BEGIN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


@pytest.fixture(scope="module")
def recognizer(talker):
    segments = SegmentConfig(vad="energy", max_segment_s=5.0)
    return Recognizer.from_pretrained(talker / "onnx", segments=segments, num_threads=1)


@pytest.fixture
def engine(recognizer):
    return PiecewiseEngine(recognizer, BatchConfig())


@pytest.fixture
def sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", say("今天", np.random.default_rng(0)), 16000)
    return tmp_path / "a.wav"


@pytest.fixture
def open_connection():
    """Opens connections to an address, which are closed at the end: the connection, and the host for its headers."""
    connections = []

    def open_one(address):
        host, port = address.removeprefix("http://").split(":")
        connections.append(socket.create_connection((host, int(port)), timeout=20))
        return connections[-1], f"{host}:{port}"

    yield open_one
    for connection in connections:
        connection.close()


def _rest(connection):
    """What comes until the server closes the connection."""
    received = b""
    while part := connection.recv(2**16):
        received += part
    return received


def _message(answer):
    return answer.json()["error"]["message"]


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: "], ids=len)
def test_headers_that_do_not_come_close_the_connection(engine, open_connection, sent):
    with served(engine, idle_timeout_s=0.3) as address:
        connection, _ = open_connection(address)
        connection.sendall(sent)
        assert _rest(connection) == b""


def test_the_second_headers_of_a_connection_are_bounded_too(engine, open_connection):
    with served(engine, idle_timeout_s=0.3) as address:
        connection, host = open_connection(address)
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HT")
        assert b"HTTP" not in _rest(connection)


def test_a_request_that_is_worked_on_for_long_is_not_closed(recognizer, sound):
    with slowed(recognizer) as (slow, has_begun, may_go_on), served(slow, idle_timeout_s=0.2) as address:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, address, sound)
            assert has_begun.wait(10)
            time.sleep(0.6)
            may_go_on.set()
            assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"idle_timeout_s": 1.5}, r"nothing came for 1\.5 s"), ({"upload_timeout_s": 2.0}, "longer than 2 s")],
    ids=["idle", "in-all"],
)
def test_bodies_that_do_not_come_free_their_places(engine, open_connection, sound, limits, message):
    with served(engine, max_uploads=2, **limits) as address:
        connections = []
        for _ in range(2):
            connection, host = open_connection(address)
            head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {HEADERS['content-type']}\r\n"
            connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + BEGIN)
            connections.append(connection)
        wait(lambda: httpx.get(f"{address}/health").json()["uploads"] == 2)
        for connection in connections:
            # a byte is no sign of a body that ends
            connection.sendall(b"\0")
        for connection in connections:
            answer = _rest(connection)
            assert answer.startswith(b"HTTP/1.1 408") and re.search(message, answer.decode())
        assert ask(address, sound).status_code == 200


def test_a_live_sound_without_samples_is_closed(engine):
    with served(engine, live_timeout_s=0.3, max_live=1) as address:
        with connect(f"{address.replace('http', 'ws')}/v1/live") as live:
            assert "No samples came for 0.3 s" in json.loads(live.recv(timeout=10))["message"]
            with pytest.raises(ConnectionClosed):
                live.recv(timeout=10)
        wait(lambda: httpx.get(f"{address}/health").json()["live"] == 0)


def test_pages_of_other_origins_cannot_send_anything(engine, sound):
    with served(engine, origins=["https://a.org"]) as address:
        where = address.replace("http", "ws") + "/v1/live"
        for origin in ("https://b.org", "null", "http://127.0.0.1:1"):
            # a form of another page needs no leave from the server: the request must be refused
            with sound.open("rb") as file:
                answer = httpx.post(f"{address}{PATH}", files={"file": file}, headers={"Origin": origin})
            assert answer.status_code == 403 and f"`--allow-origin {origin}`" in _message(answer)
            with pytest.raises(InvalidStatus) as refused:
                connect(where, origin=origin)
            assert refused.value.response.status_code == 403
        for origin in ("https://a.org", address, None):
            headers = {} if origin is None else {"Origin": origin}
            with sound.open("rb") as file:
                answer = httpx.post(f"{address}{PATH}", files={"file": file}, headers=headers)
            assert answer.status_code == 200
            with connect(where, origin=origin) as live_socket:
                live_socket.send("end")
                assert json.loads(live_socket.recv()) == {"type": "end"}


def test_a_name_that_others_let_lead_here_is_refused(engine):
    """DNS rebinding: a page of evil.org, whose name has become this machine's address, is of the same origin."""
    with served(engine, hosts=["box.lan"]) as address:
        port = address.rpartition(":")[2]

        def status(host):
            answers = [
                httpx.get(f"{address}/health", headers={"Host": host}),
                httpx.post(f"{address}{PATH}", headers={"Host": host, "Origin": f"http://{host}"}),
            ]
            return {answer.status_code for answer in answers}, answers[0].text

        for host in ("evil.org", f"evil.org:{port}", "127.0.0.1.evil.org", "localhost.evil.org", "xbox.lan"):
            statuses, text = status(host)
            assert statuses == {403} and f"`--allow-host {host.partition(':')[0]}`" in text
        for host in ("localhost", f"a.localhost:{port}", f"127.0.0.1:{port}", "[::1]:9000", "192.168.1.7", "BOX.lan"):
            assert status(host)[0] == {200, 400}, host
    with served(engine, hosts=["*"]) as address:
        assert httpx.get(f"{address}/health", headers={"Host": "evil.org"}).status_code == 200
        # an origin that is no address
        answer = httpx.post(f"{address}{PATH}", headers={"Origin": "http://["})
        assert answer.status_code == 403 and "http://[" in _message(answer)


def test_the_page_may_load_nothing_from_elsewhere(engine):
    with served(engine) as address:
        page, health = httpx.get(address), httpx.get(f"{address}/health")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert len(re.findall("'sha256-", policy)) == 2
    # what a policy with hashes would not let through
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", page.text)
    for answer in (page, health):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_client_may_send_the_next_file_as_soon_as_it_has_its_answer(engine, sound):
    with served(engine, max_uploads=4) as address:
        content = sound.read_bytes()

        def send_many(_):
            with httpx.Client() as client:
                return [
                    client.post(f"{address}{PATH}", files={"file": ("a.wav", content)}, timeout=60).status_code
                    for _ in range(12)
                ]

        with ThreadPoolExecutor(4) as pool:
            statuses = [status for client in pool.map(send_many, range(4)) for status in client]
    assert statuses == [200] * 48


@pytest.mark.sweep
def test_a_client_that_does_not_read_its_answer_holds_no_place(engine, open_connection, tmp_path):
    """The answer is larger than what the sockets hold."""
    rng = np.random.default_rng(0)
    wave = np.concatenate([say("今天气很好吗" * 3, rng) for _ in range(30)])
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    content = BEGIN + (tmp_path / "a.wav").read_bytes() + b"\r\n--x\r\n"
    content += b'Content-Disposition: form-data; name="response_format"\r\n\r\nverbose_json\r\n--x--\r\n'
    with served(engine, max_uploads=1) as address:
        connection, host = open_connection(address)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {HEADERS['content-type']}\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        wait(lambda: httpx.get(f"{address}/metrics").text.count("transducer_audio_seconds_total 0\n") == 0)
        wait(lambda: httpx.get(f"{address}/health").json()["uploads"] == 0)


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EMFILE, 500)], ids=["full", "other"])
def test_a_full_disk_is_said_and_logged(engine, tmp_path, monkeypatch, caplog, number, status):
    def refuse(*_, **__):
        raise OSError(number, "cannot be written")

    (tmp_path / "large.wav").write_bytes(bytes(2**21))
    with served(engine) as address:
        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
        with caplog.at_level(logging.ERROR, "uvicorn.error"):
            # uvicorn's loggers do not pass records on
            monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
            answer = ask(address, tmp_path / "large.wav")
    assert answer.status_code == status
    assert ("no space left" in _message(answer)) == (status == 507)
    assert "cannot be written" in caplog.text


def test_a_sound_that_is_too_long_is_refused(engine, tiny_model, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(16000 * 20), 16000)
    soundfile.write(tmp_path / "short.flac", np.zeros(16000 * 2), 16000)
    streaming = StreamingEngine(StreamingRecognizer.from_pretrained(tiny_model().folder), BatchConfig())
    for kind in (engine, streaming):
        with served(kind, max_seconds=3.0) as address:
            for stream in ("false", "true"):
                answer = ask(address, tmp_path / "long.flac", stream=stream)
                assert answer.status_code == 413 and "longer than 3 s" in _message(answer)
            assert ask(address, tmp_path / "short.flac").status_code == 200


def test_prometheus_reads_the_metrics(engine, sound):
    with served(engine) as address:
        ask(address, sound)
        httpx.get(f"{address}/nowhere")
        answer = httpx.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert values['transducer_answers_total{status="200"}'] == "1"
    assert values['transducer_answers_total{status="404"}'] == "1"
    assert float(values["transducer_audio_seconds_total"]) == pytest.approx(soundfile.info(sound).duration, abs=1e-3)
    assert (
        values["transducer_uploads"] == values["transducer_live_sounds"] == values["transducer_waiting_seconds"] == "0"
    )
    for name in {key.partition("{")[0] for key in values}:
        assert f"# HELP {name} " in answer.text and f"# TYPE {name} " in answer.text


def test_a_server_with_a_key_wants_it(engine, sound):
    with served(engine, api_key="secret") as address:
        where = f"{address.replace('http', 'ws')}/v1/live"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            with sound.open("rb") as file:
                answer = httpx.post(f"{address}{PATH}", files={"file": file}, headers=headers)
            assert answer.status_code == 401 and "`Authorization: Bearer KEY`" in _message(answer)
            assert httpx.get(f"{address}/metrics", headers=headers).status_code == 401
            with pytest.raises(InvalidStatus):
                connect(where, additional_headers=headers)
        assert httpx.get(address).status_code == 200
        assert httpx.get(f"{address}/health").json()["api_key"] is True
        headers = {"Authorization": "Bearer secret"}
        with sound.open("rb") as file:
            assert httpx.post(f"{address}{PATH}", files={"file": file}, headers=headers).status_code == 200
        for query, extra in (("", headers), ("?api_key=secret", {})):
            with connect(where + query, additional_headers=extra) as live:
                live.send("end")
                assert json.loads(live.recv()) == {"type": "end"}


def test_exhausted_descriptors_close_what_waits_and_log_a_line_a_minute(caplog):
    clock, loop = iter([0.0, 0.0, 59.0, 60.0, 60.0]), Mock()
    spare = SpareDescriptor(clock=lambda: next(clock))
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        context = {"message": "socket.accept() out of system resource", "exception": error, "socket": listener}
        for num_lines, num_closed in ((1, 2), (1, 2), (2, 4)):
            clients = [socket.create_connection(listener.getsockname(), timeout=5) for _ in range(2)]
            spare.handle(loop, context)
            assert [client.recv(1) for client in clients] == [b"", b""]
            for client in clients:
                client.close()
            lines = [record.getMessage() for record in caplog.records]
            assert len(lines) == num_lines and f"closed {num_closed} connections" in lines[-1]
    loop.default_exception_handler.assert_not_called()
    context["exception"] = ValueError()
    spare.handle(loop, context)
    loop.default_exception_handler.assert_called_once_with(context)
    spare.close()
