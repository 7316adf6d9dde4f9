"""The shell blocks of the documents run in their order, with tiny models and corpora, or are marked with a reason.

A comment `<!-- not run: REASON -->` above a block marks it; `test_documents.py` parses the commands of all blocks.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from model_sizes import conformer_model, zipformer_model
from published import point_at, serving_hub
from served import running
from sounds import AISHELL_TEXTS, write_encoding

from stateless_transducer import save_icefall
from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.config import ModelConfig, ZipformerConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable

pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/README.md", "egs/**/README.md")
    for path in sorted(ROOT.glob(pattern))
    if not path.stem.endswith("_zh") and path.name != "tutorial.md"
]
"""All but the tutorial, whose blocks `test_tutorial.py` runs, and the Chinese ones, which repeat English ones."""
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A shell block, and the reason if it is not run."""

    text: str
    reason: str | None


BLOCKS = {
    str(document.relative_to(ROOT)): [
        Block(match["text"], match["reason"])
        for match in BLOCK.finditer(document.read_text(encoding="utf-8"))
        if match["language"] == "sh"
    ]
    for document in DOCUMENTS
}
RUN = {name: [block for block in blocks if block.reason is None] for name, blocks in BLOCKS.items()}

TRAINING = "--num-epochs 1 --num-workers 0 --num-buckets 1 --min-utterance-s 0.3 --tensorboard false --average-period 0"
SIZES = {
    "conformer": "--num-layers 1 --attention-dim 16 --num-heads 2 --feedforward-dim 16 --conv-kernel 3 --joiner-dim 16",
    "zipformer": "--num-encoder-layers 1 --encoder-dim 16 --encoder-unmasked-dim 16 --feedforward-dim 16 --num-heads 1 "
    "--query-head-dim 4 --value-head-dim 4 --pos-head-dim 2 --pos-dim 8 --cnn-module-kernel 5 --joiner-dim 16 "
    "--subsampling-channels 16",
}


def _small(words: list[str]) -> list[str]:
    """Append to a command what makes it small: the one place where commands are other than in the documents."""
    match words:
        case ["train", *options]:
            encoder = "zipformer" if "zipformer" in options else "conformer"
            sizes = "" if "--init-from" in options else SIZES[encoder]
            return [*words, *shlex.split(f"{TRAINING} {sizes}")]
        case ["prepare", "table" | "musan", *_]:
            return [*words, "--num-jobs", "1"]
        case ["serve", *_]:
            return [*words, "--host", "127.0.0.1", "--port", "0"]
    return words


PREPARED_BEFORE = {
    "docs/training.md": ["prepare table my.tsv --dev-share 0.05"],
    "docs/troubleshooting.md": ["prepare table my.tsv --dev-share 0.05"],
    "docs/models.md": ["decode --exp-dir exp --epoch 29 --avg 10 --test-sets test"],
    "docs/streaming.md": ["export onnx --model model.pt --output FOLDER --streaming true"],
}
"""What a document's readers have done before, beside the files of `documents`."""
WITHOUT_DATA = {"README.md", "docs/data.md", "docs/training.md", "docs/troubleshooting.md"}
"""Documents that begin with a corpus of the reader's own; the others begin with AISHELL prepared."""
CAUSAL = {"docs/export.md", "docs/server.md", "docs/streaming.md"}
"""Documents whose model.pt is a causal one."""
PUBLISHED = ("owner/name", "zrjin/icefall-asr-aishell-zipformer-2023-10-24")
ARCHIVE = "sherpa-onnx-streaming-zipformer-zh-14M-2023-02-23"
SERVER = "127.0.0.1:8000"
QUICK = ("README.md", "docs/server.md", "docs/transcribe.md")
"""Documents that `make test` runs as well."""
EXTRAS = set(metadata("stateless-transducer").get_all("Provides-Extra", []))


def test_blocks_with_commands_are_shell_blocks():
    wrong = [
        f"{document.relative_to(ROOT)}: ```{match['language']}\n{match['text']}"
        for document in DOCUMENTS
        for match in BLOCK.finditer(document.read_text(encoding="utf-8"))
        if match["language"] != "sh" and re.search(r"^(?:\$ )?transducer ", match["text"], re.M)
    ]
    assert not wrong, "\n".join(wrong)


