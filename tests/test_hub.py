"""Models by name, from a server of our own that speaks the hub's protocol."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from published import point_at, serving_hub
from tiny_offline import write_offline

from stateless_transducer.cli import main
from stateless_transducer.hub import _download, locate
from stateless_transducer.recognition.model import is_streaming_folder, load_pretrained
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.streaming import StreamingRecognizer
from stateless_transducer.text.tokens import SPECIAL, TokenTable

file_download = pytest.importorskip("huggingface_hub.file_download")
constants = pytest.importorskip("huggingface_hub.constants")

GRAPHS = {f"{role}-epoch-99-avg-1.onnx" for role in ("encoder", "decoder", "joiner")}
FILES = {"encoder.onnx": bytes(5000), "decoder.onnx": b"d" * 300, "joiner.onnx": b"j" * 300, "tokens.txt": b"<blk> 0\n"}


@pytest.fixture(scope="module")
def offline_model(tmp_path_factory):
    return write_offline(tmp_path_factory.mktemp("offline"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server in place of huggingface.co, and an empty cache."""
    with serving_hub() as served:
        point_at(served.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("TRANSDUCER_RELEASES", served.url)
        yield served


@pytest.fixture
def sound(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(tmp_path / "a.wav", wave, 16000)
    return tmp_path / "a.wav"


def _names(hub):
    return {name for name, _ in hub.downloads}


def test_named_model_transcribes_and_only_its_files_are_downloaded(hub, offline_model, sound, tmp_path, capsys):
    others = {"test_wavs/0.wav": b"s" * 300, "README.md": b"r", "exp/pretrained.pt": b"p" * 300}
    int8 = {name.replace(".onnx", ".int8.onnx"): name.encode() * 9 for name in GRAPHS}
    hub.publish("me/tiny", offline_model, **others, **int8)
    assert main(["transcribe", "me/tiny", str(sound)]) == 0
    text = capsys.readouterr().out.split("\t")[1].strip()
    assert text and _names(hub) == {*GRAPHS, "tokens.txt"}
    del hub.downloads[:]
    # from Python, from the cache, and the same words as from the folder itself
    assert Recognizer.from_pretrained("me/tiny@main").transcribe(sound).text == text
    assert Recognizer.from_pretrained(offline_model).transcribe(sound).text == text
    assert main(["info", "me/tiny"]) == 0 and "zipformer2" in capsys.readouterr().out
    assert hub.downloads == []
    # fetched ahead: what int8 needs beside what is here already
    assert main(["pull", "me/tiny", "--precision", "int8"]) == 0
    folder = capsys.readouterr().out.strip()
    assert _names(hub) == set(int8) and locate("me/tiny") == locate(folder)


def test_path_wins_over_a_name(hub, offline_model, tmp_path, monkeypatch):
    shutil.copytree(offline_model, tmp_path / "me" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert Recognizer.from_pretrained("me/tiny").token_table.symbols[0] == "<blk>"
    assert hub.downloads == []


def test_streaming_model_by_name(hub, tiny_model, sound):
    tiny = tiny_model()
    hub.publish("me/live", tiny.folder)
    recognizer = StreamingRecognizer.from_pretrained("me/live")
    assert recognizer.transcribe(sound) == StreamingRecognizer.from_pretrained(tiny.folder).transcribe(sound)
    assert is_streaming_folder(locate("me/live"), ("graphs", "checkpoint"))
    with pytest.raises(ValueError, match="is a streaming encoder.*`transducer stream`"):
        Recognizer.from_pretrained("me/live")


def test_icefall_repository_and_its_clone(hub, golden, sound, tmp_path, capsys):
    """exp/pretrained.pt and data/lang_char: recognized, imported, and pointers that git left in a clone are named."""
    clone = tmp_path / "icefall-aishell"
    (clone / "exp").mkdir(parents=True)
    shutil.copy(golden / "r" / "pretrained.pt", clone / "exp")
    tokens = TokenTable((*SPECIAL, *(chr(0x4E00 + i) for i in range(29 - len(SPECIAL)))))
    tokens.write(clone / "data" / "lang_char")
    (clone / "data" / "lang_char" / "lang.json").unlink()
    hub.publish("me/icefall-aishell", clone)
    texts = [Recognizer.from_pretrained(model).transcribe(sound).text for model in (clone, "me/icefall-aishell")]
    assert texts[0] == texts[1]
    assert load_pretrained("me/icefall-aishell").token_table == tokens
    assert main(["import", "--model", "me/icefall-aishell", "--output", str(tmp_path / "m.pt")]) == 0
    assert main(["transcribe", str(tmp_path / "m.pt"), str(sound)]) == 0
    assert capsys.readouterr().out.endswith(f"\t{texts[0]}\n")
    (clone / "exp" / "pretrained.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert main(["transcribe", str(clone), str(sound)]) == 1
    assert "pretrained.pt is a Git LFS pointer" in capsys.readouterr().err
    # graphs alone cannot be trained
    hub.publish("me/graphs", **FILES)
    with pytest.raises(ValueError, match="me/graphs: holds ONNX graphs, but a checkpoint"):
        load_pretrained("me/graphs")
    assert _names(hub) == {"exp/pretrained.pt", "data/lang_char/tokens.txt"}


def test_interrupted_download_resumes(hub, monkeypatch):
    hub.publish("me/x", **FILES)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.most_bytes = 0
    with pytest.raises(OSError, match="me/x: the download failed .* Run the command again to resume"):
        locate("me/x")
    # each connection brings a part
    hub.most_bytes = 2000
    folder = locate("me/x")
    assert (folder / "encoder.onnx").read_bytes() == FILES["encoder.onnx"]
    assert {("encoder.onnx", 2000), ("encoder.onnx", 4000)} <= set(hub.downloads)


def test_folder_is_the_one_that_the_download_names(hub, monkeypatch, tmp_path):
    """The cache may have another layout, or a newer commit since the list of files was asked for."""
    hub.publish("me/x", **FILES)
    monkeypatch.setattr("stateless_transducer.hub._snapshots", lambda cache, name: tmp_path / "elsewhere")
    assert (locate("me/x") / "encoder.onnx").read_bytes() == FILES["encoder.onnx"]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_commit_during_the_download_is_downloaded_instead(hub, monkeypatch, is_damaged):
    """Its files are compared with its own hashes."""
    hub.publish("me/x", **FILES)
    newer = {**FILES, "encoder.onnx": b"n" * 5000}

    def download_late(*args):
        if hub.repositories["me/x"].files == FILES:
            hub.publish("me/x", **newer).sent |= {"encoder.onnx": b"e" * 5000} if is_damaged else {}
        return _download(*args)

    monkeypatch.setattr("stateless_transducer.hub._download", download_late)
    if is_damaged:
        with pytest.raises(OSError, match="encoder.onnx arrived damaged"):
            locate("me/x")
    else:
        folder = locate("me/x")
        assert {name: (folder / name).read_bytes() for name in FILES} == newer


def test_repository_that_keeps_changing_is_reported(hub, monkeypatch):
    epochs = itertools.count()
    others = {name: content for name, content in FILES.items() if name != "encoder.onnx"}

    def download_late(*args):
        hub.publish("me/x", **others, **{f"encoder-epoch-{next(epochs)}.onnx": bytes(5000)})
        return _download(*args)

    hub.publish("me/x", **FILES)
    monkeypatch.setattr("stateless_transducer.hub._download", download_late)
    with pytest.raises(OSError, match="me/x: the repository changed during the download. Run"):
        locate("me/x")


def test_damaged_file_is_removed(hub):
    repository = hub.publish("me/x", **FILES)
    repository.sent["encoder.onnx"] = b"e" * 5000
    with pytest.raises(OSError, match="encoder.onnx arrived damaged"):
        locate("me/x")
    repository.sent.clear()
    assert (locate("me/x") / "encoder.onnx").read_bytes() == FILES["encoder.onnx"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("me/nothing", "no such file or folder here, and http://127.* has no such model, or a private one"),
        ("me/private", "no such file or folder here, and http://127.* has no such model, or a private one.*HF_TOKEN"),
        ("me/gated", "access is granted on request at http://127.*/me/gated"),
        ("me/x@v2", "has no revision v2 of me/x"),
        ("me/x/exp", r"me/x/exp: holds no encoder\*.onnx"),
        ("me/whisper", "me/whisper: holds a whisper model, which is not supported"),
    ],
)
def test_model_that_cannot_be_had_is_explained(hub, model, message, monkeypatch):
    hub.publish("me/x", **FILES)
    hub.publish("me/private", **FILES).is_private = True
    hub.publish("me/gated", **FILES).is_gated = True
    hub.publish("me/whisper", **{"tiny-encoder.onnx": b"", "tiny-decoder.onnx": b""})
    with pytest.raises(ValueError, match=message):
        locate(model)
    assert hub.downloads == []
    if model in ("me/private", "me/gated"):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert (locate(model) / "tokens.txt").is_file()


@pytest.mark.parametrize(
    "model", ["./x", "/no/x", "x.pt", "exp/x.pt", "exp/x/", "x", "a b/c", "sherpa-onnx-zipformer-en"]
)
def test_mistyped_path_is_reported_without_the_network(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=f"^{model}: no such model; .*owner/name"):
        locate(model)


def test_missing_huggingface_hub_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"exp/model: no such file or folder here.*'stateless-transducer\[hub\]'"):
        locate("exp/model")


@pytest.mark.parametrize("state", ["offline", "unreachable"])
def test_cache_serves_without_a_connection(hub, tmp_path, monkeypatch, state):
    hub.publish("me/x", **FILES)
    folder = locate("me/x")
    if state == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert locate("me/x") == folder and locate(f"me/x@{folder.name}") == folder
    with pytest.raises(ValueError, match="me/y: no such file or folder here, and .* cannot be reached"):
        locate("me/y")
    (folder / "joiner.onnx").unlink()
    with pytest.raises(ValueError, match=r"me/x in the cache, without a connection: holds no joiner\*.onnx"):
        locate("me/x")


def test_release_archive_is_unpacked_once(hub, offline_model, sound, capsys):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:bz2") as tar:
        tar.add(offline_model, "sherpa-onnx-tiny")
    url = "/asr-models/sherpa-onnx-tiny.tar.bz2"
    content = packed.getvalue()
    # damaged on its way
    hub.archives[url] = content[:-2000] + bytes(1000) + content[-1000:]
    assert main(["transcribe", "asr-models/sherpa-onnx-tiny", str(sound)]) == 1
    printed = capsys.readouterr().err
    assert "sherpa-onnx-tiny.tar.bz2 is damaged" in printed and "remove it" in printed
    os.unlink(printed.split("error: ")[1].split(" is damaged")[0])
    hub.archives[url] = content
    assert main(["transcribe", "asr-models/sherpa-onnx-tiny", str(sound)]) == 0
    assert capsys.readouterr().out.startswith(f"{sound}\t")
    number = len(hub.downloads)
    assert locate("asr-models/sherpa-onnx-tiny").name == "sherpa-onnx-tiny" and len(hub.downloads) == number
    with pytest.raises(OSError, match="asr-models/no: no such file or folder here, and .*404"):
        locate("asr-models/no")


def test_release_archive_is_downloaded_once_by_many(hub):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:bz2") as tar:
        for name, size in (("encoder.onnx", 300_000), ("tokens.txt", 5)):
            member = tarfile.TarInfo(f"tiny/{name}")
            member.size = size
            tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(size)))
    hub.archives["/asr-models/tiny.tar.bz2"] = packed.getvalue()
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(locate, 8 * ["asr-models/tiny"]))
    assert len(folders) == 1 and len(hub.downloads) == 1
    assert sorted(path.name for path in folders.pop().parent.iterdir()) == [".tiny.lock", "tiny"]


@pytest.mark.sweep
def test_environment_variables_of_the_hub_hold(hub, offline_model, tmp_path):
    """In a process of its own, since huggingface_hub reads them when it is imported."""
    hub.publish("me/tiny", offline_model)
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "stateless_transducer", "pull", "me/tiny"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path / "home")), done.stderr
    assert done.stderr == ""
