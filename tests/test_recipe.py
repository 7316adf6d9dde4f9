"""``egs/aishell/ASR/prepare.sh`` as the tutorial calls it, on a corpus of noise."""

from __future__ import annotations

import os
import re

import pytest
from lhotse import CutSet
from recipe_folder import PREPARE, Folder
from sounds import write_aishell, write_musan

from stateless_transducer.data.manifests import read_texts
from stateless_transducer.text.tokens import TokenTable, tidied, write_char_lang

LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(prepare.sh:(\d+):main\) (.*)$", re.MULTILINE)


def _says(ran):
    return [text for _, text in LINE.findall(ran.stdout)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = Folder(tmp_path_factory.mktemp("ASR"))
    write_aishell(made.path / "download" / "aishell")
    write_musan(made.path / "download" / "musan")
    return made


@pytest.fixture(scope="module")
def runs(folder):
    """The tutorial's two lines, and the rest with what is done already."""
    first = folder.run(PREPARE, "--stop-stage", "4", "--nj", "1")
    lang = folder.run(os.path.relpath(PREPARE, folder.path), "--stage", "6", "--stop_stage", "6")
    return [first, lang, folder.run(PREPARE, "--stage", "5")]


def test_stages_are_announced_as_icefalls(folder, runs):
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert _says(runs[0]) == [
        f"dl_dir: {folder.path}/download",
        "stage 0: Download data",
        "Stage 1: Prepare aishell manifest",
        "Stage 2: Prepare musan manifest",
        "Stage 3: Compute fbank for aishell",
        "Stage 4: Compute fbank for musan",
    ]
    assert _says(runs[1])[1:] == ["Stage 6: Prepare char based lang"]
    lines = PREPARE.read_text().splitlines()
    for number, text in LINE.findall(runs[0].stdout)[1:]:
        assert text in lines[int(number) - 1]


def test_both_folders_of_the_tutorial_are_there(folder, runs):
    fbank = folder.path / "data" / "fbank"
    sizes = {
        split: len(CutSet.from_file(fbank / f"aishell_cuts_{split}.jsonl.gz")) for split in ("train", "dev", "test")
    }
    assert sizes == {"train": 6, "dev": 1, "test": 1}, "training utterances at three speeds"
    assert len(CutSet.from_file(fbank / "musan_cuts.jsonl.gz")) == 6
    assert {path.name for path in folder.path.rglob(".*.done")} == {
        ".aishell_manifests.done",
        ".musan_manifests.done",
        ".aishell.done",
        ".musan.done",
    }


def test_lang_is_of_all_transcripts(folder, runs, tmp_path):
    transcript = folder.path / "download" / "aishell" / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    write_char_lang(tmp_path, [line.split(" ", 1)[1] for line in transcript.read_text(encoding="utf-8").splitlines()])
    for path in tmp_path.iterdir():
        assert (folder.path / "data" / "lang_char" / path.name).read_bytes() == path.read_bytes()


def test_second_run_skips_and_says_what_is_not_needed(runs):
    assert "lang_char/tokens.txt: already there - skipping" in runs[2].stdout
    said = _says(runs[2])
    assert "Stage 5: Phone based lang: not needed, the model's tokens are characters" in said
    assert sum(line.startswith(("Stage 8: not needed", "Stage 11: not needed")) for line in said) == 2


def test_bytes_of_the_training_texts_spell_them(folder, runs):
    """Stage 7 of the third run; characters of other texts are spelled as well if their bytes are known."""
    table = TokenTable.read(folder.path / "data" / "lang_bbpe_500")
    texts = read_texts(folder.path / "data" / "manifests", "aishell", "train")
    assert table.unit == "bbpe" and all(table.decode(table.encode(text)) == tidied(text) for text in texts)


def test_options_reach_the_commands(tmp_path):
    flags = "--dl_dir /d --mirror http://m --checksum false --perturb-speed false --nj 3 --stop-stage 6".split()
    ran = Folder(tmp_path, does_work=False).run(PREPARE, *flags)
    assert [line for line in ran.stdout.splitlines() if line.startswith("transducer")] == [
        "transducer prepare download aishell --dl-dir /d --checksum false --mirror http://m",
        "transducer prepare download musan --dl-dir /d --checksum false --mirror http://m",
        "transducer prepare aishell --corpus-dir /d/aishell --num-jobs 3 --step manifests",
        "transducer prepare musan --corpus-dir /d/musan --num-jobs 3 --step manifests",
        "transducer prepare aishell --corpus-dir /d/aishell --num-jobs 3 --step fbank --perturb-speed false",
        "transducer prepare musan --corpus-dir /d/musan --num-jobs 3 --step fbank",
        "transducer prepare aishell --corpus-dir /d/aishell --num-jobs 3 --step lang",
    ]


def test_corpus_that_is_there_is_not_downloaded(tmp_path):
    other = Folder(tmp_path, does_work=False)
    (tmp_path / "download" / "aishell" / "data_aishell" / "wav" / "train").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "download" / "musan").symlink_to(tmp_path / "elsewhere")
    assert "transducer" not in other.run(PREPARE, "--stop-stage", "0").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "3"], "unknown option --stages; there are: --stage --stop-stage"),
        (["--stage=3"], "unknown option --stage=3; there are: --stage --stop-stage"),
        (["--stage"], "--stage needs a value"),
        (["--stop_stage", "last"], "--stop-stage must be a number, but is 'last'"),
    ],
)
def test_wrong_option_is_named(folder, arguments, message):
    ran = folder.run(PREPARE, *arguments)
    assert ran.returncode == 2 and ran.stderr.startswith(f"prepare.sh: error: {message}") and not ran.stdout


def test_failing_stage_stops_the_script(tmp_path):
    other = Folder(tmp_path, does_work=False)
    (tmp_path / "bin" / "transducer").write_text("#!/bin/sh\nexit 1\n")
    ran = other.run(PREPARE, "--stage", "1", "--stop-stage", "3")
    assert ran.returncode == 1
    assert _says(ran)[1:] == ["Stage 1: Prepare aishell manifest"]


def test_help_lists_the_options(folder):
    ran = folder.run(PREPARE, "--help")
    assert ran.returncode == 0
    assert ran.stdout.count("\n  --") == 7 and "#" not in ran.stdout and "set -e" not in ran.stdout
