"""``transducer stream`` with a tiny model."""

from __future__ import annotations

import json
import os
import pty
import queue
import re
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from processes import listen_to_sigint
from warm import interpreter

from stateless_transducer.cli import main
from stateless_transducer.recognition.endpoint import EndpointRules
from stateless_transducer.recognition.streaming import StreamingRecognizer

# the tiny model talks fast
RULES = {"rule1_min_trailing_silence": 0.5, "rule2_min_trailing_silence": 0.4, "rule3_min_utterance_length": 1.0}
FLAGS = [word for name, seconds in RULES.items() for word in (f"--{name.replace('_', '-')}", str(seconds))]


@pytest.fixture(scope="module")
def samples():
    """Noise that swells and fades, int16."""
    noise = np.random.default_rng(0).standard_normal(3 * 16000) * np.abs(np.sin(np.arange(3 * 16000) / 3000))
    return np.clip(6000 * noise, -32768, 32767).astype(np.int16)


@pytest.fixture
def sound(samples, tmp_path):
    soundfile.write(tmp_path / "sound.wav", samples, 16000)
    return tmp_path / "sound.wav"


@pytest.fixture
def segments(tiny_model, samples):
    """What the recognizer says, utterances without a word left out."""
    recognizer = StreamingRecognizer.from_pretrained(tiny_model().folder, rules=EndpointRules(**RULES))
    stream, found = recognizer.create_stream(), []
    stream.accept(samples, 16000)
    stream.finish()
    while recognizer.advance([stream]):
        if stream.is_endpoint:
            found.append(stream.result)
            stream.reset()
    return [segment for segment in (*found, stream.result) if segment.tokens]


def _lines(segments):
    return [f"{segment.times[0]:.2f}\t{segment.times[-1]:.2f}\t{segment.text}" for segment in segments]


def _start(tiny_model, rules=FLAGS, **streams):
    command = [interpreter(), "-m", "stateless_transducer.cli", "stream", str(tiny_model().folder), "-", *rules]
    return subprocess.Popen(command, preexec_fn=listen_to_sigint, **streams)


def _fails(capsys, arguments, message, status=1):
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        found = stopped.code
    printed = " ".join(capsys.readouterr().err.split())
    assert found == status and re.search(message, printed), printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("block_ms", [7, 100, 60000])
def test_each_utterance_is_a_line_however_the_file_is_read(tiny_model, sound, segments, block_ms, capsys):
    assert main(["stream", str(tiny_model().folder), str(sound), "--block-ms", str(block_ms), *FLAGS]) == 0
    assert len(segments) > 2 and capsys.readouterr().out.splitlines() == _lines(segments)


