"""Confidence intervals of error rates and of their differences: bootstrap over utterances.

A resample has as many utterances as the test set, drawn from it with replacement. The error rates of resamples vary
as those of other test sets of the kind would. Utterances are drawn whole, since errors in one utterance are dependent.

M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.

Letters: N utterances, R resamples. Error rates are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stateless_transducer.text.scoring import Report

# counts of utterances drawn at once, kinds times resamples: 8 MiB
_COUNTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """Figure of the test set and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of results A and B for the same utterances."""

    error_rate_a: Estimate
    error_rate_b: Estimate
    difference: Estimate
    """Error rate of B minus that of A: below 0 if B is better."""
    probability_better: float
    """Share of the resamples in which B has fewer errors than A: the paper's probability of improvement."""
    probability_worse: float
    """Share of the resamples in which B has more errors than A; the rest are ties."""
    p_value: float
    """Exact p value of the two-sided randomization test: probability of a difference at least as large if a fair coin
    decided for each utterance which of the two results is A's and which is B's."""
    num_better: int
    """Number of utterances in which B has fewer errors than A."""
    num_worse: int
    """Number of utterances in which B has more errors than A."""
    num_equal: int
    """Number of utterances in which A and B have equally many errors."""


def bootstrap_error_rate(
    errors: Sequence[int],
    reference_lens: Sequence[int],
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> Estimate:
    """Return ``100 * sum(errors) / sum(reference_lens)`` and its percentile interval.

    Without reference units, the error rate of the test set or of a resample is 0 if there are no errors, else infinity.
    With a single utterance, both bounds are its error rate.

    Args:
        errors: (N,), errors in each utterance.
        reference_lens: (N,), units in the reference of each utterance.
        generator: draws the resamples.
        confidence: probability with which the interval should contain the true value.
        num_resamples: R.

    Raises:
        ValueError: there are no utterances.
    """
    counts = _counts(errors=errors, reference_lens=reference_lens)
    resampled = _resampled_sums(counts, generator, num_resamples)
    return _estimate(_rates(counts.sum(axis=0, keepdims=True)), _rates(resampled), confidence)


def compare_error_rates(
    errors_a: Sequence[int],
    errors_b: Sequence[int],
    reference_lens: Sequence[int],
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> Comparison:
    """Compare two results for the same utterances; a resample has the same utterances for both.

    Args:
        errors_a: (N,), errors of A in each utterance.
        errors_b: (N,), errors of B in each utterance.
        reference_lens: (N,), units in the reference of each utterance.
        generator: draws the resamples.
        confidence: probability with which each interval should contain the true value.
        num_resamples: R.

    Raises:
        ValueError: there are no utterances.
    """
    counts = _counts(errors_a=errors_a, errors_b=errors_b, reference_lens=reference_lens)
    changes = counts[:, 1] - counts[:, 0]
    # the difference is resampled like a third result
    counts = np.column_stack([counts[:, :2], changes, counts[:, 2]])
    resampled = _resampled_sums(counts, generator, num_resamples)
    total = counts.sum(axis=0, keepdims=True)
    a, b, difference = (_estimate(_rates(total[:, [i, 3]]), _rates(resampled[:, [i, 3]]), confidence) for i in range(3))
    return Comparison(
        error_rate_a=a,
        error_rate_b=b,
        difference=difference,
        # errors, not rates: defined without any reference unit, too
        probability_better=float((resampled[:, 2] < 0).mean()),
        probability_worse=float((resampled[:, 2] > 0).mean()),
        p_value=_randomization_p_value(changes),
        num_better=int((changes < 0).sum()),
        num_worse=int((changes > 0).sum()),
        num_equal=int((changes == 0).sum()),
    )


def bootstrap_report(
    report: Report, *, generator: np.random.Generator, confidence: float = 0.95, num_resamples: int = 10_000
) -> Estimate:
    """Return the error rate of a score and its interval, see `bootstrap_error_rate`."""
    return bootstrap_error_rate(
        report.utterance_errors,
        report.reference_lens,
        generator=generator,
        confidence=confidence,
        num_resamples=num_resamples,
    )


def compare_reports(
    a: Report, b: Report, *, generator: np.random.Generator, confidence: float = 0.95, num_resamples: int = 10_000
) -> Comparison:
    """Compare two scores, see `compare_error_rates`.

    Raises:
        ValueError: their utterances or references differ.
    """
    _check_paired(a, b)
    return compare_error_rates(
        a.utterance_errors,
        b.utterance_errors,
        a.reference_lens,
        generator=generator,
        confidence=confidence,
        num_resamples=num_resamples,
    )


def _check_paired(a: Report, b: Report) -> None:
    ref_a, ref_b = ({utterance.id: utterance.reference for utterance in report.utterances} for report in (a, b))
    for report, by_id in ((a, ref_a), (b, ref_b)):
        if len(by_id) < len(report.utterances):
            raise ValueError("Results cannot be paired: an utterance id occurs twice.")
    for name, complete, missing in (("A", "B", ref_b.keys() - ref_a), ("B", "A", ref_a.keys() - ref_b)):
        if missing:
            raise ValueError(
                f"{name} lacks {len(missing)} of the {len(ref_a.keys() | ref_b)} utterances, which {complete} has: "
                f"{_some(missing)}. Only results for the same utterances can be compared."
            )
    different = [id_ for id_, reference in ref_a.items() if reference != ref_b[id_]]
    if different:
        id_ = min(different)
        raise ValueError(
            f"A and B have different references in {len(different)} of {len(ref_a)} utterances: {_some(different)} "
            f"({id_}: A {' '.join(ref_a[id_])!r}, B {' '.join(ref_b[id_])!r}). Only results for the same references "
            "can be compared."
        )


def _some(ids: Sequence[str] | set[str]) -> str:
    first = sorted(ids)[:5]
    return ", ".join(first) + (", ..." if len(ids) > len(first) else "")


def _counts(**columns: Sequence[int]) -> NDArray[np.int64]:
    """Check columns and combine them: (N, columns)."""
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{' and '.join(f'`{name}` ({size})' for name, size in sizes.items())} must have equal lengths."
        )
    if 0 in sizes.values():
        raise ValueError("An error rate has no confidence interval without utterances, but there are none.")
    for name, column in columns.items():
        if np.asarray(column).dtype.kind not in "iu" or min(column) < 0:
            raise ValueError(f"`{name}` must be counts, but holds {min(column)} (of {np.asarray(column).dtype}).")
    return np.column_stack([np.asarray(column, dtype=np.int64) for column in columns.values()])


def _resampled_sums(counts: NDArray[np.int64], generator: np.random.Generator, num_resamples: int) -> NDArray[np.int64]:
    """(N, C) -> (R, C): sums over N utterances drawn with replacement."""
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` must be at least 1, but is {num_resamples}.")
    # utterances with the same counts are one kind; the number of draws of each kind is multinomial
    kinds, frequencies = np.unique(counts, axis=0, return_counts=True)
    probabilities = frequencies / len(counts)
    sums = np.empty((num_resamples, counts.shape[1]), dtype=np.int64)
    at_once = max(1, _COUNTS_AT_ONCE // len(kinds))
    for start in range(0, num_resamples, at_once):
        part = sums[start : start + at_once]
        part[:] = generator.multinomial(len(counts), probabilities, size=len(part)) @ kinds
    return sums


def _rates(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, 2), errors and reference units -> (R,): percent; x / 0 is infinite with the sign of x, 0 / 0 is 0."""
    errors, reference = sums[:, 0], sums[:, 1]
    without = np.where(errors == 0, 0.0, np.copysign(np.inf, errors))
    return np.where(reference > 0, 100.0 * errors / np.maximum(reference, 1), without)


def _estimate(value: ArrayLike, resampled: NDArray[np.float64], confidence: float) -> Estimate:
    """Return percentiles rounded outwards, without interpolation, since rates may be infinite."""
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, but is {confidence}.")
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, tail, method="lower"), np.quantile(resampled, 1 - tail, method="higher")
    return Estimate(float(np.asarray(value).item()), float(low), float(high))


def _randomization_p_value(changes: NDArray[np.int64]) -> float:
    """Return the probability of ``abs(sum(±changes)) >= abs(sum(changes))`` with random signs.

    The sum's characteristic function is the product of ``cos(change * angle)``; its Fourier transform gives the
    probability of every sum, exact but for rounding (1e-12).
    """
    sizes, counts = np.unique(np.abs(changes[changes != 0]), return_counts=True)
    largest, observed = int(sizes @ counts), abs(int(changes.sum()))
    num_sums = 2 * largest + 1
    angles = 2 * np.pi / num_sums * np.arange(largest + 1)
    transform = np.ones(largest + 1)
    for size, count in zip(sizes, counts, strict=True):
        transform *= np.cos(size * angles) ** count
    # negative sums count back from the end
    probabilities = np.fft.irfft(transform, n=num_sums)
    return float(probabilities[observed : num_sums - observed + 1].sum().clip(0, 1))
