"""Manifests that can be opened at any place."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import random

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.features import Features

from stateless_transducer.data.augment import training_augment
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.corpora.id_lines import read_id_lines
from stateless_transducer.data.index import JoinedIndex, open_index
from stateless_transducer.data.manifests import read_manifest
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["abc"], "char")


def _cut(number):
    id_, seconds = f"u{number}", 1.0 + number
    features = Features("test", round(seconds * 100) + 1, 80, 0.01, 16000, 0.0, seconds, "none", ".", id_, id_, 0)
    said = SupervisionSegment(id=id_, recording_id=id_, start=0.0, duration=seconds, text="ä" * number)
    return MonoCut(id=id_, start=0.0, duration=seconds, channel=0, supervisions=[said], features=features)


@pytest.fixture(params=[".jsonl.gz", ".jsonl"])
def manifest(tmp_path, request):
    path = tmp_path / f"cuts{request.param}"
    CutSet.from_cuts([_cut(number) for number in range(5)]).to_file(path)
    return path


def test_cuts_are_those_of_the_manifest_in_any_order(manifest):
    index = open_index(manifest)
    assert len(index) == 5 and [cut.id for cut in index] == [f"u{n}" for n in range(5)]
    assert index.cut(3) == _cut(3) and index.cut(1) == _cut(1)
    assert index.seconds.tolist() == [1, 2, 3, 4, 5] and index.num_frames.tolist() == [101, 201, 301, 401, 501]
    assert index.num_tokens(TOKENS).tolist() == index.num_unknown(TOKENS).tolist() == [0, 1, 2, 3, 4]


def test_joined_indexes_number_on(manifest, tmp_path):
    first = open_index(manifest)
    CutSet.from_cuts([_cut(number) for number in (7, 9)]).to_file(tmp_path / "other.jsonl")
    joined = JoinedIndex(first, open_index(tmp_path / "other.jsonl"))
    assert [joined.cut(number).id for number in (0, 4, 5, 6)] == ["u0", "u4", "u7", "u9"]


def test_index_is_made_once_and_again_for_another_manifest(manifest):
    open_index(manifest)
    made = manifest.with_name(f"{manifest.name}.index") / "cuts.jsonl"
    before = made.stat().st_mtime_ns
    assert open_index(manifest).num_tokens(TOKENS).tolist() == [0, 1, 2, 3, 4]
    assert made.stat().st_mtime_ns == before
    manifest.unlink()
    CutSet.from_cuts([_cut(number) for number in (2, 4)]).to_file(manifest)
    index = open_index(manifest)
    assert [cut.id for cut in index] == ["u2", "u4"] and index.num_tokens(TOKENS).tolist() == [2, 4]


def test_manifest_of_the_same_size_is_known_by_its_time(tmp_path):
    manifest = tmp_path / "cuts.jsonl"
    CutSet.from_cuts([_cut(1)]).to_file(manifest)
    assert open_index(manifest).cut(0).supervisions[0].text == "ä"
    before = manifest.stat()
    manifest.write_text(manifest.read_text().replace("\\u00e4", "\\u00f6").replace("ä", "ö"))
    os.utime(manifest, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert manifest.stat().st_size == before.st_size and open_index(manifest).cut(0).supervisions[0].text == "ö"


def test_tokens_are_counted_by_each_table(manifest):
    index = open_index(manifest)
    words = build_token_table(["ä"], "word")
    assert index.num_tokens(words).tolist() == [0, 1, 1, 1, 1] and index.num_unknown(words).tolist() == [0, 0, 1, 1, 1]
    assert index.num_tokens(TOKENS).tolist() == [0, 1, 2, 3, 4]


def test_half_an_index_is_made_again(manifest):
    open_index(manifest)
    folder = manifest.with_name(f"{manifest.name}.index")
    (folder / "arrays.npz").write_bytes((folder / "arrays.npz").read_bytes()[:100])
    assert len(open_index(manifest)) == 5


def test_index_goes_to_other_processes(manifest):
    index = open_index(manifest)
    index.cut(0)
    assert pickle.loads(pickle.dumps(index)).cut(4) == _cut(4)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_folder_that_cannot_be_written_is_no_obstacle(manifest, tmp_path, monkeypatch, number):
    """The permission is taken away from the index: root may write into any folder."""
    import stateless_transducer.data.index as module

    real = module._build

    def refusing(source, folder, stamp):
        if folder.parent == manifest.parent:
            raise OSError(number, os.strerror(number), folder)
        real(source, folder, stamp)

    monkeypatch.setattr(module, "_build", refusing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    assert len(open_index(manifest)) == 5
    (private,) = (tmp_path / "elsewhere").iterdir()
    assert private.stat().st_mode & 0o777 == 0o700 and len(list(private.iterdir())) == 1
    # others could have written there
    private.chmod(0o777)
    with pytest.raises(ValueError, match="index can be written neither"):
        open_index(manifest)


def test_any_flipped_bit_in_an_index_is_refused_or_mended(manifest):
    index = open_index(manifest)
    expected = [index.cut(number) for number in range(5)], index.num_tokens(TOKENS).tolist()
    folder, generator = index.folder, random.Random(0)
    (counts,) = folder.glob("counts-*")
    for name, outcomes in (("cuts.jsonl", {"refused"}), ("arrays.npz", {"mended"}), (counts.name, {"mended"})):
        content = (folder / name).read_bytes()
        for _ in range(25):
            place = generator.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            (folder / name).write_bytes(flipped)
            index = open_index(manifest)
            try:
                found = [index.cut(number) for number in range(5)], index.num_tokens(TOKENS).tolist()
            except ValueError as err:
                assert "cuts.jsonl is damaged. Remove the folder" in str(err) and "refused" in outcomes
            else:
                assert found == expected and "mended" in outcomes, (name, place)
            (folder / name).write_bytes(content)


def test_line_that_is_no_cut_is_named(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(_cut(1).to_dict()).encode() + b'\n{"a": 1}\n'))
    with pytest.raises(ValueError, match=r"cuts.jsonl.gz:2: not a cut of lhotse's"):
        open_index(path)


def test_damaged_manifest_is_refused_by_name(tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([_cut(number) for number in range(5)]).to_file(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cuts.jsonl.gz is damaged \(.*\)\. Copy it again"):
        open_index(path)


def test_cut_without_supervision_is_named_with_its_line(tmp_path):
    silent = _cut(1)
    silent.supervisions = []
    path = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts([_cut(0), silent]).to_file(path)
    with pytest.raises(ValueError, match="cuts.jsonl.gz:2: cut u1 has no supervision"):
        open_index(path)


def test_pipes_are_refused_at_once(tmp_path):
    """Opening a pipe waits for a writer."""
    for name in ("cuts.jsonl", "cuts.jsonl.gz", "musan_cuts.jsonl.gz", "text"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "shar").mkdir()
    os.mkfifo(tmp_path / "shar" / "cuts.000000.jsonl.gz")
    (tmp_path / "shar" / "features.000000.tar").touch()
    readers = (
        *((open_index, name) for name in ("cuts.jsonl", "cuts.jsonl.gz", "shar")),
        (read_manifest, "cuts.jsonl.gz"),
        (read_id_lines, "text"),
        (lambda folder: training_augment(DataConfig(manifest_dir=folder), 0, 0.01), ""),
    )
    for read, name in readers:
        with pytest.raises(ValueError, match="is a pipe or a device, not a file"):
            read(tmp_path / name)
