"""Result files: icefall's byte for byte, and the summary beside them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from stateless_transducer.data.batches import Batch
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.evaluation.report import _error_rates, read_results
from stateless_transducer.evaluation.test_sets import TestResult as Result  # pytest would take it for a class of tests
from stateless_transducer.evaluation.test_sets import evaluate, write_results
from stateless_transducer.text.recogs import read_recogs
from stateless_transducer.text.scoring import ScoredUtterance, score
from stateless_transducer.text.tokens import build_token_table

NAME = "epoch-64-avg-33-context-2-max-sym-per-frame-1"


def _result(utterances, speech_s=50.0):
    return Result(score(utterances), Counter(), speech_s, 2.5, "cpu")


def _write(folder, result, **changes):
    given = {"metric": "CER", "config": SearchConfig(), "averaged": ("epoch-63.pt", "epoch-64.pt"), **changes}
    files = write_results(folder / "log" / "greedy_search", "test", NAME, result, **given)
    return json.loads(files[-1].read_text(encoding="utf-8"))


def _spoken(**hypotheses):
    """Of the reference `abcd`."""
    return [ScoredUtterance(id_, tuple("abcd"), tuple(hypothesis)) for id_, hypothesis in hypotheses.items()]


def test_files_beside_the_summary_are_icefalls(golden, tmp_path):
    folder = golden / "text" / "greedy_search"
    _write(tmp_path, _result(read_recogs(folder / f"recogs-test-{NAME}.txt")))
    written = tmp_path / "log" / "greedy_search"
    texts = {path.name for path in written.iterdir()} - {f"result-test-{NAME}.json"}
    assert texts == {path.name for path in folder.iterdir()}
    for name in texts:
        assert (written / name).read_bytes() == (folder / name).read_bytes(), name


def test_summary_worked_by_hand(tmp_path):
    """One substitution, one insertion, two deletions."""
    summary = _write(tmp_path, _result(_spoken(a="abxd", b="abcde", c="ab", d="abcd")))
    interval = summary.pop("confidence_interval")
    assert interval["confidence"] == 0.95 and 0 <= interval["low"] < 25 < interval["high"] <= 50
    assert summary == {
        "test_set": "test",
        "name": NAME,
        "method": "greedy_search",
        "setting": "greedy_search",
        "metric": "CER",
        "unit": "character",
        "error_rate": 25.0,
        "errors": 4,
        "reference_units": 16,
        "insertions": 1,
        "deletions": 2,
        "substitutions": 1,
        "utterances": 4,
        "speech_s": 50.0,
        "wall_s": 2.5,
        "real_time_factor": 0.05,
        "device": "cpu",
        "averaged": ["epoch-63.pt", "epoch-64.pt"],
        "search": json.loads(json.dumps(vars(SearchConfig()), default=str)),
    }


def test_summary_of_words_says_so(tmp_path):
    config = SearchConfig("modified_beam_search", beam_size=8, blank_penalty=0.5)
    summary = _write(tmp_path, _result(_spoken(a="abcd")), metric="WER", config=config, averaged=["最后.pt"])
    assert (summary["metric"], summary["unit"], summary["setting"]) == ("WER", "word", "beam_size_8")
    assert summary["search"]["beam_size"] == 8 and summary["search"]["blank_penalty"] == 0.5
    assert summary["averaged"] == ["最后.pt"]
    assert summary["confidence_interval"] == {"confidence": 0.95, "low": 0.0, "high": 0.0}


def test_spelt_words_are_counted_in_characters_and_in_words():
    table = build_token_table(["the cat", "sat"], "char", keep_spaces=True)
    said = {"a": ("the cat sat", "the at sat"), "b": ("cat", "cat"), "c": ("a cat", "acat"), "d": ("x", "")}
    batch = Batch(
        ids=tuple(said),
        texts=tuple(reference for reference, _ in said.values()),
        features=torch.zeros(4, 1, 80),
        feature_lens=torch.ones(4, dtype=torch.int64),
        tokens=torch.zeros(4, 1, dtype=torch.int64),
        token_lens=torch.ones(4, dtype=torch.int64),
        frame_shift_s=0.01,
    )
    found = [Hypothesis(tuple(table.encode(text)), (), ()) for _, text in said.values()]
    result = evaluate(lambda *_: found, [batch], table, SearchConfig(), device=torch.device("cpu"))
    assert (result.report.num_errors, result.report.num_reference) == (1 + 1, 17)
    words = result.in_words
    assert words is not None and (words.report.num_errors, words.report.num_reference) == (1 + 2 + 1, 7)
    assert result.unknown_units == {"x": 1} and not words.unknown_units
    assert (words.speech_s, words.wall_s, words.device) == (result.speech_s, result.wall_s, result.device)
    assert (
        evaluate(lambda *_: [], [], build_token_table(["天气"], "char"), SearchConfig(), device=None).in_words is None
    )


def test_blanks_beside_ideographs_are_no_errors():
    text = "打开 tv 机 turn on"
    table = build_token_table([text], "char", keep_spaces=True)
    assert table.spells_words
    batch = Batch(
        features=torch.zeros(1, 1, 80),
        feature_lens=torch.ones(1, dtype=torch.int64),
        tokens=torch.zeros(1, 1, dtype=torch.int64),
        token_lens=torch.ones(1, dtype=torch.int64),
        ids=("a",),
        texts=(text,),
        frame_shift_s=0.01,
    )
    found = [Hypothesis(tuple(table.encode(text)), (), ())]
    result = evaluate(lambda *_: found, [batch], table, SearchConfig(), device=torch.device("cpu"))
    assert result.in_words is not None and result.in_words.report.num_errors == 0 == result.report.num_errors


def test_same_result_has_the_same_interval():
    intervals = [_result(_spoken(a="", b="abcd", c="ab", d="x", e="abcd")).error_rate for _ in range(2)]
    assert intervals[0] == intervals[1] and intervals[0] is not None
    assert intervals[0].low < intervals[0].value < intervals[0].high


@pytest.mark.parametrize(
    ("utterances", "error_rate", "interval"),
    [
        ([], 0.0, None),
        ([ScoredUtterance("a", (), ("x",))], None, {"confidence": 0.95, "low": None, "high": None}),
    ],
    ids=["no-utterances", "no-reference"],
)
def test_summary_of_what_cannot_be_divided_is_valid_json(tmp_path, utterances, error_rate, interval):
    summary = _write(tmp_path, _result(utterances, speech_s=0.0))
    assert "Infinity" not in json.dumps(summary)
    assert (summary["error_rate"], summary["confidence_interval"]) == (error_rate, interval)
    assert summary["real_time_factor"] is None
    assert "<b>" in _error_rates(tmp_path)


def test_page_shows_the_interval_and_does_without(tmp_path):
    _write(tmp_path, _result(_spoken(a="", b="abcd", c="ab", d="abcd", e="abcd", f="abcd")))
    (summary,) = read_results(tmp_path)
    low, high = (summary["confidence_interval"][key] for key in ("low", "high"))
    assert f"<b>25.00 %</b> CER ({low:.2f} to {high:.2f})" in _error_rates(tmp_path)
    del summary["confidence_interval"]
    path = Path(tmp_path / "log" / "greedy_search" / f"result-test-{NAME}.json")
    path.write_text(json.dumps(summary), encoding="utf-8")
    page = _error_rates(tmp_path)
    assert "<b>25.00 %</b> CER" in page and " to " not in page
