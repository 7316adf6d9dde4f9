"""Checksums of stored features."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lhotse import LilcomChunkyWriter, MonoCut
from lhotse.features import Features

from stateless_transducer.data.stored_features import load_features, with_checksum


@pytest.fixture
def cuts(tmp_path):
    """Two cuts in one archive, the first of two chunks."""
    made = []
    with LilcomChunkyWriter(tmp_path / "feats.lca", tick_power=-8) as writer:
        for id_, num_frames in (("a", 700), ("b", 60)):
            frames = np.random.default_rng(num_frames).normal(size=(num_frames, 80)).astype(np.float32)
            key, seconds = writer.write(id_, frames), num_frames / 100
            features = Features(
                "test", num_frames, 80, 0.01, 16000, 0.0, seconds, writer.name, writer.storage_path, key, id_, 0
            )
            made.append(MonoCut(id_, 0.0, seconds, 0, features=features, custom={"other": 1}))
    return [with_checksum(cut) for cut in made]


def _storage(cut) -> Path:
    return Path(cut.features.storage_path)


def test_any_flipped_bit_is_refused_with_the_cut_and_the_file(cuts):
    content = _storage(cuts[0]).read_bytes()
    first_of_second = int(cuts[1].features.storage_key.split(",")[0])
    expected = [load_features(cut) for cut in cuts]
    generator = random.Random(0)
    for _ in range(100):
        place = generator.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        _storage(cuts[0]).write_bytes(flipped)
        damaged = int(place // 8 >= first_of_second)
        with pytest.raises(ValueError, match=rf"features of {'ab'[damaged]} in .*feats.lca .* their checksum differs"):
            load_features(cuts[damaged])
        np.testing.assert_array_equal(load_features(cuts[1 - damaged]), expected[1 - damaged])


def test_features_without_a_checksum_of_their_own_load(cuts):
    """Those of earlier versions and other programs; and those that another program has stored anew."""
    cut = cuts[1]
    assert cut.custom["other"] == 1
    expected = load_features(cut)
    np.testing.assert_array_equal(load_features(replace(cut, custom=None)), expected)
    with LilcomChunkyWriter(_storage(cut).with_name("copy.lca"), tick_power=-5) as writer:
        key = writer.write("b", expected)
        copy = replace(cut.features, storage_path=writer.storage_path, storage_key=key)
    np.testing.assert_allclose(load_features(replace(cut, features=copy)), expected, atol=0.05)


def test_prepared_cuts_have_checksums(prepared):
    from stateless_transducer.data.index import open_index

    (cut, *_) = open_index(prepared / "data" / "fbank" / "aishell_cuts_dev.jsonl.gz")
    assert cut.custom["features_crc32"].startswith(f"{cut.features.storage_key}:")
    assert load_features(cut).shape == (cut.num_frames, 80)
