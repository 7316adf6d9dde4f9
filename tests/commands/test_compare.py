"""``transducer compare``: what it says about two results, and about what is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stateless_transducer.cli import main
from stateless_transducer.text.scoring import ScoredUtterance, recogs_text, units

GOLDEN = Path(__file__).parent.parent / "golden" / "icefall" / "text"

REFERENCES = {"u1": "今天天气好", "u2": "明天下雨", "u3": "你好", "u4": "再见"}
WORSE = {"u1": "今天天好", "u2": "", "u3": "你好", "u4": "再贝"}
BETTER = {"u1": "今天天气好", "u2": "明天下雨", "u3": "你好吗", "u4": "再见"}


def _recogs(path, hypotheses, references=REFERENCES, unit="char"):
    path.parent.mkdir(parents=True, exist_ok=True)
    utterances = [
        ScoredUtterance(id_, units(references[id_], unit), units(text, unit)) for id_, text in hypotheses.items()
    ]
    path.write_text(recogs_text(utterances), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    return _recogs(tmp_path / "a.txt", WORSE), _recogs(tmp_path / "b.txt", BETTER)


def _run(capsys, *arguments):
    assert main(["compare", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


def _fails(capsys, arguments, message, status=1):
    try:
        found = main(["compare", *map(str, arguments)])
    except SystemExit as stopped:
        found = stopped.code
    printed = " ".join(capsys.readouterr().err.split())
    assert found == status and "Traceback" not in printed
    assert re.search(message, printed), printed


def test_table_has_both_error_rates_and_their_difference(files, capsys):
    """A: 6 errors of 13 characters; B: 1."""
    printed, _ = _run(capsys, *files)
    rows = [line.split() for line in printed.splitlines()]
    assert printed.startswith(f"A  {files[0]}\nB  {files[1]}\n")
    assert "CER % 95 % interval errors of ins del sub utterances".split() in rows
    (a,), (b,), (change,) = (
        [row for row in rows if row[: len(head)] == head] for head in (["A", "46.15"], ["B", "7.69"], ["B", "-", "A"])
    )
    assert a[3:] == ["6", "13", "0", "5", "1", "4"]
    assert b[3:] == ["1", "13", "1", "0", "0", "4"]
    assert change[3] == "-38.46" and change[5] == "-5"
    low, high = map(float, change[4].split(".."))
    assert low < -38.46 < high
    # better by 1, 4 and 1, worse by 1; of 16 ways to sign 1, 4, 1, 1 the sum is 7, 5, 5, 5 or a mirror of these in 8
    assert re.search(r"p value, two-sided\s+0.5\n", printed)
    assert "B is better in 3, A in 1, as many errors in 0" in printed
    assert re.search(r"probability that B is better  0\.\d{4}  \(that A is: 0\.\d{4}\)", printed)


@pytest.mark.parametrize(
    ("hypotheses", "verdict"),
    [
        (("一", "一二三"), "B is better: 66.67 points fewer errors, significant at 95 %"),
        (("一二三", "一"), "A is better: 66.67 points fewer errors, significant at 95 %"),
        (("一二三", "一二三"), "no significant difference at 95 %"),
    ],
)
def test_verdict_is_given_in_words(tmp_path, capsys, hypotheses, verdict):
    references = {f"u{n:02d}": "一二三" for n in range(20)}
    files = [
        _recogs(tmp_path / name, dict.fromkeys(references, text), references)
        for name, text in zip(("a", "b"), hypotheses, strict=True)
    ]
    printed, _ = _run(capsys, *files)
    assert re.search(rf"^verdict +{verdict}$", printed, re.MULTILINE)


def test_few_utterances_decide_nothing(files, capsys):
    printed, _ = _run(capsys, *files)
    assert re.search(r"^verdict +no significant difference at 95 %$", printed, re.MULTILINE)
    printed, _ = _run(capsys, *files, "--confidence", "0.4")
    assert re.search(r"^verdict +B is better: 38.46 points fewer errors, significant at 40 %$", printed, re.MULTILINE)


def test_utterances_that_changed_most_come_first(files, capsys):
    printed, _ = _run(capsys, *files)
    found = re.findall(r"^  (u\d)  (\d) -> (\d), of (\d)$", printed, re.MULTILINE)
    assert found == [("u2", "4", "0", "4"), ("u1", "1", "0", "5"), ("u3", "0", "1", "2"), ("u4", "1", "0", "2")]
    assert "    ref 明天下雨\n    A   (nothing)\n    B   明天下雨\n" in printed


def test_number_of_examples_is_kept_to(tmp_path, capsys):
    references = {f"u{n:02d}": "一二三" for n in range(20)}
    files = [
        _recogs(tmp_path / name, dict.fromkeys(references, text), references)
        for name, text in (("a", "一"), ("b", "一二三"))
    ]
    for flags, expected in (((), 10), (("--num-examples", 3), 3), (("--num-examples", 0), 0)):
        printed, _ = _run(capsys, *files, *flags)
        assert printed.count(" -> ") - ("largest changes" in printed) == expected
        assert ("largest changes" in printed) == (expected > 0)


def test_words_are_called_words(tmp_path, capsys):
    references = {"u1": "the cat sat", "u2": "hello"}
    a = _recogs(tmp_path / "a.txt", {"u1": "a cat sat", "u2": "hello"}, references, "word")
    b = _recogs(tmp_path / "b.txt", {"u1": "the cat", "u2": "yellow hello"}, references, "word")
    printed, _ = _run(capsys, a, b)
    assert "WER %" in printed and "CER" not in printed
    assert "  u2  0 -> 1, of 1\n    ref hello\n    A   hello\n    B   yellow hello\n" in printed


def test_characters_that_spell_words_are_shown_with_blanks(tmp_path, capsys):
    """A person reads words; what is counted is characters."""
    references = {"u1": "the cat sat", "u2": "hello you"}
    for folder, texts in (("a", {"u1": "a cat sat", "u2": "hello you"}), ("b", {"u1": "the cat s", "u2": "yell you"})):
        # u2's words in b are of another result: they are not what was counted
        words = {**texts, "u2": "of old"} if folder == "b" else texts
        _recogs(tmp_path / folder / "recogs-test-x.txt", texts, references)
        _recogs(tmp_path / folder / "wer" / "recogs-test-x.txt", words, references, "word")
    printed, _ = _run(capsys, tmp_path / "a", tmp_path / "b")
    assert "CER %" in printed
    assert "  u1  3 -> 2, of 9\n    ref the cat sat\n    A   a cat sat\n    B   the cat s\n" in printed
    assert "  u2  0 -> 2, of 8\n    ref hello you\n    A   hello you\n    B   yellyou\n" in printed


def test_result_compared_with_itself_is_no_better(files, capsys):
    printed, _ = _run(capsys, files[0], files[0])
    assert re.search(r"^B - A\s+\+0.00\s+\+0.00..\+0.00\s+\+0$", printed, re.MULTILINE)
    assert re.search(r"p value, two-sided\s+1\n", printed) and "largest changes" not in printed


def test_seed_decides_what_is_printed(files, capsys):
    first, again = (_run(capsys, *files, "--seed", 7)[0] for _ in range(2))
    assert first == again


def test_confidence_is_named_and_widens_the_interval(files, capsys):
    widths = []
    for confidence in ("0.5", "0.999"):
        printed, _ = _run(capsys, *files, "--confidence", confidence, "--num-resamples", 5000)
        assert f"{100 * float(confidence):g} % interval" in printed
        low, high = re.search(r"^B - A\s+\S+\s+(\S+)\.\.(\S+)", printed, re.MULTILINE).groups()
        widths.append(float(high) - float(low))
    assert widths[0] < widths[1]


def test_icefalls_results_are_compared_by_folder(capsys):
    printed, _ = _run(capsys, GOLDEN / "greedy_search", GOLDEN / "modified_beam_search")
    # better in ten utterances and worse in none: two of the 2^10 ways that ten coins can fall
    assert re.search(r"p value, two-sided\s+0.002\n", printed)
    assert "B is better in 10, A in 0, as many errors in 2" in printed and "-31.21" in printed


@pytest.mark.parametrize("model", ["epoch", "checkpoint"])
def test_folders_are_compared_test_set_by_test_set(tmp_path, capsys, model):
    for folder, hypotheses in (("greedy", WORSE), ("beam", BETTER)):
        for test_set in ("dev", "test-clean", folder):
            _recogs(tmp_path / folder / f"recogs-{test_set}-{model}-9-avg-2-{folder}.txt", hypotheses)
    printed, complained = _run(capsys, tmp_path / "greedy", tmp_path / "beam")
    names = [
        f"{folder}/recogs-{each}-{model}-9-avg-2-{folder}.txt"
        for each in ("dev", "test-clean")
        for folder in ("greedy", "beam")
    ]
    assert re.findall(r"^[AB]  .*/(\w+/recogs\S+)$", printed, re.MULTILINE) == names
    assert "only one of the folders has: beam, greedy" in complained
    # the same draws for each test set
    dev, test = (part.split("\n\n", 1)[1] for part in re.split("^A  /", printed, flags=re.MULTILINE)[1:])
    assert dev == test


def test_several_results_of_a_test_set_are_listed(tmp_path, capsys):
    for avg in (1, 2):
        _recogs(tmp_path / "x" / f"recogs-test-epoch-9-avg-{avg}-greedy.txt", WORSE)
    message = r"x holds several results for test: recogs-test-epoch-9-avg-1-.*, recogs-test-epoch-9-avg-2-"
    _fails(capsys, [tmp_path / "x", tmp_path / "x"], message)


def test_folders_without_a_common_test_set_are_refused(tmp_path, capsys):
    for folder, test_sets in (("x", ("a", "b")), ("y", ("c",))):
        for test_set in test_sets:
            _recogs(tmp_path / folder / f"recogs-{test_set}-epoch-1-avg-1.txt", WORSE)
    _fails(capsys, [tmp_path / "x", tmp_path / "y"], "x has a, b, but .*/y has c: no test set is in both")


def test_what_is_not_there_is_named(files, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    _fails(capsys, [files[0], tmp_path / "no"], "/no: no such file or folder")
    _fails(capsys, [tmp_path / "empty", tmp_path / "empty"], r"empty holds no recogs-\*.txt. Name the ")
    _fails(capsys, [tmp_path / "empty", files[0]], "empty is a folder, but .*a.txt is a file. Name two folders or two")
    _fails(capsys, [files[0]], "Missing from transducer compare: B ", status=2)


def test_spoilt_file_is_named_with_its_line(files, tmp_path, capsys):
    (tmp_path / "bad.txt").write_text("u1:\tref=['x']\nu1:\thyp=['x'\n")
    _fails(capsys, [files[0], tmp_path / "bad.txt"], r"bad.txt, line 2: expected a list like \['a', 'b'\], but found")


def test_other_utterances_and_references_are_refused_by_name(files, tmp_path, capsys):
    fewer = _recogs(tmp_path / "fewer.txt", {"u1": "今"})
    _fails(capsys, [files[0], fewer], r"fewer.txt \(B\): B lacks 3 of the 4 utterances, which A has: u2, u3, u4\.")
    changed = _recogs(tmp_path / "changed.txt", BETTER, {**REFERENCES, "u3": "您好"})
    _fails(capsys, [files[0], changed], r"different references in 1 of 4 utterances: u3 \(u3: A '你 好', B '您 好'\)")


def test_result_of_icefall_is_compared_with_one_of_ours(files, tmp_path, capsys):
    numbered = {id_: f"{id_}-{n}" for n, id_ in enumerate(reversed(REFERENCES))}
    theirs = _recogs(
        tmp_path / "icefall.txt",
        {numbered[id_]: text for id_, text in BETTER.items()},
        {numbered[id_]: text for id_, text in REFERENCES.items()},
    )
    plain, complained = _run(capsys, *files)
    assert not complained
    mapped, complained = _run(capsys, files[0], theirs)
    assert mapped == plain.replace(str(files[1]), str(theirs))
    assert "without the number that lhotse puts at their end (-0, -1, ...)" in complained


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--confidence", "95"], "`--confidence` must be above 0 and below 1, but is 95"),
        (["--num-resamples", "10"], "`--num-resamples` must be at least 100, but is 10"),
        (["--num-examples", "-1"], "`--num-examples` must be at least 0, but is -1"),
    ],
)
def test_bad_option_is_named(files, capsys, flags, message):
    _fails(capsys, [*files, *flags], message, status=2)
