from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lhotse import CutSet
from model_sizes import SUBSAMPLING
from small_corpus import TOKENS, make_cut, write_small_corpus
from torch.utils.data import DataLoader

from stateless_transducer.cli import main
from stateless_transducer.data.batches import TrainingLoader, evaluation_batches, make_batch, trainable, with_loss
from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
from stateless_transducer.data.index import open_index
from stateless_transducer.features import PADDING_VALUE

PLAIN = DataConfig(num_workers=0, max_duration=8.0, num_buckets=2, drop_last=False, min_utterance_s=0.5)


@pytest.fixture
def cuts(tmp_path):
    made = [make_cut(tmp_path, f"u{n:02d}", 1.0 + 0.1 * n, "abc"[: 1 + n % 3]) for n in range(20)]
    return _index(tmp_path, made)


def _index(folder, cuts):
    path = folder / "cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(path)
    return open_index(path)


def test_batch_is_padded_with_silence_and_lengths_tell_the_truth():
    features = [torch.ones(12, 80), torch.ones(9, 80)]
    batch = make_batch(features, ("ab", "zé"), ("u1", "u2"), TOKENS, 0.01)
    assert batch.features.shape == (2, 12, 80) and batch.feature_lens.tolist() == [12, 9]
    assert (batch.features[1, 9:] == PADDING_VALUE).all() and (batch.features[1, :9] == 1).all()
    assert batch.tokens.tolist() == [[3, 4], [TOKENS.unknown_id] * 2] and batch.token_lens.tolist() == [2, 2]
    assert batch.seconds == pytest.approx(0.21)


def test_evaluation_sees_every_utterance_once_from_long_to_short(cuts):
    batches = list(evaluation_batches(cuts, TOKENS, PLAIN))
    assert [id_ for batch in batches for id_ in batch.ids] == [f"u{n:02d}" for n in range(19, -1, -1)]
    assert all(batch.features.shape[0] * batch.features.shape[1] / 100 <= 8.0 for batch in batches)
    shares = [list(evaluation_batches(cuts, TOKENS, PLAIN, rank=rank, world_size=2)) for rank in range(2)]
    assert sorted(id_ for share in shares for batch in share for id_ in batch.ids) == [f"u{n:02d}" for n in range(20)]


def _ids(cuts, epoch, config=PLAIN, first=0, **options):
    loader = TrainingLoader(trainable(cuts, TOKENS, config, SUBSAMPLING), TOKENS, config, seed=1, **options)
    return [[batch.ids for batch in update.batches] for update in loader.updates(epoch, first=first)]


def test_two_processes_share_each_update(cuts):
    wide, half = replace(PLAIN, max_duration=16.0), replace(PLAIN, max_duration=8.0)
    halves = [_ids(cuts, 0, half, rank=rank, world_size=2) for rank in range(2)]
    whole = _ids(cuts, 0, wide)
    assert len(halves[0]) == len(halves[1]) == len(whole)
    for (mine,), (other,), (all_,) in zip(*halves, whole, strict=True):
        assert set(mine) | set(other) == set(all_) and len(mine) + len(other) == len(all_)


def test_accumulated_batches_make_the_same_updates(cuts):
    pairs, whole = _ids(cuts, 0, accumulate=2), _ids(cuts, 0, replace(PLAIN, max_duration=16.0))
    assert [set(a) | set(b) for a, b in pairs] == [set(only) for (only,) in whole]


def test_an_epoch_goes_on_from_any_update(cuts):
    assert _ids(cuts, 3, first=2) == _ids(cuts, 3)[2:] != _ids(cuts, 4)[2:]


def test_updates_know_speech_and_tokens_of_all_processes(cuts):
    usable = trainable(cuts, TOKENS, PLAIN, SUBSAMPLING)
    for rank in range(2):
        loader = TrainingLoader(usable, TOKENS, PLAIN, seed=1, rank=rank, world_size=2)
        updates = list(loader.updates(0))
        assert sum(update.num_tokens for update in updates) == usable.lengths.num_tokens.sum()
        assert sum(update.seconds for update in updates) == pytest.approx(usable.lengths.seconds.sum())


