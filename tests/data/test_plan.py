"""Plans of epochs: who learns what when, from lengths alone."""

from __future__ import annotations

import numpy as np
import pytest
from model_sizes import lengths as lengths_of

from stateless_transducer.data.plan import BatchLimits, plan_epoch


def _lengths(count, seed=0):
    random = np.random.default_rng(seed)
    seconds = random.uniform(1, 12, count)
    return lengths_of(seconds, np.round(seconds * 100).astype(int), random.integers(0, 30, count))


def _plan(lengths, limits=None, **options):
    options = {"num_buckets": 5, "random": np.random.default_rng(1), **options}
    return plan_epoch(lengths, limits or BatchLimits(60.0), **options)


@pytest.mark.parametrize("is_shuffled", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_every_utterance_is_in_one_batch_but_for_fewer_than_there_are_processes(count, parts, is_shuffled):
    plan = _plan(_lengths(count), parts=parts, **({} if is_shuffled else {"random": None}))
    seen = np.concatenate(plan) if plan else np.zeros(0, int)
    assert len(set(seen.tolist())) == len(seen)
    assert all(len(batch) >= parts for batch in plan)
    assert count - len(seen) < parts


def test_batches_keep_to_the_limits_padding_counted():
    lengths, limits = _lengths(1000), BatchLimits(60.0, max_cells=20_000)
    plan = _plan(lengths, limits)
    frames = ((lengths.num_frames - 1) // 2 - 1) // 2
    seconds = [len(own) * lengths.seconds[own].max() for own in plan]
    cells = [len(own) * frames[own].max() * (lengths.num_tokens[own].max() + 1) for own in plan]
    assert max(seconds) <= 60.0 and max(cells) <= 20_000
    # both are made use of
    assert max(cells) > 18_000 and np.mean(seconds) > 25


def test_an_utterance_too_long_for_any_batch_is_alone():
    lengths = lengths_of(np.array([5.0, 100.0, 5.0]), np.array([500, 10_000, 500]), np.array([3, 3, 3]))
    assert sorted(map(len, _plan(lengths, BatchLimits(20.0), num_buckets=1))) in ([1, 2], [1, 1, 1])


def test_utterances_of_a_batch_are_of_like_length_and_come_longest_first():
    lengths = _lengths(2000)
    plan = _plan(lengths, num_buckets=10)
    assert all((np.diff(lengths.seconds[own]) <= 0).all() for own in plan)
    spreads = [np.ptp(lengths.seconds[own]) for own in plan]
    assert np.mean(spreads) < 0.15 * np.ptp(lengths.seconds)


def test_buckets_hold_about_as_many_seconds():
    """So many short utterances as few long ones: batches of both kinds are as many."""
    lengths = _lengths(3000)
    plan = _plan(lengths, num_buckets=2)
    means = np.array([lengths.seconds[own].mean() for own in plan])
    middle = np.median(np.repeat(lengths.seconds, np.round(lengths.seconds * 10).astype(int)))
    assert abs((means < middle).mean() - 0.5) < 0.1


def test_order_follows_from_the_generator():
    lengths = _lengths(500)
    plans = [_plan(lengths, random=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    lists = [[own.tolist() for own in plan] for plan in plans]
    assert lists[0] == lists[1] != lists[2]


def test_two_processes_with_half_the_limit_get_the_same_batches():
    lengths = _lengths(500)
    one = _plan(lengths, BatchLimits(60.0, 200_000), parts=1)
    two = _plan(lengths, BatchLimits(30.0, 100_000), parts=2)
    assert min(map(len, one)) > 1, "a single utterance cannot be shared"
    assert [own.tolist() for own in one] == [own.tolist() for own in two]


def test_dropping_the_last_leaves_full_batches():
    lengths = lengths_of(np.full(100, 2.0), np.full(100, 200), np.full(100, 5))
    plan = _plan(lengths, BatchLimits(16.0), num_buckets=3, drop_last=True)
    assert {len(own) for own in plan} == {8}


@pytest.mark.parametrize("parts", [1, 2])
def test_without_a_generator_the_longest_come_first(parts):
    lengths = _lengths(100)
    plan = plan_epoch(lengths, BatchLimits(60.0), num_buckets=1, parts=parts)
    assert (np.diff(lengths.seconds[np.concatenate(plan)]) <= 0).all() and len(np.concatenate(plan)) == 100
