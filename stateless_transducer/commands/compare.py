"""``transducer compare``: is one result better than another, or was it chance?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Interval
from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import complain, say, table
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.options import ADVANCED, check_bounds

if TYPE_CHECKING:
    from stateless_transducer.text.bootstrap import Comparison, Estimate
    from stateless_transducer.text.scoring import Report

# recogs-<test set>-<model and search>.txt
_NAME = re.compile(r"recogs-(?P<test_set>.+?)-(?:epoch|checkpoint)-\d.*\.txt")


@dataclass(frozen=True)
class Options:
    """Options of ``transducer compare``."""

    a: Annotated[Path, Positional, arg(metavar="A")]
    """First result: a recogs-*.txt, or a folder with one per test set."""
    b: Annotated[Path, Positional, arg(metavar="B")]
    """Second result, for the same utterances."""
    confidence: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    num_resamples: Annotated[int, Ge(100), ADVANCED] = 10_000
    """Bootstrap resamples of the utterances."""
    num_examples: Annotated[int, Ge(0)] = 10
    """Utterances to show, those with the largest change in errors first."""
    seed: Annotated[int, ADVANCED] = 42
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        check_bounds(self)


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    run(parse(Options, program, arguments, "Compare two results for the same utterances, with confidence intervals."))
    return 0


def run(options: Options) -> None:
    """Compare the results of each test set and print them."""
    import numpy as np

    from stateless_transducer.text.bootstrap import compare_reports
    from stateless_transducer.text.recogs import pair_ids, read_recogs
    from stateless_transducer.text.scoring import score

    for path_a, path_b in _pairs(options.a, options.b):
        utterances = read_recogs(path_a), read_recogs(path_b)
        paired = pair_ids(*utterances)
        if paired != utterances:
            complain("ids are compared without the number that lhotse puts at their end (-0, -1, ...)")
        a, b = map(score, paired)
        try:
            comparison = compare_reports(
                a,
                b,
                # one seed per test set, so that results do not depend on other files of the folder
                generator=np.random.default_rng(options.seed),
                confidence=options.confidence,
                num_resamples=options.num_resamples,
            )
        except ValueError as err:
            raise ValueError(f"{path_a} (A) and {path_b} (B): {err}") from err
        say(f"A  {path_a}\nB  {path_b}\n\n{_figures(a, b, comparison, options.confidence)}\n")
        say(_examples(_Shown(a, path_a), _Shown(b, path_b), options.num_examples))


def _pairs(a: Path, b: Path) -> list[tuple[Path, Path]]:
    """Return the pairs of files to compare."""
    for path in (a, b):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder.")
    if not (a.is_dir() or b.is_dir()):
        return [(a, b)]
    if not (a.is_dir() and b.is_dir()):
        folder, file = (a, b) if a.is_dir() else (b, a)
        raise ValueError(f"{folder} is a folder, but {file} is a file. Name two folders or two files.")
    sets_a, sets_b = _by_test_set(a), _by_test_set(b)
    if len(sets_a) == len(sets_b) == 1:
        # one test set each, under any name
        return list(zip(sets_a.values(), sets_b.values(), strict=True))
    common = [name for name in sets_a if name in sets_b]
    if not common:
        raise ValueError(f"{a} has {', '.join(sets_a)}, but {b} has {', '.join(sets_b)}: no test set is in both.")
    skipped = sorted(sets_a.keys() ^ sets_b)
    if skipped:
        complain(f"skipping test sets that only one of the folders has: {', '.join(skipped)}")
    return [(sets_a[name], sets_b[name]) for name in common]


def _by_test_set(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("recogs-*.txt")):
        match = _NAME.fullmatch(path.name)
        name = match["test_set"] if match else path.stem.removeprefix("recogs-")
        if name in files:
            raise ValueError(
                f"{folder} holds several results for {name}: {files[name].name}, {path.name}. Name the file."
            )
        files[name] = path
    if not files:
        raise ValueError(f"{folder} holds no recogs-*.txt. Name the output folder of `transducer decode`.")
    return files


def _figures(a: Report, b: Report, comparison: Comparison, confidence: float) -> str:
    """Return the verdict, the table of error rates and the statistics of the difference."""
    metric = "CER" if _is_of_characters(a) else "WER"
    header = ("", f"{metric} %", f"{100 * confidence:g} % interval", "errors", "of", "ins", "del", "sub", "utterances")
    rows = [
        ("A", *_estimate(comparison.error_rate_a), *_errors(a)),
        ("B", *_estimate(comparison.error_rate_b), *_errors(b)),
        ("B - A", *_estimate(comparison.difference, "+"), f"{b.num_errors - a.num_errors:+d}", *[""] * 5),
    ]
    p_value = comparison.p_value
    return (
        f"{table(header, rows)}\n\n"
        f"verdict                       {verdict(comparison, confidence)}\n"
        f"probability that B is better  {comparison.probability_better:.4f}  (that A is: "
        f"{comparison.probability_worse:.4f})\n"
        f"p value, two-sided            {'below 1e-06' if p_value < 1e-6 else format(p_value, '.2g')}\n"
        f"utterances                    B is better in {comparison.num_better}, A in {comparison.num_worse}, "
        f"as many errors in {comparison.num_equal}"
    )


def verdict(comparison: Comparison, confidence: float) -> str:
    """Return the outcome of the significance test in words; the randomization test decides."""
    level, points = f"{100 * confidence:g} %", comparison.difference.value
    if comparison.p_value > 1 - confidence or not points:
        return f"no significant difference at {level}"
    better = "B" if points < 0 else "A"
    return f"{better} is better: {abs(points):.2f} points fewer errors, significant at {level}"


def _estimate(estimate: Estimate, sign: str = "-") -> tuple[str, str]:
    return f"{estimate.value:{sign}.2f}", f"{estimate.low:{sign}.2f}..{estimate.high:{sign}.2f}"


def _errors(report: Report) -> tuple[str, ...]:
    counts = (report.num_errors, report.num_reference)
    kinds = (report.num_insertions, report.num_deletions, report.num_substitutions)
    return tuple(str(count) for count in (*counts, *kinds, len(report.utterances)))


def _is_of_characters(report: Report) -> bool:
    return all(len(unit) == 1 for utterance in report.utterances for unit in utterance.reference)


class _Shown:
    """Utterances of a result as readable text."""

    def __init__(self, report: Report, path: Path) -> None:
        """Read the word-level result in wer/, if there is one: character-level results lack the blanks."""
        from stateless_transducer.text.recogs import read_recogs

        self.report, self._gap, self._in_words = report, "" if _is_of_characters(report) else " ", {}
        in_words = path.parent / "wer" / path.name
        if not self._gap and in_words.is_file():
            self._in_words = {utterance.id: utterance for utterance in read_recogs(in_words)}

    def texts(self, n: int) -> tuple[str, str]:
        """Return reference and hypothesis of an utterance."""
        scored = self.report.utterances[n]
        words = self._in_words.get(scored.id, scored)
        return self._text(scored.reference, words.reference), self._text(scored.hypothesis, words.hypothesis)

    def _text(self, units: Sequence[str], words: Sequence[str]) -> str:
        # wer/ may hold the result of another run
        has_words = words != units and "".join(words) == "".join(units)
        return " ".join(words) if has_words else self._gap.join(units) or "(nothing)"


def _examples(a: _Shown, b: _Shown, max_examples: int) -> str:
    """Return reference and both hypotheses of the utterances with the largest change in errors."""
    errors_a, errors_b, utterances = a.report.utterance_errors, b.report.utterance_errors, a.report.utterances
    changed = [n for n in range(len(errors_a)) if errors_a[n] != errors_b[n]]
    changed.sort(key=lambda n: (-abs(errors_b[n] - errors_a[n]), utterances[n].id))
    if not changed or not max_examples:
        return ""
    lines = ["largest changes, errors of A -> B:"]
    for n in changed[:max_examples]:
        lines.append(f"  {utterances[n].id}  {errors_a[n]} -> {errors_b[n]}, of {len(utterances[n].reference)}")
        for name, text in zip(("ref", "A", "B"), (*a.texts(n), b.texts(n)[1]), strict=True):
            lines.append(f"    {name:4s}{text}")
    return "\n".join(lines) + "\n"
