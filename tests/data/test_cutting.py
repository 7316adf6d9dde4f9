"""Cuts of a recording, and the way back from a cut in a manifest to its samples."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, SupervisionSegment, load_manifest

from stateless_transducer.audio import read_audio
from stateless_transducer.data.cutting import WholeAtSpeeds, Windows, samples_of
from stateless_transducer.data.manifests import write_recordings


@pytest.mark.parametrize("rate", [16000, 22050])
@pytest.mark.parametrize("cutter", [WholeAtSpeeds((1.0, 0.9, 1.1)), Windows(0.7, 0.3)], ids=["speeds", "windows"])
def test_samples_of_a_listed_cut_are_those_it_was_cut_with(tmp_path, rate, cutter):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, round(1.8 * rate) + 1), rate)
    write_recordings(tmp_path / "r.jsonl.gz", [("a", path, (round(1.8 * rate) + 1) / rate, rate)])
    (recording,) = load_manifest(tmp_path / "r.jsonl.gz")
    said = SupervisionSegment(id="a", recording_id="a", start=0, duration=1.8, text="x")
    made = list(cutter((recording, said), read_audio(path, 16000), 16000))
    assert len(made) == 3
    CutSet.from_cuts(cut for cut, _ in made).to_file(tmp_path / "cuts.jsonl.gz")
    for listed, (cut, wave) in zip(CutSet.from_file(tmp_path / "cuts.jsonl.gz"), made, strict=True):
        assert listed.duration == cut.duration == len(wave) / 16000
        assert np.array_equal(samples_of(listed, 16000), wave)
