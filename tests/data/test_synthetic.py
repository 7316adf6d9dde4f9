from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from stateless_transducer.data.corpora.grammar import sentences
from stateless_transducer.data.corpora.synthetic import SyntheticConfig, _cast, is_complete

pytest.importorskip("espeakng_loader", reason="needs espeak-ng: pip install '.[demo]'")


@pytest.fixture(scope="module")
def cast():
    return _cast(SyntheticConfig())


def _of(cast, split):
    return [speaker for speaker in cast if speaker.split == split]


def test_demo_has_thirty_voices_and_a_hundred_characters(cast):
    train = _of(cast, "train")
    assert len({speaker.voice for speaker in train}) >= 30
    assert len({unit for speaker in train for _, text in speaker.utterances for unit in text.replace(" ", "")}) >= 100


def test_splits_share_no_voice_and_no_sentence(cast):
    variants = {split: {s.voice.variant for s in _of(cast, split)} for split in ("train", "dev", "test")}
    assert not variants["train"] & (variants["dev"] | variants["test"]) and not variants["dev"] & variants["test"]
    said = [text for speaker in cast for _, text in speaker.utterances]
    assert len(said) == len(set(said)) == 82 * 50


def test_every_character_of_the_test_is_trained_often(cast):
    def characters(split):
        return "".join(text for speaker in _of(cast, split) for _, text in speaker.utterances)

    train = characters("train")
    assert all(train.count(unit) >= 20 for unit in set(characters("test") + characters("dev")))


def test_same_seed_same_sentences():
    first, again, other = (sentences(np.random.default_rng(seed), 50) for seed in (1, 1, 2))
    assert first == again != other


def test_same_speech_in_every_process():
    # a voice with audible breath
    program = "from stateless_transducer.data.corpora.espeak import Espeak, Voice\n"
    program += "print(Espeak().say('一二三', Voice('f3', 50, 50, 230)).tolist())"
    heard = []
    for wait_s in (0, 1.01):  # by default, the clock seeds the breath, once a second
        time.sleep(wait_s)
        heard.append(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
    assert heard[0] == heard[1]


def test_more_test_voices_than_there_are_is_explained():
    with pytest.raises(ValueError, match="Test and dev need 204 voices, but there are .* Lower `num_test_speakers`"):
        _cast(SyntheticConfig(num_test_speakers=200))


@pytest.mark.parametrize("content", [b"", b"[]", b"{"])
def test_corpus_with_an_invalid_record_of_its_configuration_is_not_complete(tmp_path, content):
    (tmp_path / "data_aishell").mkdir()
    (tmp_path / "data_aishell" / "synthetic.json").write_bytes(content)
    assert not is_complete(tmp_path, SyntheticConfig())
