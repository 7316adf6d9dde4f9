"""Every command of docs/tutorial.md, in its order, on a corpus of noise, with a tiny model, on the CPU."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from recipe_folder import RECIPE, ROOT, Folder
from sounds import write_aishell, write_musan

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.text.tokens import build_token_table

pytestmark = pytest.mark.sweep
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
PUBLISHED = "tmp/icefall-aishell-transducer-stateless-modified-2022-03-01"

TINY = (
    "--num-layers 1 --attention-dim 16 --num-heads 2 --feedforward-dim 16 --conv-kernel 3 --joiner-dim 16 "
    "--num-buckets 1 --min-utterance-s 0.3 --num-workers 0"
)
SPEAKERS = {
    ("train", "S0002"): ("今天 天气 很 好", "明天 下雨", "后天 不 好", "天气 不 好"),
    ("dev", "S0724"): ("天气 不 好",),
    ("test", "S0764"): ("后天 很 好", "今天 下雨", "明天 好"),
}


def _small(block: str, number: int) -> str:
    """The same commands with small sizes: the one place where they are other than in the tutorial."""
    lines = block.replace("\\\n", " ").splitlines()
    for i, line in enumerate(lines):
        command = line.partition("  #")[0].rstrip()
        if "/train.py" in command and "--help" not in command:
            command += f" {TINY} --master-port {_free_port()}" + _epochs(command, number)
        if "_modified/" not in command:
            command = command.replace("--epoch 29 --avg 10", "--epoch 1 --avg 2")
        command = re.sub(r"--world-size [34]", "--world-size 2", command)
        command = command.replace("--nnodes 2 --nproc-per-node 4", "--nnodes 1 --nproc-per-node 2")
        command = command.replace("torchrun", "torchrun --local-addr 127.0.0.1")
        command = command.replace("HOST:29500", f"127.0.0.1:{_free_port()}")
        command = re.sub(r"^(\./prepare.sh.*)", r"\1 --nj 1", command)
        command = re.sub(r"^(transducer prepare table .*)", r"\1 --num-jobs 1", command)
        # not a server that never ends
        lines[i] = command.replace("tensorboard --logdir", "tensorboard --inspect --logdir")
    return "\n".join(lines)


def _epochs(command: str, number: int) -> str:
    """The flags for few epochs, and for the tutorial's alternatives to its first training run, for another folder.

    The first run ends where a later one resumes it, which trains up to the usual last epoch. Of the alternatives, one
    on two processes and the one of torchrun train, the others just tell what they would do.
    """
    first = next(k for k, block in enumerate(BLOCKS) if re.search(r"_modified/train\.py$", block, re.MULTILINE))
    if number == first:
        return " --num-epochs 11"
    if "_modified/train.py" not in command:
        return " --num-epochs 2"
    if "--start-epoch" in command:
        return ""
    trains = "--world-size 2" in command or "torchrun" in command
    return f" --exp-dir other/{number} --num-epochs 2 --dry-run {'false' if trains else 'true'}"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the recipe, and what a user has before the tutorial begins."""
    made = Folder(tmp_path_factory.mktemp("clone"))
    here = made.path / "egs" / "aishell" / "ASR"
    shutil.copytree(RECIPE, here, symlinks=True)
    write_aishell(here / "download" / "aishell", SPEAKERS)
    write_musan(here / "download" / "musan")
    _write_published(here / PUBLISHED)
    _write_table(here)
    return made


def _write_published(folder: Path) -> None:
    """A small model of icefall's, where the published one would be."""
    for place in ("exp", "test_wavs"):
        (folder / place).mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "golden" / "icefall" / "r" / "pretrained.pt", folder / "exp")
    tokens = build_token_table(["一二三四五六七八九十百千万今明后天早上下午晚的是不在"], "char")
    tokens.write(folder / "data" / "lang_char")
    random = np.random.default_rng(3)
    for number in (121, 122, 123):
        sound = folder / "test_wavs" / f"BAC009S0764W0{number}.wav"
        soundfile.write(sound, random.normal(0, 0.1, 16000).clip(-1, 1), 16000)


def _write_table(folder: Path) -> None:
    """The corpus of one's own."""
    random = np.random.default_rng(4)
    for name in "abc":
        soundfile.write(folder / f"{name}.wav", random.normal(0, 0.1, 17000).clip(-1, 1), 16000)
    (folder / "mine.tsv").write_text("path\ttext\na.wav\t甲乙\nb.wav\t今天\nc.wav\t丙\n", encoding="utf-8")


