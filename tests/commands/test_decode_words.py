"""``transducer decode`` of a model whose tokens spell words: errors in characters and words, or in words alone."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from lhotse import CutSet
from small_corpus import make_cut
from tiny_talker import SIZES

from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.recogs import read_recogs
from stateless_transducer.text.tokens import build_token_table

TEXTS = {"a": "the cat sat", "b": "on a mat"}


def _decode(tmp_path, tokens):
    """The folder of the results."""
    sizes = replace(SIZES, vocab_size=len(tokens))
    network = build_model(sizes)
    save_checkpoint(tmp_path / "exp" / "epoch-0.pt", Checkpoint(network.state_dict(), sizes, FbankConfig(), tokens))
    cuts = [make_cut(tmp_path / "feats", id_, 1.0, text, torch.randn(100, 80)) for id_, text in TEXTS.items()]
    CutSet.from_cuts(cuts).to_file(tmp_path / "aishell_cuts_test.jsonl.gz")
    given = ["--exp-dir", str(tmp_path / "exp"), "--manifest-dir", str(tmp_path), "--avg", "1"]
    assert main(["decode", *given]) == 0
    return tmp_path / "exp" / "log" / "greedy_search"


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
