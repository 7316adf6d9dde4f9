"""Error rates: align hypotheses with references, count the errors, and write icefall's result files.

A unit is a character (CER) or a word (WER); see `units`. The writers return text, byte for byte what icefall writes
to ``recogs-*.txt``, ``errs-*.txt`` and ``wer-summary-*.txt``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal, TypeVar

import kaldialign

# pairs (reference unit, hypothesis unit) in order; None marks an insertion or a deletion
Alignment = tuple[tuple[str | None, str | None], ...]

_Error = TypeVar("_Error", str, tuple[str, str])


@dataclass(frozen=True)
class ScoredUtterance:
    """Units of the reference and of the hypothesis of one utterance."""

    id: str
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True)
class WordCounts:
    """Counts of a unit: recognized correctly, in all references, in all hypotheses."""

    num_correct: int
    num_reference: int
    num_hypothesis: int

    @property
    def num_errors(self) -> int:
        """Number of times the unit was missed or wrongly recognized."""
        return self.num_reference + self.num_hypothesis - 2 * self.num_correct


@dataclass(frozen=True)
class Report:
    """Score of a test set: its utterances in the order of their ids, with their alignments."""

    utterances: tuple[ScoredUtterance, ...]
    alignments: tuple[Alignment, ...]

    @cached_property
    def correct(self) -> Counter[str]:
        """Unit -> number of times it was recognized correctly."""
        return Counter(ref for ref, hyp in self._pairs() if ref is not None and ref == hyp)

    @cached_property
    def substitutions(self) -> Counter[tuple[str, str]]:
        """(Reference unit, hypothesis unit) -> number of substitutions."""
        return Counter((ref, hyp) for ref, hyp in self._pairs() if ref is not None and hyp is not None and ref != hyp)

    @cached_property
    def deletions(self) -> Counter[str]:
        """Reference unit -> number of deletions."""
        return Counter(ref for ref, hyp in self._pairs() if ref is not None and hyp is None)

    @cached_property
    def insertions(self) -> Counter[str]:
        """Hypothesis unit -> number of insertions."""
        return Counter(hyp for ref, hyp in self._pairs() if hyp is not None and ref is None)

    @cached_property
    def words(self) -> dict[str, WordCounts]:
        """Unit of the references or hypotheses -> its counts."""
        references = Counter(unit for utterance in self.utterances for unit in utterance.reference)
        hypotheses = Counter(unit for utterance in self.utterances for unit in utterance.hypothesis)
        return {
            unit: WordCounts(self.correct[unit], references[unit], hypotheses[unit]) for unit in references | hypotheses
        }

    @property
    def num_correct(self) -> int:
        """Number of reference units recognized correctly."""
        return self.correct.total()

    @property
    def num_substitutions(self) -> int:
        """Number of substitutions."""
        return self.substitutions.total()

    @property
    def num_deletions(self) -> int:
        """Number of deletions."""
        return self.deletions.total()

    @property
    def num_insertions(self) -> int:
        """Number of insertions."""
        return self.insertions.total()

    @property
    def num_errors(self) -> int:
        """Number of insertions, deletions and substitutions."""
        return self.num_insertions + self.num_deletions + self.num_substitutions

    @property
    def num_reference(self) -> int:
        """Number of units in all references."""
        return sum(len(utterance.reference) for utterance in self.utterances)

    @property
    def reference_lens(self) -> tuple[int, ...]:
        """Number of reference units of each utterance."""
        return tuple(len(utterance.reference) for utterance in self.utterances)

    @property
    def utterance_errors(self) -> tuple[int, ...]:
        """Number of errors of each utterance."""
        return tuple(sum(ref != hyp for ref, hyp in alignment) for alignment in self.alignments)

    @property
    def error_rate(self) -> float:
        """``100 * num_errors / num_reference``, in percent; without reference units, 0 or infinity."""
        if self.num_reference == 0:
            return float("inf") if self.num_errors else 0.0
        return 100.0 * self.num_errors / self.num_reference

    def _pairs(self) -> Iterator[tuple[str | None, str | None]]:
        return (pair for alignment in self.alignments for pair in alignment)


def units(text: str, unit: Literal["char", "word"]) -> tuple[str, ...]:
    """Split a text into units: code points without white space, or words separated by white space."""
    if unit == "word":
        return tuple(text.split())
    if unit == "char":
        return tuple("".join(text.split()))
    raise ValueError(f'`unit` must be "char" or "word", but is {unit!r}.')


def score(utterances: Iterable[ScoredUtterance]) -> Report:
    """Align each hypothesis with its reference with the fewest errors; any string may be a unit."""
    by_id = _sorted_by_id(utterances)
    return Report(by_id, tuple(_align(utterance.reference, utterance.hypothesis) for utterance in by_id))


def error_rate_line(test_set_and_key: str, report: Report, *, metric: Literal["CER", "WER"] = "WER") -> str:
    """Return the log line of a result.

    Args:
        test_set_and_key: name of the test set and of the decoding method, as ``test-greedy_search``.
        report: the score.
        metric: name in the line. icefall writes WER for a CER, too.
    """
    return (
        f"[{test_set_and_key}] %{metric} {report.error_rate:.2f}% [{report.num_errors} / {report.num_reference}, "
        f"{report.num_insertions} ins, {report.num_deletions} del, {report.num_substitutions} sub ]"
    )


def recogs_text(utterances: Iterable[ScoredUtterance]) -> str:
    """Return the text of ``recogs-*.txt``: reference and hypothesis of each utterance, in the order of their ids."""
    return "".join(
        f"{utterance.id}:\tref={list(utterance.reference)}\n{utterance.id}:\thyp={list(utterance.hypothesis)}\n"
        for utterance in _sorted_by_id(utterances)
    )


def errs_text(report: Report) -> str:
    """Return the text of ``errs-*.txt``: error rate, alignments, counts of errors and units."""
    aligned = zip(report.utterances, report.alignments, strict=True)
    lines = [
        f"%WER = {report.error_rate:.2f}",
        f"Errors: {report.num_insertions} insertions, {report.num_deletions} deletions, "
        f"{report.num_substitutions} substitutions, over {report.num_reference} reference words "
        f"({report.num_correct} correct)",
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",
        *(f"{utterance.id}:\t{_alignment_text(alignment)}" for utterance, alignment in aligned),
        "",
        "SUBSTITUTIONS: count ref -> hyp",
        *(f"{count}   {ref} -> {hyp}" for count, (ref, hyp) in _most_frequent_first(report.substitutions)),
        "",
        "DELETIONS: count ref",
        *(f"{count}   {unit}" for count, unit in _most_frequent_first(report.deletions)),
        "",
        "INSERTIONS: count hyp",
        *(f"{count}   {unit}" for count, unit in _most_frequent_first(report.insertions)),
        "",
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
    ]
    for unit, counts in sorted(report.words.items(), key=lambda item: (item[1].num_errors, item[0]), reverse=True):
        lines.append(
            f"{unit}   {counts.num_correct} {counts.num_errors} {counts.num_reference} {counts.num_hypothesis}"
        )
    return "\n".join(lines) + "\n"


def summary_text(results: Mapping[str, float], *, metric: Literal["CER", "WER"] = "CER") -> str:
    """Return the text of ``wer-summary-*.txt``: a line per decoding method, the best first.

    Args:
        results: decoding method -> error rate in percent, rounded to two digits here.
        metric: name of the error rate in the header.
    """
    # rounded before sorting: methods that print the same keep their order; 17.70 prints as 17.7
    rounded = {key: float(f"{rate:.2f}") for key, rate in results.items()}
    lines = (f"{key}\t{rate}\n" for key, rate in sorted(rounded.items(), key=lambda item: item[1]))
    return f"settings\t{metric}\n" + "".join(lines)


def _sorted_by_id(utterances: Iterable[ScoredUtterance]) -> tuple[ScoredUtterance, ...]:
    return tuple(sorted(utterances, key=lambda utterance: (utterance.id, utterance.reference, utterance.hypothesis)))


def _align(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> Alignment:
    # numbers for the units, so that the gap's number can be no unit
    gap = -1
    symbols = sorted({*reference, *hypothesis})
    numbers = {symbol: i for i, symbol in enumerate(symbols)}
    pairs = kaldialign.align([numbers[unit] for unit in reference], [numbers[unit] for unit in hypothesis], gap)
    return tuple((None if r == gap else symbols[r], None if h == gap else symbols[h]) for r, h in pairs)


def _alignment_text(alignment: Alignment) -> str:
    """Write correct units as they are, adjacent errors together as ``(a b->c)``, an empty side as ``*``."""
    words: list[str] = []
    for is_correct, run in groupby(alignment, key=lambda pair: pair[0] == pair[1]):
        references, hypotheses = zip(*run, strict=True)
        ref = [unit for unit in references if unit is not None]
        hyp = [unit for unit in hypotheses if unit is not None]
        words += ref if is_correct else [f"({' '.join(ref) or '*'}->{' '.join(hyp) or '*'})"]
    return " ".join(words)


def _most_frequent_first(counts: Mapping[_Error, int]) -> list[tuple[int, _Error]]:
    """Sort (count, error) by count, then by error, both descending."""
    return sorted(((count, error) for error, count in counts.items()), reverse=True)
