"""``transducer info``: what it says of a checkpoint, of a folder of graphs, and of what is neither."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
from tiny_offline import write_offline

from stateless_transducer.checkpoint import load_checkpoint, save_checkpoint
from stateless_transducer.cli import main


@pytest.fixture
def info(capsys):
    def run(path, *flags, status=0):
        assert main(["info", str(path), *flags]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return run


def test_checkpoint_is_described(talker, info):
    path = talker / "model.pt"
    facts = json.loads(info(path, "--output-format", "json"))
    assert facts["format"] == "checkpoint" and facts["training_state"] is False
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["files"] == {"model.pt": {"bytes": path.stat().st_size, "sha256": digest}}
    assert facts["sizes"]["num_layers"] == 2 and facts["parameters"] > 10000
    assert facts["tokens"]["number"] == 9 and facts["tokens"]["first"][:4] == ["<blk>", "<sos/eos>", "<unk>", "今"]
    assert facts["front_end"]["num_mel_bins"] == 80 and facts["provenance"] == {"command": "tests"}
    text = info(path)
    assert text.startswith(f"{path}\n") and digest in text and f"{facts['parameters']:,}\n" in text
    assert "  tokens       9 of unit char: <blk> <sos/eos> <unk> 今 天" in text and "  command      tests\n" in text


def test_training_is_told(talker, info, tmp_path):
    provenance = {"epoch": 8, "step": 4766, "train_loss": 0.01617, "valid_loss": 0.5, "averaged": ["epoch-8.pt"]}
    checkpoint = replace(load_checkpoint(talker / "model.pt"), provenance=provenance, training_state={"step": 1})
    save_checkpoint(tmp_path / "epoch-8.pt", checkpoint)
    text = info(tmp_path / "epoch-8.pt")
    assert "  trained      9 epochs, 4766 batches, train loss 0.0162, valid loss 0.5000\n" in text
    assert "  averaged     epoch-8.pt\n" in text and "  format       checkpoint, with training state\n" in text


def test_provenance_of_any_type_is_shown(talker, info, tmp_path):
    provenance = {"epoch": "8", "step": [1], "train_loss": "low", "averaged": 3, "valid_loss": 1}
    checkpoint = replace(load_checkpoint(talker / "model.pt"), provenance=provenance)
    save_checkpoint(tmp_path / "m.pt", checkpoint)
    assert "  trained      valid loss 1.0000\n" in info(tmp_path / "m.pt") and "averaged" not in info(tmp_path / "m.pt")
    assert json.loads(info(tmp_path / "m.pt", "--output-format", "json"))["provenance"] == provenance


def test_card_of_other_types_is_refused(talker, info, tmp_path):
    folder = shutil.copytree(talker / "onnx", tmp_path / "onnx")
    card = json.loads((folder / "model.json").read_text())
    int8 = {"metric": "CER", "corpus": "x", "test_set": "dev", "error_rate_fp32": 1.0, "utterances": 3, "kept": True}
    for name, value in (("files", []), ("sizes", 1), ("parameters", "1"), ("provenance", []), ("int8", 1)):
        (folder / "model.json").write_text(json.dumps({**card, name: value}))
        assert f"model.json is damaged: `{name}` is a {type(value).__name__}" in info(folder, status=1)
    (folder / "model.json").write_text(json.dumps({**card, "int8": {**int8, "error_rate_int8": "low"}}))
    assert "`error_rate_int8` is a str" in info(folder, status=1)
    (folder / "model.json").write_text(json.dumps({**card, "int8": {**int8, "error_rate_int8": 1.5}}))
    assert "  int8         CER 1.50 %, fp32 1.00 % (x dev, 3 utterances)\n" in info(folder)


def test_our_folder_is_described_and_changes_are_seen(talker, info, tmp_path):
    folder = shutil.copytree(talker / "onnx", tmp_path / "onnx")
    facts, of_checkpoint = (json.loads(info(path, "--output-format", "json")) for path in (folder, talker / "model.pt"))
    for name in ("sizes", "parameters", "tokens", "front_end", "provenance"):
        assert facts[name] == of_checkpoint[name], name
    assert facts["format"] == "ONNX" and "changed_since_export" not in facts
    assert {"encoder.onnx", "encoder.int8.onnx", "tokens.txt"} < set(facts["files"])
    assert facts["metadata"]["model_type"] == "conformer" and "int8" not in facts
    with (folder / "tokens.txt").open("a") as file:
        file.write("#0 9\n")
    assert "  changed      since the export: tokens.txt\n" in info(folder)


def test_folder_of_others_is_described(info, tmp_path):
    facts = json.loads(info(write_offline(tmp_path), "--output-format", "json"))
    assert facts["metadata"]["model_type"] == "zipformer2" and facts["tokens"]["first"][1] == "\u2581a"
    assert facts["provenance"] == {} and "sizes" not in facts


def test_streaming_folder_is_described(tiny_model, info):
    folder = tiny_model().folder
    facts = json.loads(info(folder, "--output-format", "json"))
    assert facts["format"] == "ONNX, streaming" and "decode_chunk_len" in facts["metadata"]
    assert facts["front_end"]["num_mel_bins"] == 80 and {"encoder.onnx", "tokens.txt"} <= set(facts["files"])
    assert info(folder).startswith(f"{folder}\n  format       ONNX, streaming\n")


def test_what_is_no_model_is_refused(info, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt is not a checkpoint, or is truncated" in info(tmp_path / "text.pt", status=1)
    assert "no.pt: no such model; it is a checkpoint, a" in info(tmp_path / "no.pt", status=1)
    assert "holds no encoder*.onnx" in info(tmp_path, status=1)