@pytest.fixture(scope="module")
def runs(folder):
    """What each block did."""
    found = []
    for number, block in enumerate(BLOCKS):
        ran = folder.run("bash", "-ec", _small(block, number))
        found.append(Ran(ran.returncode, ran.stdout, ran.stderr))
    return found


@pytest.fixture(scope="module")
def here(folder, runs):
    return folder.path / "egs" / "aishell" / "ASR"


def _said(runs, command):
    """What the blocks with a command said."""
    return "".join(ran.out + ran.err for block, ran in zip(BLOCKS, runs, strict=True) if command in block)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_commands_of_the_tutorial_work(runs, number):
    assert runs[number].status == 0, f"{BLOCKS[number]}\n{runs[number].out}\n{runs[number].err}"
    assert "Traceback" not in runs[number].err


def test_tutorial_shows_all_scripts_and_its_options_exist():
    shown = {name for block in BLOCKS for name in re.findall(r"\./(\S+\.(?:py|sh))", block)}
    assert {f"transducer_stateless_modified/{name}.py" for name in ("train", "decode", "export", "pretrained")} <= shown
    assert "prepare.sh" in shown


def test_training_leaves_what_the_tutorial_says(here):
    exp = here / "transducer_stateless_modified" / "exp"
    names = {path.name for path in exp.iterdir()}
    assert {f"epoch-{n}.pt" for n in range(30)} | {"best-train-loss.pt", "best-valid-loss.pt"} <= names
    assert {"log", "tensorboard", "config.json", "README"} <= names
    assert list((exp / "log").glob("log-train-20*")) and (exp / "log" / "metrics.jsonl").is_file()


def test_runs_that_go_on_say_from_where(runs):
    said = _said(runs, "--start-epoch")
    for epoch in (2, 10):
        assert f"Loading checkpoint from transducer_stateless_modified/exp/epoch-{epoch}.pt" in said


def test_several_processes_train_one_model(here, runs):
    assert _said(runs, "# 2 GPUs").count("(0/2) Using DDP") == 1
    said = _said(runs, "torchrun")
    assert "(0/2) Using DDP" in said
    number = next(i for i, block in enumerate(BLOCKS) if "torchrun" in block)
    assert load_checkpoint(here / "other" / str(number) / "epoch-1.pt").provenance["epoch"] == 1


@pytest.mark.parametrize(
    ("method", "tail"),
    [
        ("greedy_search", "context-2-max-sym-per-frame-1"),
        ("beam_search", "beam_search-beam-size-4"),
        ("modified_beam_search", "modified_beam_search-beam-size-4"),
    ],
)
def test_decoding_leaves_what_the_tutorial_says(here, method, tail):
    folder = here / "transducer_stateless_modified" / "exp" / "log" / method
    for kind in ("recogs", "errs", "wer-summary"):
        assert (folder / f"{kind}-test-epoch-29-avg-10-{tail}.txt").is_file()
    assert len(list(folder.glob(f"log-decode-epoch-29-avg-10-{tail}-20*"))) == 1


def test_model_is_the_mean_of_ten_epochs(here):
    model = load_checkpoint(here / "model.pt")
    assert model.provenance["averaged"] == [f"epoch-{n}.pt" for n in range(20, 30)] and model.training_state is None
    weights = torch.load(here / "transducer_stateless_modified" / "exp" / "pretrained.pt", weights_only=True)["model"]
    assert torch.equal(weights["joiner.output_linear.weight"], model.weights["joiner.output_linear.weight"])


def test_published_model_is_transcribed_and_decoded_with(here, runs):
    said = _said(runs, "published/test_wavs")
    assert [said.count(f"test_wavs/BAC009S0764W0{number}.wav:\n") for number in (121, 122, 123)] == [3, 1, 1]
    assert list((here / "published" / "log" / "greedy_search").glob("recogs-test-epoch-9999-avg-1-*"))


def test_other_recipes_train_models_of_their_own(here, runs):
    mixed, pruned = (
        load_checkpoint(here / name / "exp" / "epoch-1.pt")
        for name in ("transducer_stateless_modified-2", "pruned_transducer_stateless")
    )
    assert {"甲", "今"} <= set(mixed.token_table.symbols) and "甲" not in pruned.token_table.symbols
    assert any(name.startswith("simple_joiner.") for name in pruned.training_state["heads"])
    assert not mixed.training_state["heads"]
