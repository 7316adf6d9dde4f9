"""Noise and SpecAugment: how much of them, and that they depend on seed, epoch and utterance alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from lhotse import CutSet, SupervisionSegment
from model_sizes import SUBSAMPLING

from stateless_transducer.data.augment import Augment, stretched
from stateless_transducer.data.batches import TrainingLoader, evaluation_batches, load_index, trainable
from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
from stateless_transducer.features import FbankConfig, fbank
from stateless_transducer.text.tokens import TokenTable


@pytest.fixture(scope="module")
def data(prepared):
    return prepared / "data"


@pytest.fixture(scope="module")
def noise(data):
    return list(CutSet.from_file(data / "fbank" / "musan_cuts.jsonl.gz"))


def _speech(num_frames):
    return torch.randn(num_frames, 80, generator=torch.Generator().manual_seed(num_frames)) - 5


def test_noise_is_in_half_of_the_utterances_at_ten_to_twenty_decibels(noise):
    augment = Augment(1, noise=noise, spec_augment=None)
    speech = _speech(300)
    ratios = []
    for number in range(120):
        mixed = augment(speech, f"u{number}", 0)
        assert mixed.shape == speech.shape and mixed.dtype == torch.float32
        added = mixed.double().exp().mean() - speech.double().exp().mean()
        if not torch.equal(mixed, speech):
            ratios.append(10 * torch.log10(speech.double().exp().mean() / added).item())
    assert 40 < len(ratios) < 80
    assert 9.99 < min(ratios) < 11 and 19 < max(ratios) < 20.01


def test_noise_reaches_to_the_end_of_an_utterance_longer_than_it(noise):
    speech = _speech(2500)
    mixed = next(
        m for n in range(99) if not torch.equal(m := Augment(n, noise=noise, spec_augment=None)(speech, "u", 0), speech)
    )
    assert (mixed > speech).any(1).all()
    added = (mixed.double().exp() - speech.double().exp()).unflatten(0, (25, 100)).mean((1, 2))
    # pieces of other files, at one level
    assert added.max() / added.min() < 1.5


@pytest.mark.parametrize("part", ["noise", "spec_augment"])
def test_augmentation_depends_on_seed_epoch_and_id_alone(noise, part):
    given = {"noise": noise if part == "noise" else (), "spec_augment": None}
    if part == "spec_augment":
        given["spec_augment"] = SpecAugmentConfig(spec_aug_time_warp_factor=10)
    speech = {f"u{n}": _speech(100 + n) for n in range(12)}

    def all_of(seed, epoch, ids):
        augment = Augment(seed, **given)
        random.seed(seed)
        torch.rand(seed)
        return {id_: augment(speech[id_], id_, epoch) for id_ in ids}

    first = all_of(1, 0, list(speech))
    again = all_of(1, 0, reversed(speech))
    assert all(torch.equal(first[id_], again[id_]) for id_ in speech)
    for other in (all_of(2, 0, speech), all_of(1, 1, speech)):
        assert sum(not torch.equal(first[id_], other[id_]) for id_ in speech) > 3
    same = Augment(1, **given)
    assert sum(not torch.equal(same(speech["u1"], f"v{n}", 0), same(speech["u1"], f"w{n}", 0)) for n in range(12)) > 3


@pytest.mark.parametrize("factor", [0.8, 0.95, 1.0, 1.1, 1.25])
def test_stretched_features_are_those_of_the_stretched_frequency(factor):
    def peak(hertz):
        tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000)
        return fbank(tone.astype(np.float32), FbankConfig())[20:-20].mean(0)

    for hertz in (500, 1000, 2500):
        found = stretched(peak(hertz)[None], factor)[0]
        assert abs(int(found.argmax()) - int(peak(hertz * factor).argmax())) <= 1
    np.testing.assert_allclose(stretched(peak(1000)[None], 1.0)[0], peak(1000), rtol=1e-5)


def test_vocal_tracts_differ_from_utterance_to_utterance_and_epoch_to_epoch():
    augment, speech = Augment(1, vtlp_range=0.2), _speech(50)
    found = {(id_, epoch): augment(speech, id_, epoch) for id_ in ("a", "b") for epoch in (0, 1)}
    assert torch.equal(found["a", 0], augment(speech, "a", 0))
    pairs = [(x, y) for x in found for y in found if x < y]
    assert not any(torch.equal(found[x], found[y]) for x, y in pairs)


def test_level_and_timbre_change_by_no_more_than_they_may():
    speech = _speech(50)
    decibels = 10 / np.log(10)
    for options, is_level in (({"gain_range_db": 10}, True), ({"equalizer_range_db": 6}, False)):
        augment = Augment(1, **options)
        changes = [(augment(speech, f"u{n}", 0) - speech).numpy() * decibels for n in range(40)]
        # the same on every frame
        assert max(np.ptp(change, axis=0).max() for change in changes) < 1e-4
        most = max(np.abs(change).max() for change in changes)
        (limit,) = options.values()
        assert 0.6 * limit < most <= limit + 1e-4
        assert (max(np.ptp(change[0]) for change in changes) < 1e-4) == is_level
        # no step from one bin to the next
        assert max(np.abs(np.diff(change[0])).max() for change in changes) < 0.1 * limit


def test_digital_silence_has_no_level():
    silence = fbank(np.zeros(1600, np.float32), FbankConfig())
    speech = torch.cat([_speech(5), torch.from_numpy(np.asarray(silence))])
    augment = Augment(1, gain_range_db=40)
    for n in range(20):
        changed = augment(speech, f"u{n}", 0)
        assert torch.equal(changed[5:], speech[5:])
        assert not torch.equal(changed[:5], speech[:5])
        assert changed.min() >= speech[5:].min()


def test_augmentation_leaves_the_generators_of_training_alone(noise):
    def draws():
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        yield from (random.random(), np.random.random(), torch.rand(()).item())
        Augment(1, noise=noise, spec_augment=SpecAugmentConfig(spec_aug_probability=1.0))(_speech(300), "u", 0)
        yield from (random.random(), np.random.random(), torch.rand(()).item())

    def undisturbed():
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        for _ in range(2):
            yield from (random.random(), np.random.random(), torch.rand(()).item())

    assert list(draws()) == list(undisturbed())


def _config(data, **changes):
    sizes = {"max_duration": 3.0, "num_buckets": 2, "min_utterance_s": 0.5, "num_workers": 0}
    return DataConfig(manifest_dir=data / "fbank", **{**sizes, **changes})


def _epochs(data, config, epochs=(0, 1)):
    tokens = TokenTable.read(data / "lang_char")
    usable = trainable(load_index(config.manifest_dir, "aishell", "train"), tokens, config, SUBSAMPLING)
    loader = TrainingLoader(usable, tokens, config, seed=7)
    for epoch in epochs:
        batches = (batch for update in loader.updates(epoch) for batch in update.batches)
        yield {id_: row[:n] for b in batches for id_, row, n in zip(b.ids, b.features, b.feature_lens, strict=True)}


def test_epochs_repeat_whatever_loads_them(data):
    """Other processes, other batches, and an epoch begun with: the same features of each utterance."""
    first, second = _epochs(data, _config(data))
    assert len(first) == 6 and any(not torch.equal(first[id_], second[id_]) for id_ in first)
    in_processes = list(_epochs(data, _config(data, num_workers=2)))
    (resumed,) = _epochs(data, _config(data, max_duration=9.0), epochs=[1])
    for id_ in first:
        assert torch.equal(in_processes[0][id_], first[id_]) and torch.equal(in_processes[1][id_], second[id_])
        assert torch.equal(resumed[id_], second[id_])


def test_musan_can_be_left_out_or_missing(data, tmp_path):
    plain = _config(data, enable_spec_aug=False, enable_musan=False)
    (stored,) = _epochs(data, plain, epochs=[0])
    (mixed,) = _epochs(data, _config(data, enable_spec_aug=False), epochs=[0])
    changed = {id_ for id_ in stored if not torch.equal(stored[id_], mixed[id_])}
    assert 0 < len(changed) < 6, "with this seed"
    (tmp_path / "fbank").mkdir()
    for path in (data / "fbank").glob("aishell_cuts_*"):
        (tmp_path / "fbank" / path.name).symlink_to(path)
    (tmp_path / "lang_char").symlink_to(data / "lang_char")
    (without,) = _epochs(tmp_path, _config(tmp_path, enable_spec_aug=False), epochs=[0])
    assert all(torch.equal(stored[id_], without[id_]) for id_ in stored)


def test_features_on_the_fly_are_the_stored_ones_before_rounding(data):
    plain = {"enable_spec_aug": False, "enable_musan": False}
    (stored,) = _epochs(data, _config(data, **plain), epochs=[0])
    (computed,) = _epochs(data, _config(data, **plain, on_the_fly_feats=True), epochs=[0])
    assert {id_[16:] for id_ in computed} == {"", "_sp0.9", "_sp1.1"} and computed.keys() == stored.keys()
    for id_, features in computed.items():
        # stored in steps of 1/256
        torch.testing.assert_close(features, stored[id_], rtol=0, atol=1 / 512 + 1e-5)
        assert not torch.equal(features, stored[id_])


def test_noise_is_mixed_into_features_on_the_fly(data):
    plain = {"enable_spec_aug": False, "on_the_fly_feats": True}
    (with_noise,) = _epochs(data, _config(data, **plain), epochs=[0])
    (stored,) = _epochs(data, _config(data, enable_spec_aug=False), epochs=[0])
    for id_, features in with_noise.items():
        torch.testing.assert_close(features, stored[id_], rtol=0, atol=0.01)


def test_evaluation_on_the_fly_is_plain(data):
    tokens, config = TokenTable.read(data / "lang_char"), _config(data, on_the_fly_feats=True)
    (batch,) = evaluation_batches(load_index(config.manifest_dir, "aishell", "test"), tokens, config)
    (cut,) = load_index(config.manifest_dir, "aishell", "test")
    torch.testing.assert_close(batch.features[0], torch.from_numpy(cut.load_features()), rtol=0, atol=1 / 512 + 1e-5)
    assert isinstance(cut.supervisions[0], SupervisionSegment) and batch.texts == ("后天 很 好",)
