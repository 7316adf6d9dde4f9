"""Scores: icefall's result files byte for byte, and cases worked by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from stateless_transducer.text.scoring import (
    ScoredUtterance,
    WordCounts,
    error_rate_line,
    errs_text,
    recogs_text,
    score,
    summary_text,
    units,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "icefall" / "text"

# folder and suffix of the golden files -> key of the result
CASES = {
    ("greedy_search", "test-epoch-64-avg-33-context-2-max-sym-per-frame-1"): "greedy_search",
    ("modified_beam_search", "test-epoch-64-avg-33-modified_beam_search-beam-size-4"): "beam_size_4",
}
golden_cases = pytest.mark.parametrize(
    ("folder", "suffix", "key"), [(*case, key) for case, key in CASES.items()], ids=list(CASES.values())
)


def _golden_utterances(folder: str) -> list[ScoredUtterance]:
    utterances = []
    for cut_id, ref_words, hyp_words in json.loads((GOLDEN / "results_input.json").read_text(encoding="utf-8")):
        reference = units("".join(ref_words), "char")
        is_greedy = folder == "greedy_search"
        # the files of modified_beam_search were made from references without their last character
        hypothesis = units("".join(hyp_words), "char") if is_greedy else reference[:-1]
        utterances.append(ScoredUtterance(cut_id, reference, hypothesis))
    return utterances


def _golden_bytes(folder: str, kind: str, suffix: str) -> bytes:
    return (GOLDEN / folder / f"{kind}-{suffix}.txt").read_bytes()


def _score_one(reference: str, hypothesis: str):
    return score([ScoredUtterance("a", tuple(reference), tuple(hypothesis))])


def _details(report) -> list[str]:
    """The alignments that `errs_text` shows, without the ids."""
    section = errs_text(report).split("(ref->hyp)  \n")[1].split("\n\nSUBSTITUTIONS")[0]
    return [line.split(":\t", 1)[1] for line in section.split("\n")]


@golden_cases
def test_recogs_text_is_icefalls(folder, suffix, key):
    assert recogs_text(_golden_utterances(folder)).encode() == _golden_bytes(folder, "recogs", suffix)


@golden_cases
def test_errs_text_is_icefalls(folder, suffix, key):
    assert errs_text(score(_golden_utterances(folder))).encode() == _golden_bytes(folder, "errs", suffix)


@golden_cases
def test_summary_text_is_icefalls(folder, suffix, key):
    report = score(_golden_utterances(folder))
    assert summary_text({key: report.error_rate}).encode() == _golden_bytes(folder, "wer-summary", suffix)


@golden_cases
def test_error_rate_line_is_icefalls(folder, suffix, key):
    lines = (GOLDEN / "log_lines.txt").read_text(encoding="utf-8").splitlines()
    assert f"INFO {error_rate_line(f'test-{key}', score(_golden_utterances(folder)))}" in lines


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts", "details"),
    [
        ("", "", (0, 0, 0, 0), ""),
        ("", "ab", (2, 0, 0, 0), "(*->a b)"),
        ("ab", "", (0, 2, 0, 0), "(a b->*)"),
        ("ab", "ab", (0, 0, 0, 2), "a b"),
        ("ab", "xaybz", (3, 0, 0, 2), "(*->x) a (*->y) b (*->z)"),
        ("abc", "ac", (0, 1, 0, 2), "a (b->*) c"),
        ("abcd", "axyd", (0, 0, 2, 2), "a (b c->x y) d"),
        ("abc", "xy", (0, 1, 2, 0), "(a b c->x y)"),
        ("a*b", "a*b", (0, 0, 0, 3), "a * b"),
        ("a*b", "ab", (0, 1, 0, 2), "a (*->*) b"),
        ("ab", "a*b", (1, 0, 0, 2), "a (*->*) b"),
        ("a*b", "axb", (0, 0, 1, 2), "a (*->x) b"),
        ("axb", "a*b", (0, 0, 1, 2), "a (x->*) b"),
        ("**", "*", (0, 1, 0, 1), None),
        ("a\0", "a", (0, 1, 0, 1), "a (\0->*)"),
    ],
)
def test_score_counts_worked_by_hand(reference, hypothesis, counts, details):
    report = _score_one(reference, hypothesis)
    found = (report.num_insertions, report.num_deletions, report.num_substitutions, report.num_correct)
    assert found == counts
    assert report.num_errors == sum(counts[:3])
    assert report.num_reference == len(reference)
    if details is not None:
        assert _details(report) == [details]


def test_score_takes_any_string_as_a_unit():
    reference = ("", "*", "-1", "None", "<eps>", "a b")
    report = score([ScoredUtterance("a", reference, ()), ScoredUtterance("b", (), reference)])
    assert report.deletions == report.insertions == dict.fromkeys(reference, 1)
    assert report.num_errors == 12


def test_score_of_words_worked_by_hand():
    report = score([ScoredUtterance("a", units("the cat sat down", "word"), units("a cat sat down there", "word"))])
    assert _details(report) == ["(the->a) cat sat down (*->there)"]
    assert report.error_rate == 50.0
    assert report.substitutions == {("the", "a"): 1}
    assert report.insertions == {"there": 1}
    assert report.deletions == {}
    assert report.words["there"] == WordCounts(num_correct=0, num_reference=0, num_hypothesis=1)
    assert report.words["cat"] == WordCounts(num_correct=1, num_reference=1, num_hypothesis=1)


def test_word_counts_worked_by_hand():
    # b is once right, once taken for a, once put for a, once missed and once inserted
    report = score(
        [
            ScoredUtterance("1", tuple("bxb"), tuple("bxa")),
            ScoredUtterance("2", tuple("ax"), tuple("bx")),
            ScoredUtterance("3", tuple("bx"), tuple("x")),
            ScoredUtterance("4", tuple("x"), tuple("xb")),
        ]
    )
    assert report.words["b"] == WordCounts(num_correct=1, num_reference=3, num_hypothesis=3)
    assert report.words["b"].num_errors == 4
    assert report.words["x"].num_errors == 0


def test_score_keeps_an_unknown_token_one_unit():
    report = score([ScoredUtterance("a", ("你", "好"), ("你", "<unk>"))])
    assert report.substitutions == {("好", "<unk>"): 1}
    assert report.error_rate == 50.0


def test_score_sorts_utterances_and_alignments_by_id():
    utterances = [ScoredUtterance("b", ("x",), ("x",)), ScoredUtterance("a", ("y",), ())]
    report = score(iter(utterances))
    assert [utterance.id for utterance in report.utterances] == ["a", "b"]
    assert report.alignments == ((("y", None),), (("x", "x"),))


def test_alignments_give_back_transcripts_at_least_cost():
    generator = random.Random(0)
    for _ in range(200):
        ref, hyp = (tuple(generator.choices("ab*", k=generator.randrange(8))) for _ in range(2))
        report = score([ScoredUtterance("a", ref, hyp)])
        (alignment,) = report.alignments
        assert tuple(unit for unit, _ in alignment if unit is not None) == ref
        assert tuple(unit for _, unit in alignment if unit is not None) == hyp
        assert report.num_errors == _edit_distance(ref, hyp)


def _edit_distance(ref: tuple[str, ...], hyp: tuple[str, ...]) -> int:
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        above, row = row, [i]
        for j, h in enumerate(hyp, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != h)))
    return row[-1]


def test_error_rate_exceeds_100_when_insertions_do():
    assert _score_one("a", "abc").error_rate == 200.0


@pytest.mark.parametrize(
    ("hypothesis", "rate", "line"),
    [
        ("", 0.0, "[dev] %WER 0.00% [0 / 0, 0 ins, 0 del, 0 sub ]"),
        ("a", math.inf, "[dev] %WER inf% [1 / 0, 1 ins, 0 del, 0 sub ]"),
    ],
    ids=["no-errors", "an-insertion"],
)
def test_error_rate_without_reference_units_is_defined(hypothesis, rate, line):
    report = _score_one("", hypothesis)
    assert report.error_rate == rate
    assert error_rate_line("dev", report) == line
    assert errs_text(report).startswith(f"%WER = {line[11:].split('%')[0]}\n")


def test_score_of_no_utterances_has_no_errors():
    report = score([])
    assert report.error_rate == 0.0
    assert recogs_text([]) == ""
    assert "(ref->hyp)  \n\nSUBSTITUTIONS" in errs_text(report)


def test_error_counts_sort_by_count_then_unit_falling():
    report = score([ScoredUtterance("a", tuple("cabbxx"), ())])
    lines = errs_text(report).split("DELETIONS: count ref\n")[1].split("\n\n")[0].split("\n")
    assert lines == ["2   x", "2   b", "1   c", "1   a"]


def test_summary_text_sorts_best_first_and_rounds():
    # neither the order of the names nor that of the mapping; equal once rounded: the order of the mapping
    text = summary_text({"beam_size_8": 17.7001, "modified": 5.031, "greedy_search": 5.026}, metric="WER")
    assert text == "settings\tWER\nmodified\t5.03\ngreedy_search\t5.03\nbeam_size_8\t17.7\n"


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("你 好\tab\u3000c\n", "char", ("你", "好", "a", "b", "c")),
        (" 你好  ab\u3000c\n", "word", ("你好", "ab", "c")),
        ("e\u0301", "char", ("e", "\u0301")),
        (" \n", "char", ()),
        (" \n", "word", ()),
    ],
)
def test_units_split_a_text(text, unit, expected):
    assert units(text, unit) == expected


def test_units_refuses_another_unit():
    with pytest.raises(ValueError, match='`unit` must be "char" or "word", but is \'phone\''):
        units("a", "phone")  # pyright: ignore[reportArgumentType]
