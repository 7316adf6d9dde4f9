"""``transducer serve``: which options it refuses."""

from __future__ import annotations

import pytest

from stateless_transducer.cli import main
from stateless_transducer.commands.serve import _listening


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
        (["--decoding-method", "beam_search"], "`--decoding-method` beam_search"),
        (["--align", "false"], "`--align` false"),
        (["--vad", "energy"], "`--vad` energy"),
        (["--max-wait-ms", "7"], "`--max-wait-ms` 7"),
    ],
)
def test_a_streaming_model_refuses_what_it_has_no_use_for(tiny_model, capsys, flags, wanted):
    assert main(["serve", str(tiny_model().folder), "--port", "0", *flags]) == 1
    assert f"{wanted} needs an offline model, but {tiny_model().folder} is a streaming" in capsys.readouterr().err
