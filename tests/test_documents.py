"""What the README shows of Python runs as it stands there; what documents link to is there; flags they name exist."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from model_sizes import conformer_model

from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import build_token_table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md"]


def _example(document: Path, holds: str) -> str:
    """The one Python block of a document that holds a text."""
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if holds in block)
    return example


def test_example_of_the_loss_runs():
    names: dict = {}
    exec(_example(README, "joint_transducer_loss("), names)
    assert names["nll"].sum().item() > 0
    # both doors say the same
    assert abs(names["nll"].sum().item() - names["loss"].item()) < 1e-3
    assert names["encoder_out"].grad is not None


def test_example_of_the_pruned_loss_runs():
    names: dict = {}
    exec(_example(ROOT / "docs" / "loss.md", "simple_transducer_loss("), names)
    assert names["loss"].item() > 0 and names["band"].width == 5
    assert all(names[name].weight.grad.any() for name in ("joiner", "from_encoder", "from_decoder"))


def test_examples_of_losses_differentiate():
    for page, text, inputs in (
        ("loss.md", "output = ", "output.weight"),
        ("migrating.md", "blank=-1", "logits"),
        ("migrating.md", "packed = ", "packed"),
    ):
        names: dict = {}
        exec(_example(ROOT / "docs" / page, text), names)
        assert eval(inputs, names).grad.any(), page


def test_example_of_a_model_of_ones_own_runs(capsys):
    exec(_example(ROOT / "docs" / "decoding.md", "class Mine"), {"__name__": "example"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2] == "() () 0.0" and len(eval(lines[0].split(") (")[0] + ")")) > 3


@pytest.fixture
def example_folder(tmp_path, monkeypatch):
    """The current folder, with files of the names that examples use."""
    tokens = build_token_table(["张三李四王五"], "char")
    sizes = conformer_model(
        vocab_size=len(tokens), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8
    )
    weights = build_model(sizes).state_dict()
    save_checkpoint(tmp_path / "model.pt", Checkpoint(weights, sizes, FbankConfig(), tokens))
    unigrams = "".join(f"-1 {symbol} 0\n" for symbol in "张三李四王五")
    (tmp_path / "lm.arpa").write_text(f"\\1-grams:\n-1 </s>\n-99 <s> 0\n{unigrams}\\end\\\n", encoding="utf-8")
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for name in ("a.wav", "b.mp3", "three_hours.mp4"):
        soundfile.write(tmp_path / name, wave, 16000, format="WAV")
    monkeypatch.chdir(tmp_path)


def test_example_of_hotwords_and_a_language_model_runs(example_folder):
    names: dict = {}
    exec(_example(ROOT / "docs" / "decoding.md", "NgramScorer(read_arpa("), names)
    assert names["nbest"][0].tokens and math.isfinite(names["nbest"][0].score)


def test_examples_of_the_recognizer_run(example_folder, capsys):
    for document, text in (
        (README, "Recognizer"),
        (ROOT / "docs" / "transcribe.md", "stream_transcribe"),
        (ROOT / "docs" / "transcribe.md", "DetailConfig"),
    ):
        exec(_example(document, text), {})
        assert capsys.readouterr().out, document


def test_examples_import_public_names_alone():
    blocks = [
        block
        for document in DOCUMENTS
        for block in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert len(blocks) > 4
    assert not re.findall(r"^.*stateless_transducer\.\w+.* import .*$", "".join(blocks), re.MULTILINE)


def test_links_lead_somewhere():
    assert len(DOCUMENTS) > 10
    links = [
        (document, link)
        for document in DOCUMENTS
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
        if not link.startswith("http")
    ]
    assert len(links) > 20
    assert not [
        f"{document.relative_to(ROOT)}: {link}" for document, link in links if not (document.parent / link).exists()
    ]


def test_flags_of_our_commands_exist():
    lines = (ROOT / "tests" / "commands" / "flags.txt").read_text(encoding="utf-8").splitlines()
    # the documents use the present names, not their aliases
    split = (line.split(":") for line in lines)
    flags = {command: {flag.partition("=")[0] for flag in flags.split()} for command, flags in split}
    seen, missing = 0, []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^transducer (.*)", text, re.MULTILINE):
            typed = line.split("#")[0]
            command = max((name for name in flags if typed.startswith(name + " ")), key=len, default=None)
            if command is None:
                missing.append(f"{document.name}: {line}")
                continue
            used = set(re.findall(r"(?<=\s)--[a-z][a-z0-9-]+", typed))
            seen += len(used)
            missing += [f"{document.name}: {flag} of {command}" for flag in used - flags[command]]
    assert seen > 50
    assert not missing


def test_messages_of_troubleshooting_are_those_of_the_code():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "stateless_transducer").rglob("*.py"))
    code = re.sub(r'"\n\s*f?"', "", code)
    table = re.findall(r"^\| ([^|]*) \|", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    pieces = [
        piece.strip()
        for symptom in table
        for message in re.findall(r"`([^`]+)`", symptom)
        for piece in message.split("...")
        if len(piece) > 5
    ]
    assert len(pieces) > 30
    assert not [piece for piece in pieces if piece not in code]


def _typed(document: Path) -> list[str]:
    """The lines of a document's commands and examples, without their comments."""
    blocks = re.findall(r"```(?:sh|python)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = (re.sub(r"(^|\s)# .*", "", line).rstrip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("english", "chinese"), [("README.md", "quickstart_zh.md"), ("docs/tutorial.md", "tutorial_zh.md")]
)
def test_chinese_pages_have_the_commands_of_the_english_ones(english, chinese):
    typed = _typed(ROOT / english)
    assert len(typed) > 20
    assert _typed(ROOT / "docs" / chinese) == typed