def test_unusable_utterances_are_told_by_reason(tmp_path):
    made = [
        make_cut(tmp_path, "good", 1.0, "abc"),
        make_cut(tmp_path, "fine", 1.0, "abc"),
        make_cut(tmp_path, "short", 0.4, "a"),
        make_cut(tmp_path, "long", 13.0, "a"),
        make_cut(tmp_path, "dense", 0.5, "abcdefgh" * 3),
    ]
    usable = trainable(_index(tmp_path, made), TOKENS, PLAIN, SUBSAMPLING)
    assert {reason: usable.index.name_some(numbers) for reason, numbers in usable.left_out.items()} == {
        "shorter than 0.5 s": "short",
        "longer than 12 s": "long",
        "with as many tokens as encoder frames or more": "dense",
    }
    assert usable.numbers.tolist() == [0, 1] and usable.lengths.seconds.sum() == 2.0
    # validation wants no more than a loss
    assert with_loss(usable.index, TOKENS, SUBSAMPLING).numbers.tolist() == [0, 1, 2, 3]


def test_training_names_some_of_what_it_leaves_out(tmp_path, capsys):
    # of 1.05, 1.1 and 1.15 s, as every twelfth is
    words = [*write_small_corpus(tmp_path), "--exp-dir", str(tmp_path / "exp"), "--max-utterance-s", "1.01"]
    assert main(["train", *words, "--dry-run", "true"]) == 0
    said = capsys.readouterr().err
    some = "train09, train10, train11, train21, train22, ..."
    assert f"Left out 6 utterances of aishell longer than 1.01 s: {some}\n" in said


def test_nothing_usable_is_explained(tmp_path):
    index = _index(tmp_path, [make_cut(tmp_path, "short", 0.4, "a")])
    with pytest.raises(ValueError, match="0 utterances left for training, .*: 1 shorter than 0.5 s: short."):
        trainable(index, TOKENS, PLAIN, SUBSAMPLING)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_of_another_width_are_named(tmp_path, num_workers, monkeypatch):
    """Their manifest may not know: the array counts. Workers end with the error, whatever refers to their iterator."""
    iterators, plain = [], DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", lambda loader: iterators.append(plain(loader)) or iterators[-1])
    frames = [torch.randn(60, 80), torch.randn(60, 40)]
    cuts = [make_cut(tmp_path / "feats", f"u{n}", 0.6, "ab", rows) for n, rows in enumerate(frames)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    config = DataConfig(num_workers=num_workers)
    with pytest.raises(ValueError, match=r"features of u1 .*\(60, 40\).* 80\)"):
        list(evaluation_batches(open_index(tmp_path / "cuts.jsonl.gz"), TOKENS, config))
    workers = [worker for iterator in iterators for worker in getattr(iterator, "_workers", ())]
    assert len(workers) == num_workers and not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("masks", [0, 1, 10])
def test_spec_augment_masks_what_it_is_told_to(cuts, masks):
    augment = SpecAugmentConfig(
        spec_aug_time_warp_factor=0,
        num_feature_masks=0,
        num_frame_masks=masks,
        frames_mask_size=20,
        spec_aug_probability=1.0,
    )
    config = DataConfig(num_workers=0, max_duration=60.0, num_buckets=2, drop_last=False, spec_augment=augment)
    loader = TrainingLoader(trainable(cuts, TOKENS, config, SUBSAMPLING), TOKENS, config, seed=1)
    plain = next(evaluation_batches(cuts, TOKENS, DataConfig(num_workers=0, max_duration=60.0)))
    by_id = dict(zip(plain.ids, plain.features, strict=True))
    changed = [
        (features[:length] != by_id[id_][:length]).any(1).float().mean().item()
        for update in loader.updates(0)
        for batch in update.batches
        for id_, features, length in zip(batch.ids, batch.features, batch.feature_lens.tolist(), strict=True)
    ]
    assert len(changed) == 20
    assert max(changed) <= 0.15 + 1e-6 and (sum(changed) > 0) == (masks > 0)
