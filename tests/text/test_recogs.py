"""Reading recogs files: icefall's, ours with anything in them, and spoilt ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stateless_transducer.text.recogs import pair_ids, read_recogs
from stateless_transducer.text.scoring import ScoredUtterance, recogs_text, units

GOLDEN = Path(__file__).parent.parent / "golden" / "icefall" / "text"


def _written(tmp_path, text):
    path = tmp_path / "recogs-test-a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_mark_that_windows_puts_before_a_text_is_no_part_of_the_id(tmp_path):
    (utterance,) = read_recogs(_written(tmp_path, "\ufeffa:\tref=['b']\na:\thyp=[]\n"))
    assert utterance == ScoredUtterance("a", ("b",), ())


def test_icefalls_file_is_what_it_was_made_from():
    made_from = json.loads((GOLDEN / "results_input.json").read_text(encoding="utf-8"))
    expected = [
        ScoredUtterance(id_, units("".join(ref), "char"), units("".join(hyp), "char")) for id_, ref, hyp in made_from
    ]
    (path,) = (GOLDEN / "greedy_search").glob("recogs-*.txt")
    assert sorted(read_recogs(path), key=lambda u: u.id) == sorted(expected, key=lambda u: u.id)


def test_what_was_written_is_read_back(tmp_path):
    odd = ("'", '"', "\\", "\\n", "\n", "\r", "\t", "\0", "\u2028", "\x85", "]", ", ", "", "<unk>", "𠀀", "e\u0301")
    utterances = [
        ScoredUtterance("a", odd, ()),
        ScoredUtterance("b:\tc d-1_sp0.9", (), odd[::-1]),
        ScoredUtterance("c\u2028", ("ref=['x']",), ("c:\thyp=['y']",)),
    ]
    assert list(read_recogs(_written(tmp_path, recogs_text(utterances)))) == utterances


def test_other_line_ends_blank_lines_and_order_do_not_matter(tmp_path):
    text = "b:\thyp=['x']\r\n\r\na:\tref=[]\r\nb:\tref=['y']\r\na:\thyp=['z']"
    expected = (ScoredUtterance("b", ("y",), ("x",)), ScoredUtterance("a", (), ("z",)))
    assert read_recogs(_written(tmp_path, text)) == expected


def test_token_times_of_other_recipes_are_passed_over(tmp_path):
    text = "a:\tref=['x']\na:\thyp=['x']\na:\ttimestamp_ref=[0.1]\na:\ttimestamp_hyp=[(0.1, 0.2)]\n"
    assert read_recogs(_written(tmp_path, text)) == (ScoredUtterance("a", ("x",), ("x",)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recogs-test-a.txt.*0 bytes"),
        ("\n\n", "recogs-test-a.txt holds no utterances"),
        ("a\tb c\n", r"txt, line 1: expected `<id>:<tab>ref=\[...\]` or .*, but found 'a\\tb c'"),
        ("ref=['a']\nhyp=['a']\n", r"line 1: expected `<id>:<tab>ref="),
        ("a:\tref=['x']\na: hyp=['x']\n", r"line 2: expected `<id>:<tab>ref=.*, but found \"a: hyp=\['x'\]\""),
        ("a:\tref=['x']\na:\thyp=['x'\n", r"line 2: expected a list like \['a', 'b'\], but found \"\['x'\""),
        ("a:\tref=['x']\n\na:\thyp=[open('f')]\n", r"line 3: expected a list like .*, but found \"\[open"),
        ("a:\tref=\n", r"line 1: expected a list like .*, but found ''"),
        ("a:\tref=[{[]: 1}]\n", r"line 1: expected a list like"),
        ("a:\tref=['x\0']\n", r"line 1: expected a list like"),
        ("a:\tref=" + "[" * 5000 + "]" * 5000, r"line 1: expected a list like .*\[\.\.\.'\.$"),
        ("a:\tref='xyz'\n", r"line 1: expected a list of strings, but found \"'xyz'\""),
        ("a:\tref=['x', 1]\n", r"line 1: expected a list of strings, but found \"\['x', 1\]\""),
        ("a:\tref=[]\na:\thyp=[]\na:\tref=[]\n", "line 3: the ref of a is there twice"),
        ("a:\tref=[]\na:\thyp=[]\nb:\tref=[]\n", "recogs-test-a.txt: b has no hyp"),
        ("a:\thyp=[]\n", "recogs-test-a.txt: a has no ref"),
    ],
)
def test_spoilt_file_is_refused_by_name_and_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_recogs(_written(tmp_path, text))


def test_file_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "r.txt").write_bytes("a:\tref=['你']\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"r.txt is not a recogs file: it is not UTF-8 \(invalid .* at byte 9\)"):
        read_recogs(tmp_path / "r.txt")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"/no.txt: no such file\."):
        read_recogs(tmp_path / "no.txt")


def _named(*ids):
    return tuple(ScoredUtterance(id_, ("a",), ("a",)) for id_ in ids)


@pytest.mark.parametrize(
    ("a", "b", "expected_a", "expected_b"),
    [
        # nothing to do
        (["u-1", "u-2"], ["u-1", "u-2"], None, None),
        (["u", "v"], ["x", "y"], None, None),
        # ours and icefall's, either way round
        (["u", "v"], ["u-1", "v-0"], None, ["u", "v"]),
        (["u-1", "v-0"], ["u", "v"], ["u", "v"], None),
        # our ids end in numbers, too
        (["u-1", "u-2"], ["u-1-7", "u-2-8"], None, ["u-1", "u-2"]),
        # icefall's from two file systems
        (["u-0", "v-1", "w-2"], ["u-2", "v-1", "w-0"], ["u", "v", "w"], ["u", "v", "w"]),
        # one is missing
        (["u", "v", "w"], ["u-1", "v-0"], None, ["u", "v"]),
        # without the numbers they could not be told apart
        (["u-1", "u-2"], ["u-3", "u-4"], None, None),
        (["-1", "v"], ["", "v-0"], None, ["", "v"]),
    ],
)
def test_ids_pair_up_without_lhotses_numbers(a, b, expected_a, expected_b):
    paired = pair_ids(_named(*a), _named(*b))
    assert paired == (_named(*(expected_a or a)), _named(*(expected_b or b)))


def test_icefalls_file_pairs_up_with_ids_of_recordings():
    theirs = read_recogs(next(GOLDEN.glob("greedy_search/recogs-*.txt")))
    ours = tuple(ScoredUtterance(each.id.rpartition("-")[0], each.reference, each.hypothesis) for each in theirs)
    assert pair_ids(theirs, ours) == (ours, ours)
