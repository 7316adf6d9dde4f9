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


@pytest.mark.sweep
def test_zipformer_goes_there_and_back(zipformer_golden, tmp_path, capsys):
    given, model, back = zipformer_golden / "causal" / "pretrained.pt", tmp_path / "m.pt", tmp_path / "back.pt"
    build_token_table(["".join(chr(0x4E00 + i) for i in range(38))], "char").write(tmp_path / "lang")
    flags = ["--tokens", tmp_path / "lang" / "tokens.txt", "--output", model]
    for known, missing in (
        ([], "num-heads"),
        (["--num-heads", "4,4,6,4"], "chunk-size"),
        (["--num-heads", "4,4,6,4", "--chunk-size", "16,32,64,-1"], "left-context-frames"),
    ):
        assert _run("import", "--checkpoint", given, *flags, *known) == 1
        printed = capsys.readouterr().err
        assert f"the weights do not show `--{missing}`" in printed and "`transducer import`" in printed
    known += ["--left-context-frames", "64,128,256,-1"]
    assert _run("import", "--checkpoint", given, *flags, *known, "--encoder", "conformer") == 1
    assert "`--encoder` is conformer, but the file holds a zipformer" in capsys.readouterr().err
    assert _run("import", "--checkpoint", given, *flags, *known, "--num-heads", "5") == 1
    assert "`--num-heads` is 5,5,5,5" in capsys.readouterr().err
    few = ["--num-heads", "4,4,6,4", "--chunk-size", "16", "--left-context-frames", "64"]
    assert _run("import", "--checkpoint", given, *flags, *few) == 0
    # numbers of chunks, unlike others, are not one for each stack
    assert load_checkpoint(model).model_config.encoder.chunk_size == (16,)
    assert _run("import", "--checkpoint", given, *flags, *known) == 0
    assert "causal zipformer, 5 layers in 4 stacks of width up to 64; 41 tokens, context 1" in capsys.readouterr().out
    assert _run("export", "icefall", "--checkpoint", model, "--output", back) == 0
    wanted, found = (torch.load(path, weights_only=True)["model"] for path in (given, back))
    assert list(found) == list(wanted) and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_size_of_a_zipformer_is_refused_for_a_conformer(golden, lang_dir, tmp_path, capsys):
    flags = ["--lang-dir", lang_dir, "--output", tmp_path / "m.pt", "--num-heads", "4"]
    assert _run("import", "--checkpoint", golden / "r" / "pretrained.pt", *flags) == 1
    assert "`--num-heads` is a size of a zipformer, but the file holds a conformer" in capsys.readouterr().err
