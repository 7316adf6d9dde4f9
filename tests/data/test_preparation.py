"""The steps of ``transducer prepare aishell``, one at a time."""

from __future__ import annotations

import pytest
from lhotse import CutSet
from sounds import write_aishell, write_musan

from stateless_transducer.cli import main
from stateless_transducer.data.manifests import read_texts
from stateless_transducer.text.tokens import TokenTable


@pytest.fixture
def prepare(tmp_path):
    corpus = write_aishell(tmp_path / "corpus")

    def run(*flags):
        folders = ["--corpus-dir", str(corpus), "--data-dir", str(tmp_path / "data")]
        return main(["prepare", "aishell", *folders, "--num-jobs", "1", *flags])

    return run


def _written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lca"}


MANIFESTS = {f"manifests/aishell_{kind}_{split}.jsonl.gz"
             for kind in ("recordings", "supervisions") for split in ("train", "dev", "test")} | {
                 "manifests/.aishell_manifests.done", "manifests/aishell_problems.tsv"}  # fmt: skip
FBANK = {f"fbank/aishell_cuts_{split}.jsonl.gz" for split in ("train", "dev", "test")} | {"fbank/.aishell.done"}
LANG = {f"lang_char/{name}" for name in ("text", "transcript_words.txt", "words.txt", "lexicon.txt",
                                         "lexicon_disambig.txt", "tokens.txt", "lang.json")}  # fmt: skip


def test_each_step_writes_its_files_and_no_others(prepare, tmp_path, capsys):
    """Then all steps with other speeds: only the training features are made anew."""
    data = tmp_path / "data"
    assert prepare("--step", "lang") == 0
    assert _written(data) == LANG
    assert prepare("--step", "manifests") == 0
    assert _written(data) == LANG | MANIFESTS
    assert prepare("--step", "fbank", "--perturb-speed", "false") == 0
    assert _written(data) == LANG | MANIFESTS | FBANK
    assert TokenTable.read(data / "lang_char").symbols[3:] == tuple("今天气很好明下雨不后")
    cuts = data / "fbank" / "aishell_cuts_train.jsonl.gz"
    assert [cut.id[-4:] for cut in CutSet.from_file(cuts)] == ["0121", "0122"]
    capsys.readouterr()
    assert prepare() == 0
    printed = capsys.readouterr().out
    assert printed.count("already there - skipping") == 4, "manifests, dev, test, tokens"
    assert f"{cuts}: made anew, for the speeds have changed" in printed and f"{cuts}: done" in printed
    assert [cut.id[16:] for cut in CutSet.from_file(cuts)] == ["", "_sp0.9", "_sp1.1"] * 2


def test_accent_is_part_of_its_letter_in_texts_and_tokens(prepare, tmp_path):
    transcript = tmp_path / "corpus" / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    decomposed = transcript.read_text(encoding="utf-8").replace("明天", "cafe\u0301")
    transcript.write_text(decomposed, encoding="utf-8")
    for step in ("manifests", "lang"):
        assert prepare("--step", step) == 0
    data = tmp_path / "data"
    assert "\u0301" not in TokenTable.read(data / "lang_char").symbols
    texts = [text for split in ("train", "dev", "test") for text in read_texts(data / "manifests", "aishell", split)]
    assert any("caf\u00e9" in text for text in texts) and not any("\u0301" in text for text in texts)


def test_changed_texts_make_the_tokens_anew(prepare, tmp_path, capsys):
    assert prepare("--step", "lang") == 0
    transcript = tmp_path / "corpus" / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.write_text(transcript.read_text(encoding="utf-8").replace("明天", "今天"), encoding="utf-8")
    capsys.readouterr()
    assert prepare("--step", "lang") == 0
    assert "lang_char: 12 tokens" in capsys.readouterr().out
    assert prepare("--step", "lang") == 0
    assert "already there - skipping" in capsys.readouterr().out


def test_folder_of_icefall_is_used_as_it_is(prepare, tmp_path, capsys):
    """icefall's flags have the same names and are empty."""
    assert prepare() == 0
    data = tmp_path / "data"
    stamps = [data / "manifests" / ".aishell_manifests.done", data / "fbank" / ".aishell.done"]
    for stamp in stamps:
        stamp.write_bytes(b"")
    before = {path: path.read_bytes() for path in sorted(data.rglob("*.gz"))}
    # a split that icefall has not computed yet
    missing = data / "fbank" / "aishell_cuts_dev.jsonl.gz"
    missing.unlink()
    capsys.readouterr()
    assert prepare() == 0
    printed = capsys.readouterr().out
    assert f"made by another program - skipping (remove {stamps[0]} to make them again)" in printed
    assert f"{missing}: done" in printed and printed.count("already there - skipping") == 3
    after = {path: path.read_bytes() for path in sorted(data.rglob("*.gz"))}
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path != missing)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"when": 1}', b"\xff"])
def test_stamp_of_another_program_without_manifests_counts_for_nothing(prepare, tmp_path, content):
    stamp = tmp_path / "data" / "manifests" / ".aishell_manifests.done"
    stamp.parent.mkdir(parents=True)
    stamp.write_bytes(content)
    (tmp_path / "data" / "fbank").mkdir()
    (tmp_path / "data" / "fbank" / ".aishell.done").write_bytes(content)
    assert prepare() == 0
    assert _written(tmp_path / "data") == LANG | MANIFESTS | FBANK
    assert prepare() == 0


def test_musan_of_icefall_is_used_as_it_is(tmp_path, capsys):
    words = ["--corpus-dir", str(write_musan(tmp_path / "musan")), "--data-dir", str(tmp_path / "data")]
    stamp = tmp_path / "data" / "manifests" / ".musan_manifests.done"
    stamp.parent.mkdir(parents=True)
    stamp.touch()
    assert main(["prepare", "musan", "--num-jobs", "1", *words]) == 0
    stamp.write_bytes(b"")
    capsys.readouterr()
    assert main(["prepare", "musan", "--num-jobs", "1", *words]) == 0
    printed = capsys.readouterr().out
    assert "made by another program - skipping" in printed and "musan_cuts.jsonl.gz: already there" in printed


def test_truncated_manifest_is_refused_by_name(prepare, tmp_path, capsys):
    assert prepare("--step", "manifests") == 0
    path = tmp_path / "data" / "manifests" / "aishell_supervisions_dev.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    assert prepare("--step", "fbank") == 1
    complained = capsys.readouterr().err
    assert f"{path} cannot be read as a manifest" in complained and "Traceback" not in complained
