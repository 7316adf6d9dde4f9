"""Confidence intervals: cases worked by hand, every resample counted, and how often they hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from stateless_transducer.text.bootstrap import (
    Estimate,
    bootstrap_error_rate,
    bootstrap_report,
    compare_error_rates,
    compare_reports,
)
from stateless_transducer.text.scoring import ScoredUtterance, score


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(20040517)


def _report(*texts):
    """Of (reference, hypothesis) pairs of characters."""
    return score([ScoredUtterance(f"u{n}", tuple(ref), tuple(hyp)) for n, (ref, hyp) in enumerate(texts)])


@pytest.mark.parametrize(
    ("errors", "reference_lens", "expected"),
    [
        ([1], [4], Estimate(25.0, 25.0, 25.0)),
        ([0], [4], Estimate(0.0, 0.0, 0.0)),
        ([1, 1, 1], [4, 4, 4], Estimate(25.0, 25.0, 25.0)),
        # (2, 0), (1, 1), (0, 2) of the two utterances: 1/4, 1/2 and 1/4 of the resamples
        ([0, 1], [2, 2], Estimate(25.0, 0.0, 50.0)),
        # long utterances weigh more: 10 / 11
        ([0, 10], [1, 10], Estimate(1000 / 11, 0.0, 100.0)),
        # more errors than reference units, by insertions
        ([6, 6], [2, 2], Estimate(300.0, 300.0, 300.0)),
    ],
    ids=["one", "one-right", "alike", "two", "weighted", "insertions"],
)
def test_interval_worked_by_hand(generator, errors, reference_lens, expected):
    assert bootstrap_error_rate(errors, reference_lens, generator=generator) == expected


def test_confidence_sets_the_tails(generator):
    """Of two utterances: 0 % with probability 1/4, 25 % with 1/2, 50 % with 1/4."""
    estimate = bootstrap_error_rate([0, 1], [2, 2], generator=generator, confidence=0.4)
    assert estimate == Estimate(25.0, 25.0, 25.0)
    estimate = bootstrap_error_rate([0, 1], [2, 2], generator=generator, confidence=0.6)
    assert estimate == Estimate(25.0, 0.0, 50.0)


def test_interval_is_that_of_all_resamples(generator):
    """Of four utterances there are 4^4 resamples, all as likely."""
    errors, lens = np.array([0, 1, 1, 5]), np.array([3, 2, 6, 7])
    drawn = np.array(list(itertools.product(range(4), repeat=4)))
    rates = 100 * errors[drawn].sum(axis=1) / lens[drawn].sum(axis=1)
    for confidence in (0.5, 0.8, 0.95):
        estimate = bootstrap_error_rate(
            errors.tolist(), lens.tolist(), generator=generator, confidence=confidence, num_resamples=100_000
        )
        for found, share in ((estimate.low, (1 - confidence) / 2), (estimate.high, (1 + confidence) / 2)):
            # the quantile of the resamples, give or take one in a hundred
            assert np.quantile(rates, max(share - 0.01, 0)) <= found <= np.quantile(rates, min(share + 0.01, 1))


def test_seed_decides_the_interval():
    errors, lens = list(range(20)), [30] * 20
    first, again, other = (
        bootstrap_error_rate(errors, lens, generator=np.random.default_rng(seed), num_resamples=1000)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_more_kinds_than_are_drawn_at_once(generator, monkeypatch):
    errors, lens = list(range(50)), [100] * 50
    whole = bootstrap_error_rate(errors, lens, generator=np.random.default_rng(3))
    monkeypatch.setattr("stateless_transducer.text.bootstrap._COUNTS_AT_ONCE", 7 * 50)
    assert bootstrap_error_rate(errors, lens, generator=np.random.default_rng(3)) == whole


@pytest.mark.parametrize(
    ("errors", "reference_lens", "expected"),
    [
        ([0, 0], [0, 0], Estimate(0.0, 0.0, 0.0)),
        ([1, 2], [0, 0], Estimate(math.inf, math.inf, math.inf)),
        # a quarter of the resamples has no reference unit, but an error in each utterance
        ([1, 0], [0, 4], Estimate(25.0, 0.0, math.inf)),
        ([0, 1], [0, 4], Estimate(25.0, 0.0, 25.0)),
    ],
    ids=["nothing-said", "only-insertions", "infinite-bound", "empty-and-right"],
)
def test_resamples_without_reference_units_are_defined(generator, errors, reference_lens, expected):
    assert bootstrap_error_rate(errors, reference_lens, generator=generator) == expected


def _simulated(generator, num_utterances, num_systems):
    """Errors (systems, N) of systems that are alike, and lengths: some utterances are hard, for all systems."""
    lens = 1 + generator.poisson(12, size=num_utterances)
    hard = generator.beta(0.5, 4.5, size=num_utterances)
    return generator.binomial(lens, hard, size=(num_systems, num_utterances)), lens


def test_interval_holds_the_truth_as_often_as_it_says(generator):
    """The simulated systems have an error rate of 10 %; 95 % of 200 is 190, give or take four times 3.1."""
    held = 0
    for _ in range(200):
        (errors,), lens = _simulated(generator, 150, 1)
        estimate = bootstrap_error_rate(errors, lens, generator=generator, num_resamples=500)
        held += estimate.low <= 10 <= estimate.high
    # a percentile interval of 150 utterances is a little too narrow
    assert 0.90 <= held / 200 <= 0.98


def test_chance_alone_is_seldom_significant(generator):
    """Two systems that are alike: one in twenty comparisons has p <= 0.05, one in twenty intervals lacks 0."""
    significant = outside = 0
    for _ in range(200):
        (errors_a, errors_b), lens = _simulated(generator, 150, 2)
        found = compare_error_rates(errors_a, errors_b, lens, generator=generator, num_resamples=500)
        significant += found.p_value <= 0.05
        outside += not found.difference.low <= 0 <= found.difference.high
    assert 0.01 <= significant / 200 <= 0.09
    assert 0.02 <= outside / 200 <= 0.10


def test_pairing_sees_what_single_intervals_do_not(generator):
    """B makes one error less in every third utterance; utterances differ far more from one another."""
    (errors_a,), lens = _simulated(generator, 300, 1)
    errors_b = np.maximum(errors_a - (np.arange(300) % 3 == 0), 0)
    found = compare_error_rates(errors_a, errors_b, lens, generator=generator)
    assert found.error_rate_b.low < found.error_rate_a.value < found.error_rate_b.high
    assert found.difference.high < 0 and found.probability_better == 1 and found.p_value < 1e-6


def test_comparison_worked_by_hand(generator):
    """B is better by 2, better by 1, equal and worse by 1, of 8 units: 4 errors of A, 2 of B."""
    found = compare_error_rates([2, 1, 0, 1], [0, 0, 0, 2], [2, 2, 2, 2], generator=generator, num_resamples=50_000)
    assert (found.num_better, found.num_worse, found.num_equal) == (2, 1, 1)
    assert (found.error_rate_a.value, found.error_rate_b.value, found.difference.value) == (50.0, 25.0, -25.0)
    # of the 8 ways to sign 2, 1 and 1, the sum is +-2 or beyond in 4, 2, 2, 0, 0, -2, -2, -4: 6
    assert found.p_value == pytest.approx(6 / 8, abs=1e-12)
    sums = [sum(draw) for draw in itertools.product((-2, -1, 0, 1), repeat=4)]
    # four standard deviations of a share of 50000
    assert found.probability_better == pytest.approx(np.mean([s < 0 for s in sums]), abs=0.009)
    assert found.probability_worse == pytest.approx(np.mean([s > 0 for s in sums]), abs=0.009)


def test_p_value_is_that_of_all_signs(generator):
    for _ in range(30):
        errors_a, errors_b = generator.integers(0, 5, size=(2, generator.integers(1, 9)))
        change = errors_b - errors_a
        signs = np.array(list(itertools.product((-1, 1), repeat=len(change))))
        expected = np.mean(np.abs(signs @ change) >= abs(change.sum()))
        found = compare_error_rates(errors_a, errors_b, errors_a + 1, generator=generator, num_resamples=1)
        assert found.p_value == pytest.approx(expected, abs=1e-12)


def test_swapping_the_results_mirrors_the_comparison():
    errors_a, errors_b, lens = [3, 0, 1, 2, 0, 4], [1, 1, 1, 0, 0, 2], [5, 4, 6, 3, 2, 8]
    one = compare_error_rates(errors_a, errors_b, lens, generator=np.random.default_rng(5))
    other = compare_error_rates(errors_b, errors_a, lens, generator=np.random.default_rng(6))
    assert (one.p_value, one.num_better, one.num_worse) == (other.p_value, other.num_worse, other.num_better)
    assert one.difference.value == -other.difference.value
    assert one.probability_better == pytest.approx(other.probability_worse, abs=0.02)
    assert one.difference.low == pytest.approx(-other.difference.high, abs=2)


def test_result_compared_with_itself_is_no_better(generator):
    found = compare_error_rates([1, 0, 3], [1, 0, 3], [4, 4, 4], generator=generator)
    assert found.difference == Estimate(0.0, 0.0, 0.0)
    assert (found.probability_better, found.probability_worse, found.p_value) == (0.0, 0.0, 1.0)
    assert (found.num_better, found.num_worse, found.num_equal) == (0, 0, 3)


def test_single_utterance_is_compared_without_spread(generator):
    found = compare_error_rates([3], [1], [4], generator=generator)
    assert found.difference == Estimate(-50.0, -50.0, -50.0)
    # the one coin falls either way
    assert (found.probability_better, found.p_value) == (1.0, 1.0)


def test_comparison_without_reference_units_is_defined(generator):
    found = compare_error_rates([2, 0], [1, 0], [0, 0], generator=generator)
    assert (found.error_rate_a.value, found.difference.value) == (math.inf, -math.inf)
    assert found.difference.high == 0.0 and 0.7 < found.probability_better < 0.8


def test_report_gives_its_utterances_errors(generator):
    report = _report(("abcd", "abcd"), ("abcd", ""), ("ab", "xaxb"), ("", "a"))
    assert report.utterance_errors == (0, 4, 2, 1) and report.reference_lens == (4, 4, 2, 0)
    estimate = bootstrap_report(report, generator=generator)
    assert estimate.value == report.error_rate == 70.0
    assert estimate == bootstrap_error_rate([0, 4, 2, 1], [4, 4, 2, 0], generator=np.random.default_rng(20040517))


def test_empty_hypotheses_are_all_errors(generator):
    estimate = bootstrap_report(_report(("ab", ""), ("abcdef", "")), generator=generator)
    assert estimate == Estimate(100.0, 100.0, 100.0)


def test_reports_are_paired_by_id(generator):
    a = score([ScoredUtterance("x", ("a",), ("a",)), ScoredUtterance("y", ("b", "c"), ())])
    b = score([ScoredUtterance("y", ("b", "c"), ("b", "c")), ScoredUtterance("x", ("a",), ())])
    found = compare_reports(a, b, generator=generator)
    assert (found.num_better, found.num_worse) == (1, 1)
    assert found.difference.value == pytest.approx(-100 / 3)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("xyz", "x", r"B lacks 2 of the 3 utterances, which A has: y, z\. Only results for the same utterances"),
        ("x", "xyz", r"A lacks 2 of the 3 utterances, which B has: y, z\."),
        ("abcdefg", "", r"B lacks 7 of the 7 utterances, which A has: a, b, c, d, e, \.\.\.\."),
        ("xx", "x", r"an utterance id occurs twice"),
    ],
)
def test_other_utterances_are_refused_by_name(generator, a, b, message):
    one, other = (score([ScoredUtterance(id_, ("a",), ("a",)) for id_ in ids]) for ids in (a, b))
    with pytest.raises(ValueError, match=message):
        compare_reports(one, other, generator=generator)


def test_other_references_are_refused_by_name(generator):
    with pytest.raises(ValueError, match=r"A and B have different references in 1 of 2 utterances: u1 \(u1: A 'a b'"):
        compare_reports(_report(("a", ""), ("ab", "")), _report(("a", ""), ("a", "")), generator=generator)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], []), {}, "no confidence interval without utterances, but there are none"),
        (([1], [1, 2]), {}, r"`errors` \(1\) and `reference_lens` \(2\) must have equal lengths"),
        (([-1], [1]), {}, "`errors` must be counts, but holds -1"),
        (([0.5], [1]), {}, r"`errors` must be counts, but holds 0.5 \(of float64\)"),
        (([1], [1]), {"confidence": 1.0}, "`confidence` must be between 0 and 1, but is 1.0"),
        (([1], [1]), {"num_resamples": 0}, "`num_resamples` must be at least 1, but is 0"),
    ],
)
def test_bad_counts_are_refused(generator, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_error_rate(*arguments, generator=generator, **options)
