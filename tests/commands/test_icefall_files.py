"""``transducer import`` and ``transducer export icefall``: what they write, and what they say."""

from __future__ import annotations

import shutil

import pytest
import torch

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.text.tokens import build_token_table


@pytest.fixture
def lang_dir(tmp_path):
    """As many tokens as model r has, with icefall's symbols behind them that are no tokens."""
    table = build_token_table(["一二三四五六七八九十百千万今明后天早上下午晚的是不在"], "char")
    table.write(tmp_path / "lang_char", extra=("#0", "#1"))
    (tmp_path / "lang_char" / "lang.json").unlink()
    assert len(table) == 29
    return tmp_path / "lang_char"


def _run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("tokens", ["", "tokens.txt"], ids=["folder", "file"])
def test_model_goes_there_and_back(golden, lang_dir, tmp_path, capsys, tokens):
    given, model, back = golden / "r" / "pretrained.pt", tmp_path / "m" / "model.pt", tmp_path / "i" / "pretrained.pt"
    assert _run("import", "--checkpoint", given, "--lang-dir", lang_dir / tokens, "--output", model) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(
        "model.pt: 155,173 parameters, conformer, 2 layers of width 48, 3 heads; 29 tokens, context 2"
    )
    checkpoint = load_checkpoint(model)
    assert checkpoint.token_table.decode([3, 4, 28]) == "一二在"
    assert checkpoint.provenance["imported"]["file"] == "pretrained.pt"
    assert _run("export", "icefall", "--checkpoint", model, "--output", back) == 0
    assert "pretrained.pt: 80 tensors; `--context-size` 2" in " ".join(capsys.readouterr().out.split())
    wanted, found = (torch.load(path, weights_only=True)["model"] for path in (given, back))
    assert list(found) == list(wanted) and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_imported_model_transcribes(golden, lang_dir, tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", torch.randn(16000).mul(0.1).clamp(-1, 1).numpy(), 16000)
    flags = ["--lang-dir", lang_dir, "--output", tmp_path / "m.pt"]
    assert _run("import", "--checkpoint", golden / "r" / "pretrained.pt", *flags) == 0
    capsys.readouterr()
    assert _run("transcribe", tmp_path / "m.pt", tmp_path / "a.wav") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.wav'}\t")


def test_written_file_replaces_the_one_that_was_there_only_if_all_went_well(golden, lang_dir, tmp_path, capsys):
    given, model = golden / "r" / "pretrained.pt", tmp_path / "m.pt"
    model.write_text("old")
    (tmp_path / "half.pt").write_bytes(given.read_bytes()[:5000])
    flags = ["--lang-dir", lang_dir, "--output", model]
    assert _run("import", "--checkpoint", tmp_path / "half.pt", *flags) == 1
    assert "half.pt is not a checkpoint, or is truncated." in capsys.readouterr().err
    assert model.read_text() == "old"
    assert _run("import", "--checkpoint", given, *flags) == 0
    assert load_checkpoint(model).model_config.encoder.num_layers == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.pt", "lang_char", "m.pt"]


def test_other_tokens_are_refused_with_both_numbers(golden, lang_dir, tmp_path, capsys):
    build_token_table(["一二"], "char").write(lang_dir)
    flags = ["--lang-dir", lang_dir, "--output", tmp_path / "m.pt"]
    assert _run("import", "--checkpoint", golden / "r" / "pretrained.pt", *flags) == 1
    assert "is a model of 29 tokens, but `--lang-dir` has 5; pass the one" in capsys.readouterr().err
    assert not (tmp_path / "m.pt").exists()


def test_missing_tokens_are_explained(golden, tmp_path, capsys):
    flags = ["--lang-dir", tmp_path, "--output", tmp_path / "m.pt"]
    assert _run("import", "--checkpoint", golden / "r" / "pretrained.pt", *flags) == 1
    assert "holds no tokens.txt" in capsys.readouterr().err


def test_icefalls_file_is_no_input_of_the_export(golden, tmp_path, capsys):
    shutil.copy(golden / "r" / "pretrained.pt", tmp_path / "p.pt")
    assert _run("export", "icefall", "--checkpoint", tmp_path / "p.pt", "--output", tmp_path / "q.pt") == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "p.pt is not a checkpoint of stateless-transducer" in printed
    assert "`transducer import` converts a checkpoint of icefall" in printed


def test_output_that_cannot_be_written_is_named(golden, lang_dir, tmp_path, capsys):
    # a file where a folder should be stops the superuser, too
    (tmp_path / "file").touch()
    flags = ["--lang-dir", lang_dir, "--output", tmp_path / "file" / "m.pt"]
    assert _run("import", "--checkpoint", golden / "r" / "pretrained.pt", *flags) == 1
    assert "/file/m.pt cannot be written (" in capsys.readouterr().err


def test_export_alone_lists_what_can_be_exported(capsys):
    assert main(["export", "--help"]) == 0
    assert "transducer export icefall" in capsys.readouterr().out
