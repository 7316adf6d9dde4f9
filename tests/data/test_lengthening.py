"""Silence around utterances, and utterances joined to longer ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from model_sizes import SUBSAMPLING
from model_sizes import lengths as lengths_of
from small_corpus import TOKENS, make_cut

from stateless_transducer.data.augment import Augment, training_augment
from stateless_transducer.data.batches import TrainingLoader, trainable
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.index import open_index
from stateless_transducer.data.plan import BatchLimits, join, plan_epoch
from stateless_transducer.features import SILENCE_VALUE
from stateless_transducer.training.memory import worst_batches

PLAIN = DataConfig(
    num_workers=0, max_duration=8.0, num_buckets=3, min_utterance_s=0.5, enable_spec_aug=False, enable_musan=False
)


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    made = [make_cut(folder, f"u{n:02d}", 1.0 + 0.05 * n, "abc"[: 1 + n % 3]) for n in range(30)]
    CutSet.from_cuts(made).to_file(folder / "cuts.jsonl.gz")
    return trainable(open_index(folder / "cuts.jsonl.gz"), TOKENS, PLAIN, SUBSAMPLING)


def _batches(training_set, config, epoch, first=0, **options):
    loader = TrainingLoader(training_set, TOKENS, config, seed=1, **options)
    return [batch for update in loader.updates(epoch, first=first) for batch in update.batches]


def test_silence_is_of_the_quietest_frames_or_digital():
    features = torch.randn(100, 80) + 3
    features[40:60] -= 10 + torch.rand(20, 1)
    augment = Augment(0, silence_frames=50, silence_from_epoch=2)
    assert torch.equal(augment(features, "u", 1), features)
    counts, num_digital = set(), 0
    for n in range(40):
        longer = augment(features, f"u{n}", 2)
        (begin,) = [b for b in range(51) if torch.equal(longer[b : b + 100], features)]
        silence = torch.cat([longer[:begin], longer[begin + 100 :]])
        if (silence == SILENCE_VALUE).all():
            num_digital += 1
        else:
            assert all((features[40:60] == frame).all(1).any() for frame in silence)
        counts |= {begin, len(longer) - begin - 100}
    assert 0 <= min(counts) < 10 and 40 < max(counts) <= 50
    assert 3 <= num_digital <= 20


def test_silence_alone_is_augmentation():
    augment = training_augment(replace(PLAIN, silence_s=0.3), seed=0, frame_shift_s=0.01)
    assert augment is not None and len(augment(torch.randn(50, 80), "u", 0)) <= 110


@pytest.mark.parametrize("world_size", [1, 2])
def test_joined_utterances_are_those_of_the_epoch_end_to_end(training_set, world_size):
    config = replace(PLAIN, join_up_to_s=6.0)
    alone = {batch.ids[n]: batch for batch in _batches(training_set, PLAIN, 0) for n in range(len(batch.ids))}
    found = [
        batch
        for rank in range(world_size)
        for batch in _batches(training_set, config, 0, rank=rank, world_size=world_size)
    ]
    joined = [id_ for batch in found for id_ in batch.ids if "+" in id_]
    assert sorted("+".join(id_ for batch in found for id_ in batch.ids).split("+")) == sorted(alone)
    assert 0.2 * 30 < sum(len(id_.split("+")) for id_ in joined) < 0.9 * 30
    for batch in found:
        for n, id_ in enumerate(batch.ids):
            parts = [(alone[part], alone[part].ids.index(part)) for part in id_.split("+")]
            features = torch.cat([own.features[i, : own.feature_lens[i]] for own, i in parts])
            tokens = torch.cat([own.tokens[i, : own.token_lens[i]] for own, i in parts])
            assert torch.equal(batch.features[n, : batch.feature_lens[n]], features)
            assert torch.equal(batch.tokens[n, : batch.token_lens[n]], tokens)
            assert len(features) <= 600
            assert batch.texts[n] == "".join(own.texts[i] for own, i in parts)


def test_epochs_are_lengthened_from_one_on_and_go_on_from_any_update(training_set):
    config = replace(PLAIN, join_up_to_s=6.0, silence_s=0.2, lengthen_from_epoch=2)
    for epoch, is_longer in ((1, False), (2, True)):
        whole = _batches(training_set, config, epoch)
        plain = _batches(training_set, PLAIN, epoch)
        assert any("+" in id_ for batch in whole for id_ in batch.ids) == is_longer
        seconds = sum(batch.seconds for batch in whole) - sum(batch.seconds for batch in plain)
        assert (2.0 < seconds < 10.0) if is_longer else seconds == 0
        rest = _batches(training_set, config, epoch, first=2)
        assert [batch.ids for batch in rest] == [batch.ids for batch in whole[2:]]
        assert all(torch.equal(a.features, b.features) for a, b in zip(rest, whole[2:], strict=True))


def test_batches_of_silence_and_chains_keep_to_their_limits(training_set):
    config = replace(PLAIN, join_up_to_s=6.0, silence_s=0.4, max_duration=12.0)
    for epoch in range(4):
        for batch in _batches(training_set, config, epoch):
            # of what does not divide evenly, padding may be an utterance more
            assert batch.features.shape[0] * batch.features.shape[1] / 100 <= 12.0 + 2.5 + 0.8


def test_lattices_of_chains_keep_to_their_limit():
    lengths = lengths_of(np.full(12, 2.0), np.full(12, 200), np.full(12, 10))
    cells = int(SUBSAMPLING.lens(np.array(200))) * 11 * 12
    random, numbers = np.random.default_rng(0), np.arange(12)
    for factor in (1.0, 2.2, 100.0):
        sizes = set()
        for _ in range(50):
            chains = join(numbers, lengths, BatchLimits(24.0, int(factor * cells)), 13.0, random)
            assert sorted(np.concatenate(chains).tolist()) == numbers.tolist()
            longest = max(len(chain) for chain in chains)
            assert len(chains) * int(SUBSAMPLING.lens(np.array(200 * longest))) * (10 * longest + 1) <= factor * cells
            sizes.add(longest)
        assert max(sizes) == {1.0: 1, 2.2: 2, 100.0: 6}[factor]


def test_plans_follow_from_silence_alone(training_set):
    def contents(**options):
        return TrainingLoader(training_set, TOKENS, replace(PLAIN, **options), seed=1).contents

    assert contents() == contents(join_up_to_s=6.0, lengthen_from_epoch=3)
    assert contents() != contents(silence_s=0.2) != contents(silence_s=0.2, lengthen_from_epoch=3)


def test_largest_joined_batch_is_foreseen():
    random, count = np.random.default_rng(0), 300
    seconds = random.uniform(1.0, 3.0, count)
    lengths = lengths_of(seconds, (100 * seconds).astype(int), np.full(count, 5))
    found = worst_batches(lengths, BatchLimits(40.0), 1, join_up_to_s=20.0)
    longest = max(T_in for _, T_in, _ in found)
    assert 1900 < longest <= 2000 and all(N * T_in <= 4600 for N, T_in, _ in found)
    assert found != worst_batches(lengths, BatchLimits(40.0), 1)
    # whatever joining makes of the batches of a plan
    most_frames, most_cells = max(N * T_in for N, T_in, _ in found), max(_cells(*shape) for shape in found)
    limits = BatchLimits(40.0)
    for batch in plan_epoch(lengths, limits, num_buckets=1, random=random):
        chains = join(batch, lengths, limits, 20.0, random)
        frames = max(int(lengths.num_frames[chain].sum()) for chain in chains)
        tokens = max(int(lengths.num_tokens[chain].sum()) for chain in chains)
        assert len(chains) * frames <= most_frames + 300 and _cells(len(chains), frames, tokens) <= 1.1 * most_cells


def _cells(N, T_in, U):
    return N * int(SUBSAMPLING.lens(np.array(T_in))) * (U + 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"silence_s": -0.1}, "`silence_s` must be in 0..5 s, but is -0.1"),
        ({"join_up_to_s": 301.0}, "`join_up_to_s` must be in 0..300 s, but is 301"),
        ({"lengthen_from_epoch": -1}, "`lengthen_from_epoch` must be at least 0, but is -1"),
    ],
)
def test_impossible_lengths_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        DataConfig(**options)