def test_json_has_all_of_an_utterance(tiny_model, sound, segments, capsys):
    assert main(["stream", str(tiny_model().folder), str(sound), "--output-format", "json", *FLAGS]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [json.loads(json.dumps(segment.known())) for segment in segments]
    details = {"starts", "ends", "confidences", "confidence", "words"}
    assert set(found[0]) == {"text", "tokens", "times", "log_probs", "start", "end", *details}
    assert max(max(each["end"], *each["times"]) for each in found) <= 3.0


def test_utterances_come_out_while_sound_comes_in(tiny_model, samples, segments):
    with _start(tiny_model, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(samples[:32000].tobytes())
        process.stdin.flush()
        assert process.stdout.readline().decode() == _lines(segments)[0] + "\n"
        # pieces of a pipe may end within a sample
        rest = samples[32000:].tobytes()
        for piece in (rest[:1001], rest[1001:]):
            process.stdin.write(piece)
            process.stdin.flush()
        process.stdin.close()
        assert process.stdout.read().decode().splitlines() == _lines(segments)[1:]
    assert process.returncode == 0


def _read_terminal(descriptor, enough=lambda shown: False):
    """What is shown until it is enough, or until nobody writes any more."""
    shown = b""
    try:
        while not enough(shown) and (piece := os.read(descriptor, 65536)):
            shown += piece
    # so ends a terminal that has been left
    except OSError:
        pass
    return shown


@pytest.fixture
def terminal():
    """A terminal: the end where one reads what is shown, and the end of the command."""
    reader, writer = pty.openpty()
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):
            os.close(end)


def test_terminal_shows_the_words_as_they_grow(tiny_model, samples, segments, terminal):
    reader, writer = terminal
    narrow = {**os.environ, "COLUMNS": "10"}
    with _start(tiny_model, stdin=subprocess.PIPE, stdout=writer, env=narrow) as process:
        os.close(writer)
        process.stdin.write(samples.tobytes())
        process.stdin.close()
        shown = _read_terminal(reader).decode()
    assert process.returncode == 0
    lines = [line.split("\r\x1b[K") for line in shown.split("\r\n")]
    assert [line[-1] for line in lines if line[-1]] == _lines(segments)
    _, *parts, _ = lines[0]
    # more and more of the beginning, then the end, which is what a line of ten has room for
    assert len(set(parts)) > 2 and segments[0].text.startswith(parts[0])
    assert all(len(part) <= 9 for part in parts) and segments[0].text.endswith(parts[-1])
    assert len(segments[0].text) > 9


def test_interrupted_command_says_what_it_has_heard(tiny_model, samples, terminal):
    reader, writer = terminal
    wide = {**os.environ, "COLUMNS": "1000"}
    pipe = subprocess.PIPE
    with _start(tiny_model, stdin=pipe, stdout=writer, stderr=pipe, rules=[], env=wide) as process:
        os.close(writer)
        process.stdin.write(samples.tobytes())
        process.stdin.flush()
        shown = _read_terminal(reader, lambda shown: len(shown.split(b"\x1b[K")[-1]) > 10)
        process.send_signal(signal.SIGINT)
        rest = _read_terminal(reader).decode()
        err = process.stderr.read().decode()
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    heard = shown.decode().split("\x1b[K")[-1].rstrip("\r")
    assert rest.endswith("\r\n") and rest.split("\t")[-1].startswith(heard)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"Standard input holds no samples \(0 s of audio\)"),
        (b"\x00\x01\x02", "Standard input ends in the middle of a sample, after 3 bytes"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "Standard input is a sound file, not raw samples. Name the file itself"),
    ],
    ids=["empty", "odd", "wav"],
)
def test_standard_input_that_cannot_be_is_explained(tiny_model, data, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        _fails(capsys, ["stream", tiny_model().folder, "-"], message)


def test_what_is_missing_is_named(tiny_model, tmp_path, capsys):
    _fails(
        capsys,
        ["stream", tmp_path / "no", "a.wav"],
        "no: no such model; it is a checkpoint, a folder",
    )
    _fails(capsys, ["stream", tmp_path, "a.wav"], r"holds no encoder\*.onnx")
    _fails(capsys, ["stream", tiny_model().folder, "a.wav"], "a.wav: no such file")


def test_a_microphone_is_heard_until_it_is_interrupted(tiny_model, samples, segments, capsys, monkeypatch):
    class Stream(nullcontext):
        def __init__(self, *, samplerate, blocksize, channels, dtype, callback):
            super().__init__()
            assert (samplerate, blocksize, channels, dtype) == (16000, 1600, 1, "int16")
            for start in range(0, len(samples), blocksize):
                callback(samples[start : start + blocksize].tobytes(), blocksize, None, None)

    class Stopped(queue.SimpleQueue):
        def get(self):
            if self.empty():
                raise KeyboardInterrupt
            return super().get()

    device = SimpleNamespace(RawInputStream=Stream, PortAudioError=OSError)
    device.query_devices = lambda kind: {"default_samplerate": 16000.0}
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr("queue.SimpleQueue", Stopped)
    assert main(["stream", str(tiny_model().folder), "--microphone", *FLAGS]) == 130
    assert capsys.readouterr().out.splitlines() == _lines(segments)
    monkeypatch.setattr(Stream, "__enter__", Mock(side_effect=OSError("device busy")))
    _fails(capsys, ["stream", tiny_model().folder, "--microphone"], r"`--microphone`: there is none .*device busy")
    device.query_devices = Mock(side_effect=OSError("no device"))
    _fails(capsys, ["stream", tiny_model().folder, "--microphone"], r"`--microphone`: there is none .*no device")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    _fails(capsys, ["stream", tiny_model().folder, "--microphone"], r"`--microphone` needs .*\[microphone\]")


def test_options_that_a_model_does_not_have_are_named(tiny_model, sound, talker, capsys):
    _fails(capsys, ["stream", talker / "model.pt", sound], "--causal true")
    _fails(capsys, ["stream", tiny_model().folder, sound, "--chunk-ms", "320"], "`--chunk-ms` is 320, but .* fixed")
    beam = ["--method", "beam_search"]
    _fails(capsys, ["stream", tiny_model().folder, sound, *beam], "`--decoding-method` beam_search needs whole")
    _fails(capsys, ["stream", "model"], "`-` for standard input, or `--microphone`", status=2)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--chunk-ms", "0", "`--chunk-ms` must be at least 1 ms, but is 0"),
        ("--sample-rate", "16", "`--sample-rate` must be in 1000..1000000 Hz, but is 16"),
        ("--num-threads", "0", "`--num-threads` must be at least 1, but is 0"),
        # without effect on a file, or on a line of text
        ("--sample-rate", "8000", "`--sample-rate` 8000 needs .* standard input"),
        ("--nbest", "3 --decoding-method modified_beam_search", "`--nbest` 3 needs `--output-format json`"),
        ("--rule3-min-utterance-length", "0", "`--rule3-min-utterance-length` must be above 0 s, but is 0"),
    ],
)
def test_bad_option_is_named(flag, value, message, capsys):
    _fails(capsys, ["stream", "model", "a.wav", flag, *value.split()], message, status=2)
