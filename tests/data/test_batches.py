from __future__ import annotations

import pytest
import torch
from lhotse import CutSet, MonoCut, NumpyFilesWriter, SupervisionSegment
from lhotse.features import Features

from stateless_transducer.data.batches import evaluation_loader, make_batch, num_cuts, trainable, training_loader
from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["abcdefgh"], "char")
PLAIN = DataConfig(num_workers=0, max_duration=8.0, num_buckets=2, drop_last=False, min_utterance_s=0.5)


def _cut(folder, id_, seconds, text):
    frames = torch.randn(round(seconds * 100), 80).numpy()
    writer = NumpyFilesWriter(folder)
    features = Features(
        type="test",
        num_frames=len(frames),
        num_features=80,
        frame_shift=0.01,
        sampling_rate=16000,
        start=0.0,
        duration=seconds,
        storage_type=writer.name,
        storage_path=writer.storage_path,
        storage_key=writer.write(id_, frames),
        recording_id=id_,
        channels=0,
    )
    said = SupervisionSegment(id=id_, recording_id=id_, start=0.0, duration=seconds, text=text)
    return MonoCut(id=id_, start=0.0, duration=seconds, channel=0, supervisions=[said], features=features)


@pytest.fixture
def cuts(tmp_path):
    made = [_cut(tmp_path, f"u{n:02d}", 1.0 + 0.1 * n, "abc"[: 1 + n % 3]) for n in range(20)]
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts(made).to_file(path)
    return CutSet.from_jsonl_lazy(path)


def test_batch_is_padded_with_silence_and_lengths_tell_the_truth():
    features = [torch.ones(12, 80), torch.ones(9, 80)]
    batch = make_batch(features, ("ab", "zé"), ("u1", "u2"), TOKENS)
    assert batch.features.shape == (2, 12, 80) and batch.feature_lens.tolist() == [12, 9]
    assert (batch.features[1, 9:] == PADDING_VALUE).all() and (batch.features[1, :9] == 1).all()
    assert batch.tokens.tolist() == [[3, 4], [TOKENS.unknown_id] * 2] and batch.token_lens.tolist() == [2, 2]
    assert batch.seconds == pytest.approx(0.21)


def test_evaluation_sees_every_utterance_once_in_order(cuts):
    batches = list(evaluation_loader(cuts, TOKENS, PLAIN))
    ids = [id_ for batch in batches for id_ in sorted(batch.ids)]
    assert ids == [f"u{n:02d}" for n in range(20)] and num_cuts(cuts) == 20
    assert all(batch.seconds <= 8.0 for batch in batches)


def test_two_ranks_share_an_epoch(cuts):
    seen = []
    for rank in range(2):
        usable = trainable(cuts, TOKENS, PLAIN)
        loader, sampler = training_loader(usable, TOKENS, PLAIN, seed=1, rank=rank, world_size=2)
        sampler.set_epoch(0)
        seen.append([batch.ids for batch in loader])
    assert len(seen[0]) == len(seen[1])
    assert {id_ for rank in seen for ids in rank for id_ in ids} == {f"u{n:02d}" for n in range(20)}


def test_epochs_differ_in_order_and_repeat_by_seed(cuts):
    def epoch(number):
        usable = trainable(cuts, TOKENS, PLAIN)
        loader, sampler = training_loader(usable, TOKENS, PLAIN, seed=1, rank=0, world_size=1)
        sampler.set_epoch(number)
        return [batch.ids for batch in loader]

    assert epoch(0) == epoch(0) != epoch(1)


def test_unusable_utterances_are_counted_by_reason(tmp_path):
    made = [
        _cut(tmp_path, "good", 1.0, "abc"),
        _cut(tmp_path, "fine", 1.0, "abc"),
        _cut(tmp_path, "short", 0.4, "a"),
        _cut(tmp_path, "long", 13.0, "a"),
        _cut(tmp_path, "dense", 0.5, "abcdefgh" * 3),
    ]
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts(made).to_file(path)
    usable = trainable(CutSet.from_jsonl_lazy(path), TOKENS, PLAIN)
    assert usable.left_out == {
        "shorter than 0.5 s": 1,
        "longer than 12 s": 1,
        "with as many tokens as encoder frames or more": 1,
    }
    assert [cut.id for cut in usable.cuts] == ["good", "fine"] and usable.seconds == 2.0


def test_nothing_usable_is_explained(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([_cut(tmp_path, "short", 0.4, "a")]).to_file(path)
    with pytest.raises(ValueError, match="0 utterances are left for training, .*: 1 shorter than 0.5 s"):
        trainable(CutSet.from_jsonl_lazy(path), TOKENS, PLAIN)


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
    loader, _ = training_loader(trainable(cuts, TOKENS, config), TOKENS, config, seed=1, rank=0, world_size=1)
    plain = next(iter(evaluation_loader(cuts, TOKENS, DataConfig(num_workers=0, max_duration=60.0))))
    by_id = dict(zip(plain.ids, plain.features, strict=True))
    changed = [
        (features[:length] != by_id[id_][:length]).any(1).float().mean().item()
        for batch in loader
        for id_, features, length in zip(batch.ids, batch.features, batch.feature_lens.tolist(), strict=True)
    ]
    assert len(changed) == 20
    assert max(changed) <= 0.15 + 1e-6 and (sum(changed) > 0) == (masks > 0)
