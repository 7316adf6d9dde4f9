"""``transducer decode``: words and characters counted, and models given as such."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from small_corpus import make_cut
from tiny_talker import SIZES, say, some_text

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.commands.decode import Options
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.recogs import read_recogs
from stateless_transducer.text.tokens import build_token_table
from stateless_transducer.training.averaging import Average

TEXTS = {"a": "the cat sat", "b": "on a mat"}


def _prepare(tmp_path, tokens):
    """A checkpoint, and a test set."""
    sizes = replace(SIZES, vocab_size=len(tokens))
    network = build_model(sizes)
    save_checkpoint(tmp_path / "exp" / "epoch-0.pt", Checkpoint(network.state_dict(), sizes, FbankConfig(), tokens))
    cuts = [make_cut(tmp_path / "feats", id_, 1.0, text, torch.randn(100, 80)) for id_, text in TEXTS.items()]
    CutSet.from_cuts(cuts).to_file(tmp_path / "aishell_cuts_test.jsonl.gz")


def _decode(tmp_path, tokens):
    """The folder of the results."""
    _prepare(tmp_path, tokens)
    given = ["--exp-dir", str(tmp_path / "exp"), "--manifest-dir", str(tmp_path), "--avg", "1"]
    assert main(["decode", *given]) == 0
    return tmp_path / "exp" / "log" / "greedy_search"


def _figures(folder):
    """Of the only result there, and its recogs."""
    (result,), (recogs,) = folder.glob("result-test-*.json"), folder.glob("recogs-test-*.txt")
    found = json.loads(result.read_text())
    return found["name"], found["averaged"], found["error_rate"], recogs.read_text()


def test_model_files_and_folders_get_the_rate_of_their_checkpoint(tmp_path):
    tokens = build_token_table(TEXTS.values(), "char", keep_spaces=True)
    name, _, *wanted = _figures(_decode(tmp_path, tokens))
    assert name.startswith("epoch-0-avg-1")
    model, folder = tmp_path / "file" / "model.pt", tmp_path / "folder" / "graphs"
    assert main(["average", "--exp-dir", str(tmp_path / "exp"), "--avg", "1", "--output", str(model)]) == 0
    assert main(["export", "onnx", "--checkpoint", str(model), "--output", str(folder)]) == 0
    for path in (model, folder):
        assert main(["decode", "--model", str(path), "--manifest-dir", str(tmp_path)]) == 0
        name, made_of, *found = _figures(path.parent / "log" / "greedy_search")
        assert name.startswith(f"{path.stem}-context-2") and made_of == [str(path)]
        assert found == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--precision", "int8"], "`--precision` int8 is one of ONNX folders"),
        (["--device", "cuda:7"], "`--device` cuda:7: torch sees"),
    ],
)
def test_what_a_model_cannot_do_is_an_error(tmp_path, given, said, capsys):
    _prepare(tmp_path, build_token_table(TEXTS.values(), "char", keep_spaces=True))
    model = tmp_path / "exp" / "epoch-0.pt"
    assert main(["decode", "--model", str(model), "--manifest-dir", str(tmp_path), *given]) != 0
    assert said in capsys.readouterr().err


def test_streams_have_an_error_rate_beside_that_of_the_whole(tmp_path, live_talker, capsys):
    """The same model twice; the results of chunks of different lengths do not replace one another."""
    rng = np.random.default_rng(3)
    texts = [some_text(rng) for _ in range(6)]
    waves = [say(text, rng) for text in texts]
    cuts = [
        make_cut(tmp_path / "feats", f"u{i}", len(frames) / 100, text, torch.from_numpy(frames))
        for i, (text, frames) in enumerate(zip(texts, (fbank(wave, FbankConfig()) for wave in waves), strict=True))
    ]
    CutSet.from_cuts(cuts).to_file(tmp_path / "aishell_cuts_test.jsonl.gz")
    (tmp_path / "model.pt").symlink_to(live_talker)
    decode = ["decode", "--model", str(tmp_path / "model.pt"), "--manifest-dir", str(tmp_path)]
    beam = ["--method", "modified_beam_search", "--chunk-ms", "160", "--left-ms", "640"]
    for flags in ([], ["--streaming", "true"], ["--streaming", "true", *beam]):
        assert main([*decode, *flags]) == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "log").glob("*/result-test-*.json")]
    rates = {result["name"].split("-context")[0].split("-modified")[0]: result["error_rate"] for result in results}
    assert set(rates) == {"model", "model-streaming-320", "model-streaming-160-left-640"}
    assert all(rate <= 25 for rate in rates.values()), rates
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*decode, "--chunk-ms", "320"])
    assert "`--chunk-ms` 320 needs `--streaming true`" in capsys.readouterr().err


def test_model_of_other_features_is_refused(tmp_path, capsys):
    _prepare(tmp_path, build_token_table(TEXTS.values(), "char", keep_spaces=True))
    checkpoint = load_checkpoint(tmp_path / "exp" / "epoch-0.pt")
    save_checkpoint(tmp_path / "other.pt", replace(checkpoint, fbank_config=FbankConfig(sample_rate=8000)))
    assert main(["decode", "--model", str(tmp_path / "other.pt"), "--manifest-dir", str(tmp_path)]) == 1
    assert re.search("`--model` .*other.pt expects .*: sample_rate 8000, not 16000", capsys.readouterr().err)


def test_nothing_is_averaged_beside_a_model():
    with pytest.raises(ValueError, match="`model` model.pt is decoded unchanged. Remove `epoch`"):
        Options(model="model.pt", average=Average(avg=2))


def test_no_folder_of_checkpoints_is_named_beside_a_model(capsys):
    assert main(["decode", "--model", "/in/model.pt", "--exp-dir", "other"]) == 1
    said = "`--exp-dir` other has no effect with `--model` /in/model.pt, whose results go to /in/log. Remove one of"
    assert said in capsys.readouterr().err


def test_results_are_in_characters_and_in_words(tmp_path, capsys):
    folder = _decode(tmp_path, build_token_table(TEXTS.values(), "char", keep_spaces=True))
    printed = capsys.readouterr().out
    assert printed.index("CER %") < printed.index("WER %")
    for where, metric, count in ((folder, "CER", 9 + 6), (folder / "wer", "WER", 6)):
        (result,) = (json.loads(path.read_text()) for path in where.glob("result-test-*.json"))
        assert (result["metric"], result["reference_units"]) == (metric, count)
        assert result["method"] == "greedy_search"
        (recogs,) = where.glob("recogs-test-*.txt")
        assert sum(len(utterance.reference) for utterance in read_recogs(recogs)) == count
    (log,) = (path.read_text() for path in folder.glob("log-decode-*"))
    assert re.findall(r"%(\w+) \S+% \[\d+ / (\d+),", log) == [("CER", "15"), ("WER", "6")]


@pytest.mark.parametrize(("says", "is_told"), [("<blk>", True), ("a", False)])
def test_model_that_does_not_speak_is_told(tmp_path, capsys, says, is_told):
    tokens = build_token_table(TEXTS.values(), "char", keep_spaces=True)
    _prepare(tmp_path, tokens)
    checkpoint = load_checkpoint(tmp_path / "exp" / "epoch-0.pt")
    checkpoint.weights["joiner.output_linear.bias"][tokens.ids[says]] = 1e3
    save_checkpoint(tmp_path / "model.pt", checkpoint)
    assert main(["decode", "--model", str(tmp_path / "model.pt"), "--manifest-dir", str(tmp_path)]) == 0
    told = "WARNING [decode.py:", "test: all 2 transcripts are empty. The model has not learned to emit tokens yet"
    printed = capsys.readouterr().err
    assert all(printed.count(each) == is_told for each in told)


def test_results_of_pieces_are_in_words(tmp_path, capsys):
    folder = _decode(tmp_path, build_token_table(TEXTS.values(), "bpe", vocab_size=18))
    printed = capsys.readouterr().out
    assert "WER %" in printed and "CER %" not in printed and not (folder / "wer").exists()
    (result,) = (json.loads(path.read_text()) for path in folder.glob("result-test-*.json"))
    assert (result["metric"], result["unit"], result["reference_units"]) == ("WER", "word", 6)
    (recogs,) = folder.glob("recogs-test-*.txt")
    assert sorted(utterance.reference for utterance in read_recogs(recogs)) == sorted(
        tuple(text.split()) for text in TEXTS.values()
    )
