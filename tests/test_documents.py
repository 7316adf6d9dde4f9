"""Examples of documents and docstrings run as they stand; links lead to files; commands and flags exist."""

from __future__ import annotations

import doctest
import importlib
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from model_sizes import conformer_model
from served import served
from tiny_talker import TOKENS, say

import stateless_transducer
from stateless_transducer import Recognizer, save_icefall
from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.cli import COMMANDS, main
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.server.config import BatchConfig
from stateless_transducer.server.engine import PiecewiseEngine
from stateless_transducer.text.tokens import SPECIAL, build_token_table

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md"]


EXAMPLES = {
    f"{document.relative_to(ROOT)}:{text.count(chr(10), 0, block.start()) + 1}": block[1]
    for document in DOCUMENTS
    if not document.stem.endswith("_zh")
    for text in [document.read_text(encoding="utf-8")]
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
}
"""Python blocks of the documents by file and line."""
SERVER = "127.0.0.1:8000"


@pytest.fixture
def example_folder(tmp_path, monkeypatch, tiny_model):
    """The current folder, with files of the names that examples use."""
    tokens = build_token_table(["张三李四王五"], "char")
    for name, causal in (("model.pt", False), ("causal.pt", True)):
        sizes = conformer_model(
            vocab_size=len(tokens),
            num_layers=1,
            attention_dim=8,
            num_heads=2,
            feedforward_dim=8,
            joiner_dim=8,
            causal=causal,
        )
        weights = build_model(sizes).state_dict()
        save_checkpoint(tmp_path / name, Checkpoint(weights, sizes, FbankConfig(), tokens))
    unigrams = "".join(f"-1 {symbol} 0\n" for symbol in "张三李四王五")
    (tmp_path / "lm.arpa").write_text(f"\\1-grams:\n-1 </s>\n-99 <s> 0\n{unigrams}\\end\\\n", encoding="utf-8")
    wave = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for name in ("a.wav", "b.mp3", "three_hours.mp4"):
        soundfile.write(tmp_path / name, wave, 16000, format="WAV")
    (tmp_path / "model").symlink_to(tiny_model().folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", EXAMPLES)
def test_example_runs(place, example_folder, capsys):
    example, names = EXAMPLES[place], {"__name__": "example"}
    if "folder/encoder.onnx" in example:
        # sherpa-onnx ends the process if the graphs are of the other kind
        kind = ["causal.pt", "--streaming", "true"] if "OnlineRecognizer" in example else ["model.pt"]
        assert main(["export", "onnx", "--output", "folder", "--model", *kind]) == 0
    if SERVER in example:
        with served(PiecewiseEngine(Recognizer.from_pretrained("model.pt"), BatchConfig())) as address:
            exec(example.replace(SERVER, address.removeprefix("http://")), names)
    else:
        exec(example, names)
    printed = capsys.readouterr().out
    assert printed or "print(" not in example
    if "backward()" in example:
        leaves = [value for value in names.values() if isinstance(value, torch.Tensor) and value.is_leaf]
        leaves += [p for value in names.values() if isinstance(value, torch.nn.Module) for p in value.parameters()]
        assert any(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@pytest.fixture(scope="module")
def docstring_folder(tmp_path_factory, live_talker):
    """Files of the names that docstrings use: a trained model, a sound that says 今天很好, tokens, a language model."""
    folder = tmp_path_factory.mktemp("docstrings")
    (folder / "model.pt").symlink_to(live_talker)
    soundfile.write(folder / "a.wav", say("今天很好", np.random.default_rng(5)), 16000)
    sizes = conformer_model(vocab_size=len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, joiner_dim=8)
    save_icefall(folder / "pretrained.pt", Checkpoint(build_model(sizes).state_dict(), sizes, FbankConfig(), TOKENS))
    TOKENS.write(folder / "data" / "lang_char")
    unigrams = "".join(f"-1 {symbol} 0\n" for symbol in TOKENS.symbols[len(SPECIAL) :])
    (folder / "lm.arpa").write_text(f"\\1-grams:\n-1 </s>\n-99 <s> 0\n{unigrams}\\end\\\n", encoding="utf-8")
    return folder


def _docstring(name: str) -> str:
    value = getattr(stateless_transducer, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return inspect.getdoc(value) or ""
    # the docstring of an alias follows it
    source = inspect.getsource(importlib.import_module(f"stateless_transducer.{stateless_transducer._MODULES[name]}"))
    alias = re.search(rf'^{name}\b[^=]*= .*?^"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
    return alias[1] if alias else ""


@pytest.mark.parametrize("name", stateless_transducer._MODULES)
def test_docstring_of_a_public_name_has_an_example_that_runs(name, docstring_folder, monkeypatch):
    monkeypatch.chdir(docstring_folder)
    names = {public: getattr(stateless_transducer, public) for public in stateless_transducer.__all__}
    example = doctest.DocTestParser().get_doctest(_docstring(name), {"np": np, "torch": torch, **names}, name, None, 0)
    assert example.examples, "no example"
    printed: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
    assert not result.failed, "".join(printed)


def test_both_losses_of_the_readme_agree():
    (example,) = (block for place, block in EXAMPLES.items() if "README" in place and "joint_transducer_loss(" in block)
    names: dict = {}
    exec(example, names)
    assert abs(names["nll"].sum().item() - names["loss"].item()) < 1e-3


def test_examples_import_public_names_alone():
    assert not re.findall(r"^.*stateless_transducer\.\w+.* import .*$", "".join(EXAMPLES.values()), re.MULTILINE)


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


def _commands(document: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `transducer ...` line of a document."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^transducer (.*)", text, re.MULTILINE):
        shell = shlex.shlex(line, posix=True, punctuation_chars=True)
        shell.wordchars += "@,:+%$"
        words = itertools.takewhile(lambda word: not set(word) & set("|<>&;"), shell)
        yield [word for word in words if word != "..."]


def test_commands_of_documents_parse(monkeypatch, capsys):
    class Parsed(Exception):
        pass

    def parse_only(*arguments, **defaults):
        parse(*arguments, **defaults)
        raise Parsed

    for module, _ in COMMANDS.values():
        command = importlib.import_module(f"stateless_transducer.commands.{module}")
        monkeypatch.setattr(command, "parse", parse_only, raising=False)
    # translations have the same commands
    commands = {tuple(words): document.name for document in DOCUMENTS for words in _commands(document)}
    assert len(commands) > 50
    wrong = []
    for words, document in sorted(commands.items()):
        if words[-1] in ("--help", "--help-all", "--version"):
            continue
        try:
            status = main(list(words))
        except Parsed:
            continue
        except SystemExit as stopped:
            status = stopped.code
        wrong.append(f"{document}: transducer {' '.join(words)} ({status})\n{capsys.readouterr().err}")
    assert not wrong, "\n".join(wrong)


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