def test_marks_are_above_shell_blocks():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in BLOCKS}
    marks = {name: len(re.findall(r"^<!-- not run", text, re.MULTILINE)) for name, text in texts.items()}
    assert marks == {name: sum(block.reason is not None for block in blocks) for name, blocks in BLOCKS.items()}
    assert sum(map(len, RUN.values())) > sum(marks.values())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.sweep) for name, blocks in RUN.items() if blocks],
)
def test_shell_blocks_run(name, documents, tmp_path, monkeypatch, capfd):
    folder = _folder_for(name, documents, tmp_path / "folder")
    monkeypatch.chdir(folder)
    before = [f"transducer {command}" for command in PREPARED_BEFORE.get(name, [])]
    shown = [line for block in RUN[name] for line in block.text.replace("\\\n", " ").splitlines()]
    failures = []
    with _hub(documents, tmp_path, monkeypatch), _servers(monkeypatch) as addresses:
        for line in [*before, *shown]:
            capfd.readouterr()
            status = _run(line, addresses, monkeypatch)
            printed = capfd.readouterr()
            if status or "Traceback" in printed.err or '"error"' in printed.out:
                failures.append(f"{line} ({status})\n{printed.out}\n{printed.err}")
    assert not failures, "\n".join(failures)


def _run(line: str, addresses: Sequence[str], monkeypatch) -> int | str | None:
    """Run a line, and return its exit status: commands of this package in this process, others by a shell.

    Installations are not run; their extras must exist.
    """
    left, pipe, right = line.partition("| transducer ")
    words = shlex.split(right if pipe else line, comments=True)
    if not words:
        return 0
    if pipe:
        with subprocess.Popen(["bash", "-ec", left], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(process.stdout))
            return _transducer(words) or process.wait()
    if words[0] == "transducer":
        return _transducer(words[1:])
    if words[0] == "pip":
        (extras,) = re.findall(r"^\.\[([\w,]+)\]$", words[-1])
        return int(not set(extras.split(",")) <= EXTRAS)
    if line.startswith("python3 -m venv"):
        return 0
    if SERVER in line:
        line = line.replace(SERVER, addresses[-1].removeprefix("http://"))
    return subprocess.run(["bash", "-ec", line]).returncode


def _transducer(words: list[str]) -> int | str | None:
    # an ellipsis stands for the options of the reader's training
    words = [part for word in words for part in (["--prefix", "table"] if word == "..." else [word])]
    try:
        return main(_small(words))
    except SystemExit as stopped:
        return stopped.code


@contextmanager
def _servers(monkeypatch) -> Iterator[list[str]]:
    """Let `transducer serve` return while its server runs in a thread; yields the addresses, the newest last."""
    addresses: list[str] = []
    with ExitStack() as servers:

        def serve(service, listener, **options):
            addresses.append(servers.enter_context(running(service)))

        monkeypatch.setattr("stateless_transducer.server.lifecycle.serve", serve)
        yield addresses


