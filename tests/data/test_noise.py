"""``transducer prepare musan``, and the steps of preparing, one at a time and interrupted."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch
from lhotse import CutSet, RecordingSet
from sounds import MUSAN_SECONDS

from stateless_transducer.audio import read_audio
from stateless_transducer.cli import main
from stateless_transducer.data import fbank
from stateless_transducer.data.config import WorkConfig
from stateless_transducer.data.cutting import Windows
from stateless_transducer.data.executor import executor
from stateless_transducer.features import FbankConfig
from stateless_transducer.features import fbank as fbank_of


@pytest.fixture(scope="module")
def musan(prepared):
    return prepared / "musan"


def _prepare(musan, data, *flags):
    return main(["prepare", "musan", "--corpus-dir", str(musan), "--data-dir", str(data), "--num-jobs", "1", *flags])


@pytest.fixture(scope="module")
def data(prepared):
    return prepared / "data"


def test_musan_has_icefalls_manifests(data, musan):
    for part in ("music", "speech", "noise"):
        recordings = RecordingSet.from_file(data / "manifests" / f"musan_recordings_{part}.jsonl.gz")
        wanted = {name.split("/")[-1]: seconds for name, seconds in MUSAN_SECONDS.items() if name.startswith(part)}
        assert {recording.id: recording.duration for recording in recordings} == wanted
    assert {path.name for path in data.rglob(".musan*.done")} == {".musan_manifests.done", ".musan.done"}


def test_musan_windows_are_of_ten_seconds_and_longer_than_five(data):
    cuts = CutSet.from_file(data / "fbank" / "musan_cuts.jsonl.gz")
    assert [(cut.id, cut.start, cut.duration) for cut in cuts] == [
        ("music-jamendo-0000-0", 0, 10),
        ("music-jamendo-0000-1", 10, 10),
        ("music-jamendo-0000-2", 20, 6),
        ("speech-us-gov-0000-0", 0, 10),
        ("speech-us-gov-0000-1", 10, 5.5),
        ("noise-free-sound-0000-0", 0, 6),
    ]


def test_musan_features_are_the_front_ends(data, musan):
    for cut in CutSet.from_file(data / "fbank" / "musan_cuts.jsonl.gz"):
        (path,) = musan.rglob(f"{cut.recording_id}.wav")
        start = round(cut.start * 16000)
        samples = read_audio(path, 16000)[start : start + round(cut.duration * 16000)]
        wanted = torch.from_numpy(fbank_of(samples, FbankConfig()))
        # stored in steps of 1/256
        torch.testing.assert_close(torch.from_numpy(cut.load_features()), wanted, rtol=0, atol=1 / 512 + 1e-5)


def test_musan_is_prepared_once(data, musan, capsys):
    assert _prepare(musan, data) == 0
    assert capsys.readouterr().out.count("already there - skipping") == 2


def test_features_without_manifests_say_which_step_is_missing(musan, tmp_path, capsys):
    assert _prepare(musan, tmp_path, "--step", "fbank") == 1
    assert "has no manifests of musan; make them first (`--step manifests`)" in capsys.readouterr().err
    assert main(["prepare", "aishell", "--corpus-dir", str(musan), "--data-dir", str(tmp_path), "--step", "fbank"]) == 1
    assert "has no manifests of aishell; make them first (`--step manifests`)" in capsys.readouterr().err


def test_folder_that_is_not_musans_is_named(tmp_path, capsys):
    (tmp_path / "music").mkdir()
    assert _prepare(tmp_path, tmp_path / "data") == 1
    assert "is not MUSAN's: music/ holds no wav file" in capsys.readouterr().err
    assert _prepare(tmp_path / "no", tmp_path / "data") == 1
    assert "/no: no such folder" in capsys.readouterr().err


def test_broken_file_of_musan_is_listed_and_strict_refuses_it(musan, tmp_path, capsys):
    corpus = tmp_path / "musan"
    shutil.copytree(musan, corpus)
    (corpus / "noise" / "free-sound" / "noise-free-sound-0002.wav").write_text("no sound")
    assert _prepare(corpus, tmp_path / "data", "--step", "manifests") == 0
    assert "1  unreadable audio (noise-free-sound-0002: " in capsys.readouterr().out
    assert "noise-free-sound-0002" in (tmp_path / "data" / "manifests" / "musan_problems.tsv").read_text()
    assert _prepare(corpus, tmp_path / "strict", "--step", "manifests", "--strict", "true") == 1
    assert "`--strict`: 1 problem:" in capsys.readouterr().err
    for path in corpus.rglob("*.wav"):
        path.write_text("no sound")
    for _ in range(2):
        assert _prepare(corpus, tmp_path / "none") == 1
        assert f"No recording of `--corpus-dir` {corpus} can be used" in capsys.readouterr().err


class _OneThenBreak:
    """Does the first pieces of work at once, then dies as a machine does."""

    def __init__(self, pieces):
        self.left, self.parts = pieces, []

    def __call__(self, work, parts):
        for part in parts:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.parts.append(part)
            yield work(part)


def _store(data, folder, execute, cutter=None):
    sources = [
        (recording, None)
        for part in ("music", "speech", "noise")
        for recording in RecordingSet.from_file(data / "manifests" / f"musan_recordings_{part}.jsonl.gz")
    ]
    return fbank.store_features(
        sources,
        cutter or Windows(10.0, 5.0),
        cuts_path=folder / "cuts.jsonl.gz",
        feats_dir=folder / "feats",
        config=FbankConfig(),
        sources_per_part=2,
        execute=execute,
        progress=lambda done, total: None,
    )


def test_interrupted_features_are_gone_on_with(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _store(data, tmp_path, _OneThenBreak(2))
    assert not (tmp_path / "cuts.jsonl.gz").exists()
    rest = _OneThenBreak(9)
    _store(data, tmp_path, rest)
    assert len(rest.parts) == 1, "3 parts, 2 of them done before"
    cuts = list(CutSet.from_file(tmp_path / "cuts.jsonl.gz"))
    assert [cut.id for cut in cuts] == [cut.id for cut in CutSet.from_file(data / "fbank" / "musan_cuts.jsonl.gz")]
    assert all(cut.load_features().shape == (round(cut.duration * 100), 80) for cut in cuts)
    assert {path.suffix for path in (tmp_path / "feats").iterdir()} == {".lca"}


def test_parts_of_other_windows_are_not_gone_on_with(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _store(data, tmp_path, _OneThenBreak(2))
    rest = _OneThenBreak(9)
    _store(data, tmp_path, rest, Windows(3.0, 1.0))
    assert len(rest.parts) == 3
    with gzip.open(tmp_path / "cuts.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == 9 + 2 + 5 + 2 + 1
    assert len(list((tmp_path / "feats").iterdir())) == 3


def _die(code):
    import os

    os._exit(code)


def test_process_that_dies_is_explained(tmp_path):
    with (
        pytest.raises(ValueError, match="One of 2 processes died; if memory was short, lower `num_jobs`. Run"),
        executor(WorkConfig(num_jobs=2), tmp_path) as execute,
    ):
        list(execute(_die, [1]))
