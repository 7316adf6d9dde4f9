"""Shards as lhotse writes them, in one folder or several."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from lhotse import CutSet
from small_corpus import TOKENS, make_cut, write_small_corpus

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.data.batches import cuts_path, load_index
from stateless_transducer.data.index import open_index


@pytest.fixture
def cuts(tmp_path):
    return CutSet.from_cuts(make_cut(tmp_path, f"u{n}", 1.0 + n / 10, "ab"[: n % 3]) for n in range(7)).to_eager()


def _to_shar(cuts, folder, shard_size, kind="numpy"):
    folder.mkdir()
    cuts.to_shar(folder, fields={"features": kind}, shard_size=shard_size)


@pytest.mark.parametrize("kind", ["lilcom", "numpy"])
def test_cuts_of_shards_are_read_at_any_place(cuts, tmp_path, kind):
    # lhotse's names of files are the ids, whatever is in them
    cuts = CutSet.from_cuts(cut.with_id(f"part/{cut.id}.x") for cut in cuts)
    _to_shar(cuts, tmp_path / "shar", 3, kind)
    index = open_index(tmp_path / "shar")
    assert len(index) == 7 and index.seconds.tolist() == pytest.approx([1.0 + n / 10 for n in range(7)])
    assert index.num_tokens(TOKENS).tolist() == [n % 3 for n in (0, 1, 2, 0, 1, 2, 0)]
    for number in (6, 0, 4):
        found, wanted = index.cut(number), cuts[f"part/u{number}.x"]
        assert found.id == wanted.id and found.supervisions[0].text == wanted.supervisions[0].text
        # lilcom's own writer rounds more than ours
        np.testing.assert_allclose(found.load_features(), wanted.load_features(), atol=0.02 if kind == "lilcom" else 0)


def test_shards_of_several_folders_are_one_corpus(cuts, tmp_path):
    for name, chosen in (("disk1", cuts.subset(first=4)), ("disk2", cuts.subset(last=3))):
        _to_shar(chosen, tmp_path / name, 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "aishell_shar_train.txt").write_text("../disk1\n../disk2\n")
    index = load_index(tmp_path / "data", "aishell", "train")
    assert [cut.id for cut in index] == [f"u{n}" for n in range(7)]
    np.testing.assert_array_equal(index.cut(5).load_features(), cuts["u5"].load_features())


def test_training_reads_shards(tmp_path):
    """The same losses as with the manifest that they were made from."""
    torch.manual_seed(1)
    flags = ["train", *write_small_corpus(tmp_path), "--max-duration", "6", "--num-epochs", "1"]
    assert main([*flags, "--exp-dir", str(tmp_path / "a")]) == 0
    for split in ("train", "dev"):
        path = tmp_path / f"aishell_cuts_{split}.jsonl.gz"
        _to_shar(CutSet.from_file(path), tmp_path / f"aishell_shar_{split}", 10)
        path.unlink()
        shutil.rmtree(tmp_path / f"{path.name}.index")
    shutil.rmtree(tmp_path / "feats")
    assert main([*flags, "--exp-dir", str(tmp_path / "b")]) == 0
    a, b = (load_checkpoint(tmp_path / name / "epoch-0.pt").provenance for name in "ab")
    assert a["train_loss"] == b["train_loss"] and a["valid_loss"] == b["valid_loss"]


def test_faults_of_shards_are_named(cuts, tmp_path):
    _to_shar(cuts, tmp_path / "shar", 4)
    features = tmp_path / "shar" / "features.000001.tar"
    shutil.copy(tmp_path / "shar" / "features.000000.tar", features)
    with pytest.raises(ValueError, match="features.000001.tar: has u0.npy where the features of u4 should be"):
        open_index(tmp_path / "shar")
    features.unlink()
    with pytest.raises(ValueError, match="features.000001.tar is missing"):
        open_index(tmp_path / "shar")
    (tmp_path / "list.txt").write_text("nowhere\n")
    with pytest.raises(ValueError, match=r"nowhere \(named in .*list.txt\) holds no cuts"):
        open_index(tmp_path / "list.txt")
    assert cuts_path(tmp_path, "aishell", "train") is None