@contextmanager
def _hub(documents: Path, folder: Path, monkeypatch) -> Iterator[None]:
    """Stand in for huggingface.co and sherpa-onnx's releases, with models of the names in the documents."""
    with serving_hub() as hub:
        point_at(hub.url, folder / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
        monkeypatch.setenv("TRANSDUCER_RELEASES", hub.url)
        for published in PUBLISHED:
            hub.publish(published, documents / "exported")
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:bz2") as tar:
            tar.add(documents / "streaming", ARCHIVE)
        hub.archives[f"/asr-models/{ARCHIVE}.tar.bz2"] = archive.getvalue()
        yield


def _folder_for(name: str, documents: Path, folder: Path) -> Path:
    """Copy what the readers of a document have."""
    shutil.copytree(documents, folder, symlinks=True)
    if name in WITHOUT_DATA:
        shutil.rmtree(folder / "data")
    if name in CAUSAL:
        shutil.copy(folder / "causal.pt", folder / "model.pt")
    if name in ("docs/finetune.md", "docs/zipformer.md"):
        shutil.copy(folder / "zipformer-pretrained.pt", folder / "pretrained.pt")
    if name == "docs/finetune.md":
        (folder / "FOLDER").symlink_to("mine-onnx")
    if name in ("docs/decoding.md", "docs/models.md"):
        (folder / "exp").mkdir()
        for epoch in range(30):
            (folder / "exp" / f"epoch-{epoch}.pt").symlink_to("../model.pt")
    return folder


@pytest.fixture(scope="module")
def documents(made_once, prepared) -> Path:
    """Files of the names that documents use: models, sounds, texts, a prepared corpus."""

    def make(folder: Path) -> None:
        shutil.copytree(prepared / "data", folder / "data")
        (folder / "download").mkdir()
        (folder / "download" / "musan").symlink_to(prepared / "musan")
        _write_models(folder, TokenTable.read(folder / "data" / "lang_char" / "tokens.txt"))
        _write_sounds(folder)
        _write_corpora(folder)

    return made_once("documents", make)


def _write_models(folder: Path, tokens: TokenTable) -> None:
    sizes = {"num_layers": 2, "attention_dim": 16, "num_heads": 2, "feedforward_dim": 16, "joiner_dim": 16}
    encoder = ZipformerConfig(
        num_encoder_layers=(1,),
        encoder_dim=(16,),
        encoder_unmasked_dim=(16,),
        feedforward_dim=(16,),
        num_heads=(4, 4, 4, 8, 4, 4),
        cnn_module_kernel=(5,),
    )
    models: dict[str, ModelConfig] = {
        "model": conformer_model(len(tokens), **sizes),
        "causal": conformer_model(len(tokens), **sizes, causal=True),
        "zipformer": zipformer_model(len(tokens), encoder, decoder_dim=16, joiner_dim=16),
    }
    for name, config in models.items():
        checkpoint = Checkpoint(build_model(config).state_dict(), config, FbankConfig(), tokens)
        save_checkpoint(folder / f"{name}.pt", checkpoint)
        if name != "causal":
            save_icefall(folder / ("pretrained.pt" if name == "model" else f"{name}-pretrained.pt"), checkpoint)
    for name, graphs, flags in (
        ("model", "exported", ["--int8", "true"]),
        ("causal", "streaming", ["--streaming", "true"]),
    ):
        words = ["export", "onnx", "--model", str(folder / f"{name}.pt"), "--output", str(folder / graphs), *flags]
        assert main(words) == 0
    shutil.copytree(folder / "exported", folder / "folder")


def _write_sound(path: Path, seconds: float = 1.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).normal(0, 0.1, round(16000 * seconds))
    soundfile.write(path, noise.clip(-1, 1), 16000)


def _write_sounds(folder: Path) -> None:
    for name in ("a.wav", "b.mp3", "sound.wav", "talk.mp3", "recordings/c.wav", "calls/d.mp3"):
        _write_sound(folder / name)
    write_encoding(folder, "index-first.mp4", 1.1, has_video=True).rename(folder / "talk.mp4")
    (folder / "names.txt").write_text("今天\n明天 :3\n", encoding="utf-8")
    lines = [json.dumps({"id": name, "path": f"{name}.wav"}) for name in ("a", "sound")]
    (folder / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _write_corpora(folder: Path) -> None:
    """Write tables, a folder and Kaldi's files of the same few recordings, and texts."""
    texts = [text.replace(" ", "") for sentences in AISHELL_TEXTS.values() for text in sentences]
    rows = [(f"speech/{number}.wav", texts[number % len(texts)]) for number in range(8)]
    for number, (path, text) in enumerate(rows):
        _write_sound(folder / path, 1 + number / 10)
        _write_sound(folder / "my_folder" / f"{number}.wav", 1 + number / 10)
        (folder / "my_folder" / f"{number}.txt").write_text(text, encoding="utf-8")
    table = "".join(f"{path}\t{text}\n" for path, text in rows)
    for name in ("my", "mine", "more"):
        (folder / f"{name}.tsv").write_text(f"path\ttext\n{table}", encoding="utf-8")
    for split, part in {"train": rows[:6], "dev": rows[6:]}.items():
        kaldi = folder / "kaldi" / "data" / split
        kaldi.mkdir(parents=True)
        (kaldi / "wav.scp").write_text("".join(f"{Path(path).stem} {path}\n" for path, _ in part))
        lines = (f"{Path(path).stem} {text}\n" for path, text in part)
        (kaldi / "text").write_text("".join(lines), encoding="utf-8")
    for name in ("texts.txt", "others.txt"):
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    # enough different words for 500 pieces
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abdeiklmnorstu"), 4)) for _ in range(400)]
    for name, count in {"train": 32, "test": 2}.items():
        lines = [
            json.dumps({"audio_filepath": f"speech/{n % 8}.wav", "text": " ".join(random.choice(words, 7))})
            for n in range(count)
        ]
        (folder / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")
