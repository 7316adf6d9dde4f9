"""Kaldi's data folders as a source of `prepare table`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest

from stateless_transducer.cli import main
from stateless_transducer.data.corpora.kaldi import kaldi_folders, read_kaldi


def _write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_scp", ".scp")).write_text(content)
    return folder


def test_a_folder_without_segments(tmp_path):
    folder = _write(tmp_path / "lists", wav_scp="a\tsounds/a.wav\nb /far/b.flac\n", text="b two  words\na one\n")
    utterances, problems = read_kaldi(folder, audio_dir=tmp_path)
    assert not problems
    assert [(u.id, u.text, u.speaker, u.split) for u in utterances] == [
        ("b", "two words", "unknown", "train"),
        ("a", "one", "unknown", "train"),
    ]
    assert [u.path for u in utterances] == [Path("/far/b.flac"), tmp_path / "sounds/a.wav"]
    assert all((u.start_s, u.duration_s) == (0.0, math.inf) for u in utterances)
    # as with Kaldi: relative to where the command runs
    assert read_kaldi(folder)[0][1].path == Path("sounds/a.wav")


def test_segments_speakers_and_what_is_wrong(tmp_path):
    folder = _write(
        tmp_path / "Dev",
        wav_scp="rec rec.wav\npipe sph2pipe -f wav x.sph |\nrec again.wav\n",
        segments="u1 rec 0.5 2.25\nu2 rec 3 -1\nu3 other 0 1\nu4 pipe 0 1\nu5 rec 2 1\nu6 rec 1\nu7 rec 0 1\n",
        text="u1 one\nu2\nu2 two\nu3 three\nu4 four\nu5 five\nu6 six\nu8 eight\n",
        utt2spk="u1 ann\nu2 bob\n",
    )
    utterances, problems = read_kaldi(folder)
    assert [(u.id, u.speaker, u.split, u.start_s, u.duration_s) for u in utterances] == [
        ("u1", "ann", "dev", 0.5, 1.75),
        ("u2", "bob", "dev", 3.0, math.inf),
    ]
    assert {(p.kind, p.id, p.detail) for p in problems} == {
        ("duplicate id", "rec", "again in wav.scp"),
        ("duplicate id", "u2", "again in text, and one of the lines is empty"),
        ("bad row", "u3", "recording 'other' is not in wav.scp"),
        ("bad row", "u4", "wav.scp has a command for 'pipe', and commands are not run: let it name a sound file"),
        ("bad row", "u5", "segments: begins at 2 s and ends at 1 s"),
        ("bad row", "u6", "segments: must be `utterance recording start end`, but is 'rec 1'"),
        ("audio without text", "u7", str(folder)),
        ("text without audio", "u8", "not in segments"),
    }


def test_mark_and_line_ends_are_no_part_of_a_text(tmp_path):
    folder = _write(tmp_path, wav_scp="\ufeffa a.wav\r\n", text="\ufeffa one\u2028two\r\n")
    ((utterance,), problems) = read_kaldi(folder)
    assert not problems and (utterance.id, utterance.text) == ("a", "one two")


def test_what_is_missing_is_named(tmp_path):
    folder = _write(tmp_path / "train", wav_scp="a a.wav\n")
    with pytest.raises(ValueError, match=f"{folder} has no file text"):
        read_kaldi(folder)
    assert kaldi_folders(tmp_path) == [folder] and kaldi_folders(tmp_path / "nowhere") == []


def test_folders_of_several_splits_are_prepared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    soundfile.write("talk.wav", 0.1 * rng.standard_normal(16000 * 4), 16000)
    for split, places in {"train": ((0, 1.5), (1.5, 3)), "valid": ((3, 4),), "noisy": ((0, 2),)}.items():
        ids = [f"{split}-{n}" for n in range(len(places))]
        _write(
            tmp_path / "kaldi" / split,
            wav_scp="talk talk.wav\n",
            segments="".join(f"{id_} talk {a} {b}\n" for id_, (a, b) in zip(ids, places, strict=True)),
            text="".join(f"{id_} hello\n" for id_ in ids),
        )
    flags = ["prepare", "table", "kaldi", "--num-jobs", "1", "--perturb-speed", "false"]
    assert main(flags) == 0
    found = {
        path.name.split("_")[2].split(".")[0]: [cut.duration for cut in load_manifest(path)]
        for path in Path("data/fbank").glob("table_cuts_*.jsonl.gz")
    }
    assert found == {"train": [1.5, 1.5], "dev": [1.0], "noisy": [2.0]}
    capsys.readouterr()
    assert main(flags) == 0
    assert Counter(capsys.readouterr().out.split())["skipping"] >= 4
    Path("kaldi/train/text").write_text("train-0 hello\ntrain-1 goodbye\n")
    assert main(flags) == 0
    assert "made anew, since these changed: the files\n" in capsys.readouterr().out
    assert main([*flags, "--text-column", "x"]) == 1
    assert "`--...-column` are for tables, but kaldi is a folder of Kaldi's." in capsys.readouterr().err
