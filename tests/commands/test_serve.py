"""``transducer serve``: which options it refuses."""

from __future__ import annotations

import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from tiny_talker import say

from stateless_transducer.cli import main
from stateless_transducer.commands.serve import Options, _listening, _open
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.server.engine import SoundFile
from stateless_transducer.server.live import StreamingSession


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "`--port` must be in 0..65535, but is 70000"),
        (["--max-live", "0"], "`--max-live` must be at least 1, but is 0"),
        (["--max-uploads", "0"], "`--max-uploads` must be at least 1, but is 0"),
        (["--max-wait-ms", "-1"], "`--max-wait-ms` must be in 0..1000 ms, but is -1"),
        (
            ["--allow-origin", "*", "https://a.org/", "--host", "192.0.2.1"],
            "`--allow-origin` must be like https://example.org",
        ),
        (["--allow-host", "a.org:80"], "`--allow-host` must be a host name without a port, or *, but is 'a.org:80'"),
        (["--api-key", "a b"], "`--api-key` must be printable ASCII"),
        (["--max-seconds", "0"], "`--max-seconds` must be above 0"),
        (["--idle-timeout-s", "-1"], "`--idle-timeout-s` must be above 0"),
        (["--ssl-keyfile", "k.pem"], "`--ssl-keyfile` k.pem needs `--ssl-certfile`"),
        (["--ssl-certfile", "c.pem"], "`--ssl-certfile` c.pem: no such file"),
        (["--hotwords-score", "3"], "`--hotwords-score` 3 needs a beam: add `--decoding-method modified_beam_search`"),
        (["--nbest", "3"], "`--nbest` 3 needs a beam: add `--decoding-method modified_beam_search`"),
        (
            ["--port", "0", "--rule1-min-trailing-silence", "3"],
            "`--rule1-min-trailing-silence` 3 needs a streaming m",
        ),
        # those of each request have it
        (
            ["--decoding-method", "beam_search", "--hotwords-score", "3", "--host", "192.0.2.1"],
            "`--host` 192.0.2.1, `--port` 8000: cannot listen: ",
        ),
        (["--host", "192.0.2.1"], "`--host` 192.0.2.1, `--port` 8000: cannot listen: "),
    ],
)
def test_options_that_cannot_be_are_named(talker, capsys, flags, message):
    try:
        assert main(["serve", str(talker / "onnx"), *flags]) == 1
    except SystemExit as err:
        assert err.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_port_that_is_taken_and_a_model_that_is_not_there(tmp_path, capsys):
    with _listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path), "--port", port]) == 1
        assert f"`--host` 127.0.0.1, `--port` {port}: cannot listen: Address already in use" in (
            capsys.readouterr().err
        )
    assert main(["serve", str(tmp_path / "no.pt"), "--port", "0"]) == 1
    assert f"{tmp_path}/no.pt: no such model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--decoding-method", "beam_search"], "`--decoding-method` beam_search needs whole utterances"),
        (["--vad", "energy"], "`--vad` energy needs an offline model"),
        (["--chunk-ms", "320"], "`--chunk-ms` is 320, but"),
    ],
)
def test_a_streaming_model_refuses_what_it_has_no_use_for(tiny_model, capsys, flags, wanted):
    assert main(["serve", str(tiny_model().folder), "--port", "0", *flags]) == 1
    assert wanted in capsys.readouterr().err


def test_a_causal_model_decodes_files_as_a_whole_and_live_sound_chunk_by_chunk(live_talker, tmp_path):
    search = SearchConfig("modified_beam_search", hotwords_score=60.0)
    engine = _open(Options(str(live_talker), device="cpu", search=search, chunk_ms=160, left_ms=640))
    wave = say("好气很好", np.random.default_rng(0))
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    whole = Recognizer.from_pretrained(live_talker, search, device="cpu").transcribe(tmp_path / "a.wav")
    with (tmp_path / "a.wav").open("rb") as file:
        assert engine.transcribe(SoundFile(file), lambda: False, lambda _: None) == whole
    texts = []
    for hotwords in ([], ["吗吗吗"]):
        session = engine.live(16000, engine.spell(hotwords))
        assert isinstance(session, StreamingSession)
        heard = [result for start in range(0, len(wave), 1600) for result in session.accept(wave[start : start + 1600])]
        heard += session.finish()
        assert len(heard) > 3 and [result.is_final for result in heard] == [False] * (len(heard) - 1) + [True]
        assert heard[-1].segment.words and heard[0].segment.num_stable_tokens is not None
        texts.append(heard[-1].segment.text)
    assert texts[0][:2] == whole.text[:2] == "好气" and "吗吗吗" in texts[1]
    engine.close()


def test_graphs_are_chosen_in_the_precision_of_the_options(talker, tmp_path):
    """Two encoders in fp32 are no obstacle to int8, of which there is one."""
    shutil.copytree(talker / "onnx", tmp_path / "onnx")
    shutil.copy(talker / "onnx" / "encoder.onnx", tmp_path / "onnx" / "encoder-2.onnx")
    _open(Options(str(tmp_path / "onnx"), precision="int8")).close()
    with pytest.raises(ValueError, match="several graphs of the encoder: encoder-2.onnx, encoder.onnx"):
        _open(Options(str(tmp_path / "onnx")))


def test_threads_of_a_checkpoint_are_set(talker, monkeypatch):
    set_num_threads = Mock()
    monkeypatch.setattr("torch.set_num_threads", set_num_threads)
    _open(Options(str(talker / "model.pt"), device="cpu", num_threads=3)).close()
    set_num_threads.assert_called_once_with(3)


def test_an_offline_checkpoint_has_no_chunks(talker, capsys):
    flags = ["--port", "0", "--device", "cpu", "--chunk-ms", "320"]
    assert main(["serve", str(talker / "model.pt"), *flags]) == 1
    assert "`--chunk-ms` 320 needs a streaming model" in capsys.readouterr().err
