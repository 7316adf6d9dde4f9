"""A pushed model is a model: here by name and from its folder, in sherpa-onnx, and to train from."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import yaml
from published import point_at, serving_hub
from tiny_talker import say

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.recognition.model import load_pretrained
from stateless_transducer.recognition.recognizer import Recognizer

pytest.importorskip("huggingface_hub")
RESULT = {
    "test_set": "dev",
    "metric": "CER",
    "error_rate": 4.25,
    "confidence_interval": {"confidence": 0.95, "low": 3.9, "high": 4.6},
    "method": "greedy_search",
    "utterances": 300,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving_hub() as served:
        point_at(served.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield served


@pytest.fixture
def result(tmp_path):
    (tmp_path / "result-dev.json").write_text(json.dumps(RESULT))
    return tmp_path / "result-dev.json"


def _front_matter(card):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_pushed_model_is_opened_by_its_name(hub, talker, result, tmp_path, capsys):
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    text = Recognizer.from_pretrained(talker / "model.pt").transcribe(tmp_path / "a.wav").text
    flags = [
        "--language",
        "zh",
        "en",
        "--license",
        "apache-2.0",
        "--training-data",
        "Ten sentences.",
        "--results",
        str(result),
    ]
    assert main(["push", str(talker / "model.pt"), "me/talker", *flags, "--int8"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/me/talker\n"
    files = hub.repositories["me/talker"].files
    assert {"model.safetensors", "encoder.onnx", "joiner.int8.onnx", "tokens.txt", "README.md"} <= set(files)
    assert Recognizer.from_pretrained("me/talker").transcribe(tmp_path / "a.wav").text == text
    assert "model.safetensors" not in {name for name, _ in hub.downloads}
    ours = load_checkpoint(talker / "model.pt")
    assert all((load_pretrained("me/talker").weights[name] == value).all() for name, value in ours.weights.items())
    # the card states what the publisher states, and results with their interval
    card = files["README.md"].decode()
    facts = _front_matter(card)
    assert facts["language"] == ["zh", "en"] and facts["license"] == "apache-2.0"
    assert facts["model-index"][0]["results"][0]["metrics"][0]["value"] == 4.25
    assert "Ten sentences." in card and "3.9..4.6" in card
    assert 'from_pretrained("me/talker")' in card and "sherpa_onnx.OfflineRecognizer" in card
    # pushed again without int8, the repository holds no int8 of the first model
    assert main(["push", str(talker / "model.pt"), "me/talker", "--language", "zh"]) == 0
    assert "joiner.int8.onnx" not in hub.repositories["me/talker"].files


@pytest.mark.sweep
def test_pushed_causal_model_has_both_uses(hub, live_talker, tmp_path, capsys, monkeypatch):
    """Whole utterances and live sound, by its name; its graphs are those of live sound."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    soundfile.write(tmp_path / "a.wav", say("好气很好", np.random.default_rng(0)), 16000)
    flags = ["--language", "zh", "--int8", "--output-dir", str(tmp_path / "live")]
    texts = []
    for model in (str(live_talker), "me/live", str(tmp_path / "live")):
        if model == "me/live":
            assert main(["push", str(live_talker), model, *flags]) == 0
            capsys.readouterr()
        for command in ("transcribe", "stream"):
            assert main([command, model, str(tmp_path / "a.wav"), "--device", "cpu"]) == 0
            texts.append(capsys.readouterr().out.split("\t")[-1])
    assert texts[:2] == texts[2:4] == texts[4:] and all(texts)
    graphs = {f"{role}{ending}.onnx" for role in ("encoder", "decoder", "joiner") for ending in ("", ".int8")}
    described = {"model.json", "tokens.txt", "lang.json"}
    streaming = {f"streaming/{name}" for name in graphs | described}
    files = hub.repositories["me/live"].files
    assert set(files) == {"model.safetensors", "README.md"} | described | streaming
    assert not {name for name, _ in hub.downloads} & streaming
    card = files["README.md"].decode()
    assert "transducer stream me/live" in card and "Offline" not in card
    assert {"onnx", "streaming"} <= set(_front_matter(card)["tags"])
    names: dict = {"sherpa_onnx": sherpa_onnx}
    monkeypatch.chdir(tmp_path / "live")
    exec(card.split("```python\n")[2].split("```")[0], names)
    samples = np.concatenate([soundfile.read(tmp_path / "a.wav", dtype="float32")[0], np.zeros(16000, np.float32)])
    stream = names["recognizer"].create_stream()
    stream.accept_waveform(16000, samples)
    while names["recognizer"].is_ready(stream):
        names["recognizer"].decode_stream(stream)
    assert names["recognizer"].get_result(stream) == texts[1].strip()
    assert main(["stream", str(tmp_path / "live" / "streaming"), str(tmp_path / "a.wav")]) == 0
    assert capsys.readouterr().out.split("\t")[-1] == texts[1]


def test_code_of_the_card_runs(talker, tmp_path, monkeypatch):
    """From the folder alone: here, and in sherpa-onnx."""
    pytest.importorskip("sherpa_onnx")
    folder = tmp_path / "talker"
    assert main(["push", str(talker / "model.pt"), "--language", "zh", "--output-dir", str(folder)]) == 0
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    shutil.copy(tmp_path / "a.wav", folder)
    here, in_sherpa_onnx = (
        block.split("```")[0] for block in (folder / "README.md").read_text().split("```python\n")[1:]
    )
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    exec(here, names)
    monkeypatch.chdir(folder)
    exec(in_sherpa_onnx, names)
    stream = names["recognizer"].create_stream()
    stream.accept_waveform(16000, soundfile.read("a.wav", dtype="float32")[0])
    names["recognizer"].decode_stream(stream)
    assert stream.result.text == Recognizer.from_pretrained(folder).transcribe("a.wav").text


def test_file_of_another_origin_is_kept(talker, tmp_path, capsys):
    (tmp_path / "README.md").write_text("My notes.")
    flags = ["push", str(talker / "model.pt"), "--language", "zh", "--output-dir"]
    assert main([*flags, str(tmp_path)]) == 1
    assert f"`--output-dir` {tmp_path} holds a README.md" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.sweep
def test_folder_of_an_earlier_push_is_written_anew(talker, tmp_path):
    flags = ["push", str(talker / "model.pt"), "--language", "zh", "--output-dir", str(tmp_path / "new")]
    assert main([*flags, "--int8"]) == main(flags) == 0
    # it holds nothing of the earlier model
    assert not list((tmp_path / "new").glob("*.int8.onnx"))


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ("--language zh", 2, "OWNER/NAME, or set `--output-dir`"),
        ("me/x@v2 --language zh", 1, "must be OWNER/NAME of Hugging Face, but is 'me/x@v2'"),
        ("me/x --language zh --results no.json", 1, "`--results` no.json: no such file"),
        ("me/x --language zh --results {talker}/onnx/model.json", 1, "it lacks `test_set`"),
        ("me/x --language zh", 1, "me/x: no permission to write there.*HF_TOKEN"),
    ],
)
def test_push_that_cannot_be_is_explained(hub, talker, monkeypatch, capsys, flags, status, message):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    try:
        found = main(["push", str(talker / "model.pt"), *flags.format(talker=talker).split()])
    except SystemExit as stopped:
        found = stopped.code
    assert found == status
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(message, printed), printed
    assert hub.repositories == {}
