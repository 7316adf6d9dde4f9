"""``transducer export onnx``: what it writes, what int8 costs, and what it does when that is too much."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from small_corpus import make_cut
from tiny_talker import say, some_text

from stateless_transducer.checkpoint import load_checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.export.onnx_model import OnnxTransducer
from stateless_transducer.features import FbankConfig, fbank

FP32 = ["decoder.onnx", "encoder.onnx", "joiner.onnx", "lang.json", "model.json", "tokens.txt"]
INT8 = ["decoder.int8.onnx", "encoder.int8.onnx", "joiner.int8.onnx"]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """A prepared test set; in split abrupt, utterances end within the last tone."""
    folder, rng, made = tmp_path_factory.mktemp("cuts"), np.random.default_rng(5), {"test": [], "abrupt": []}
    for n in range(6):
        text = some_text(rng)
        features = torch.from_numpy(fbank(say(text, rng), FbankConfig()))
        for split, frames in (("test", features), ("abrupt", features[:-20])):
            made[split].append(make_cut(folder / split, f"u{n}", len(frames) / 100, text, frames))
    for split, cuts in made.items():
        CutSet.from_cuts(cuts).to_file(folder / f"aishell_cuts_{split}.jsonl.gz")
    return folder


@pytest.fixture
def export(talker, tmp_path, capsys):
    """Run the command: status, standard output and error, names in the folder."""

    def run(*flags, checkpoint=talker / "model.pt", output=tmp_path / "onnx"):
        given = ["--checkpoint", str(checkpoint), "--output", str(output), *map(str, flags)]
        status = main(["export", "onnx", *given])
        printed = capsys.readouterr()
        return status, printed.out, printed.err, sorted(path.name for path in output.iterdir())

    return run


def _card(folder):
    return json.loads((folder / "model.json").read_text(encoding="utf-8"))


def test_folder_is_complete_and_nothing_else_is_left(export, tmp_path):
    status, printed, complained, names = export()
    assert (status, names, complained) == (0, FP32, "") and "onnx/encoder.onnx: 0.2 MB\n" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert set(_card(tmp_path / "onnx")["files"]) == set(FP32) - {"model.json"}


def test_cost_of_int8_is_measured_printed_and_kept(export, cuts, tmp_path):
    status, printed, _, names = export("--int8", "true", "--manifest-dir", cuts)
    assert status == 0 and names == sorted(FP32 + INT8)
    # the tiny model makes an error or none, depending on the processor that trained it
    line = r"CER of aishell test, 6 utterances: fp32 (\S+) %, int8 (\S+) %: (\S+) points "
    match = re.match(line + r"\(95 % interval (\S+)\.\.(\S+)\)\n", printed)
    assert match is not None
    fp32, int8, difference, low, high = map(float, match.groups())
    assert fp32 < 10 and difference == pytest.approx(int8 - fp32, abs=0.011) and low <= difference <= high
    cost = _card(tmp_path / "onnx")["int8"]
    shown = (round(cost["error_rate_fp32"], 2), round(cost["error_rate_int8"], 2), round(cost["difference"], 2))
    assert shown == (fp32, int8, difference) and cost["kept"] is True and cost["utterances"] == 6
    interval = cost["difference_interval"]
    assert (interval["confidence"], round(interval["low"], 2), round(interval["high"], 2)) == (0.95, low, high)
    assert main(["info", str(tmp_path / "onnx")]) == 0


@pytest.mark.sweep
def test_int8_that_costs_too_much_is_not_kept(export, cuts, tmp_path):
    # no loss at all is more than less than nothing
    flags = ["--int8", "true", "--manifest-dir", cuts, "--reject-worse-than", "-1"]
    status, _, complained, names = export(*flags)
    assert (status, names) == (1, FP32)
    assert "int8 is rejected: it costs more than `--reject-worse-than` -1 points" in complained
    assert _card(tmp_path / "onnx")["int8"]["kept"] is False
    OnnxTransducer.open(tmp_path / "onnx")


@pytest.mark.sweep
def test_int8_of_another_model_does_not_stay(export, tmp_path):
    _, _, complained, names = export("--int8", "true")
    assert "the cost in accuracy was not measured. Set `--manifest-dir`" in complained
    assert names == sorted(FP32 + INT8)
    (tmp_path / "onnx" / "notes.txt").touch()
    assert export()[3] == sorted([*FP32, "notes.txt"])


def test_test_set_that_is_not_prepared_is_named_before_anything_is_written(talker, tmp_path, capsys):
    flags = ["--checkpoint", str(talker / "model.pt"), "--output", str(tmp_path / "onnx"), "--int8", "true"]
    assert main(["export", "onnx", *flags, "--manifest-dir", str(tmp_path)]) == 1
    assert "aishell_cuts_test.jsonl.gz is missing (found in `--manifest-dir`: nothing)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_model_of_other_features_is_remarked(export, talker, cuts, tmp_path):
    checkpoint = replace(load_checkpoint(talker / "model.pt"), fbank_config=FbankConfig(low_freq=40.0))
    save_checkpoint(tmp_path / "m.pt", checkpoint)
    status, _, complained, _ = export(checkpoint=tmp_path / "m.pt")
    assert status == 0 and "compute other features than this model's (low_freq 40.0)" in complained
    assert OnnxTransducer.open(tmp_path / "onnx").fbank_config == FbankConfig(low_freq=40.0)
    # the features of a test set are not the model's
    status, _, complained, _ = export("--int8", "true", "--manifest-dir", cuts, checkpoint=tmp_path / "m.pt")
    assert status == 1 and re.search("`--model` .*m.pt expects .*: low_freq 40, not 20", complained)


def test_bad_choices_are_named(talker, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["--checkpoint", str(talker / "model.pt"), "--output", str(tmp_path / "file")]
    assert main(["export", "onnx", *flags]) == 1
    assert "file is a file; name a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "onnx", *flags, "--manifest-dir", str(tmp_path)])
    assert "needs `--int8 true`" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.sweep
def test_cost_of_int8_is_measured_chunk_by_chunk(export, cuts, live_talker, tmp_path):
    """As `transducer decode --streaming true` decodes: the last token comes in the silence after the end."""
    data = ["--streaming", "true", "--manifest-dir", str(cuts), "--test-set", "abrupt"]
    assert export(*data, "--int8", "true", "--reject-worse-than", "100", checkpoint=live_talker)[0] == 0
    assert main(["decode", "--model", str(tmp_path / "onnx"), *data]) == 0
    (result,) = (json.loads(path.read_text()) for path in (tmp_path / "log").glob("*/result-*.json"))
    assert result["error_rate"] == _card(tmp_path / "onnx")["int8"]["error_rate_fp32"] < 30
