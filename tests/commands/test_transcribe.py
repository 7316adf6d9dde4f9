"""``transducer transcribe``: what it reads, prints and writes. The model is a fresh one that talks nonsense."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from model_sizes import conformer_model

from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.commands.shared.sounds import find_sounds, output_paths
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.recognition.formats import TSV_HEADER
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["今天天气很好"], "char")
SIZES = conformer_model(
    vocab_size=len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(20220301)
    network = build_model(SIZES)
    network.joiner.output_linear.bias.data[0] -= 0.5
    path = tmp_path_factory.mktemp("model") / "model.pt"
    save_checkpoint(path, Checkpoint(network.state_dict(), SIZES, FbankConfig(), TOKENS))
    return str(path)


def _write(path, seconds=1.0, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(round(100 * seconds)).standard_normal(round(seconds * rate))
    soundfile.write(path, noise, rate)
    return str(path)


@pytest.fixture
def transcribe(model, capsys):
    """Run the command: status, lines of standard output, standard error."""

    def run(*arguments):
        try:
            status = main(["transcribe", model, *map(str, arguments), "--device", "cpu", "--vad", "energy"])
        except SystemExit as stopped:
            status = stopped.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out.splitlines(), printed.err

    return run


def test_lines_come_in_the_order_of_the_sounds(transcribe, tmp_path):
    names = [_write(tmp_path / f"{name}.wav", seconds) for name, seconds in (("c", 3.0), ("a", 0.5), ("b", 1.5))]
    status, lines, errors = transcribe(*names)
    assert (status, errors) == (0, "") and [line.split("\t")[0] for line in lines] == names
    assert all(line.split("\t")[1] for line in lines)


def test_folder_pattern_and_file_are_found(transcribe, tmp_path, monkeypatch):
    for name in ("in/b.wav", "in/deep/a.FLAC", "in/notes.txt", "in/.hidden.wav", "x1.wav", "x2.wav", "other.wav"):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("no sound")
        else:
            _write(tmp_path / name, 0.5)
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    status, lines, _ = transcribe("x*.wav", "in", "other.wav")
    found = [line.split("\t")[0] for line in lines]
    assert status == 0 and found == ["x1.wav", "x2.wav", "in/b.wav", "in/deep/a.FLAC", "other.wav"]


def test_file_whose_name_looks_like_a_pattern_is_a_file(transcribe, tmp_path):
    name = _write(tmp_path / "a[1].wav")
    _write(tmp_path / "a1.wav")
    _, lines, _ = transcribe(name)
    assert [line.split("\t")[0] for line in lines] == [name]


def test_standard_input_is_a_sound(transcribe, tmp_path, monkeypatch):
    content = Path(_write(tmp_path / "a.flac")).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, lines, _ = transcribe("-")
    assert status == 0 and len(lines) == 1 and lines[0].startswith("-\t")
    status, _, errors = transcribe("-", "-")
    assert status == 1 and "`-`, standard input, can be read only once" in errors


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(transcribe, tmp_path):
    good = [_write(tmp_path / f"{i}.wav") for i in range(2)]
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "text.wav", tmp_path / "absent.wav", tmp_path / "empty", tmp_path / "no*.wav"]
    status, lines, errors = transcribe(good[0], *bad, good[1])
    assert status == 1 and [line.split("\t")[0] for line in lines] == good
    assert "text.wav: not a sound file" in errors and "absent.wav: no such file" in errors
    assert "empty: holds no sound file (by its suffix" in errors and "no*.wav: matches no file" in errors
    assert errors.endswith("transducer: 4 of 6 sounds could not be read.\n")


def test_odd_names_cost_neither_their_own_texts_nor_those_of_others(transcribe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["good", "tab\there", "new\nline", os.fsdecode(b"latin\xe9"), "esc\x1b[31m"]
    _write(Path("in.wav"))
    Path("in").mkdir()
    for name in names:
        Path("in", f"{name}.wav").hardlink_to("in.wav")
    os.mkfifo("in/pipe.wav")  # nobody writes to it
    escaped = {"good", r"tab\there", r"new\nline", r"latin\udce9", r"esc\x1b[31m"}
    for format_ in ("txt", "tsv"):
        status, lines, _ = transcribe("in", "--output-format", format_)
        rows = [line.split("\t") for line in lines if line != TSV_HEADER]
        assert status == 0 and {row[0] for row in rows} == {f"in/{name}.wav" for name in escaped}
        assert {len(row) for row in rows} == {2 if format_ == "txt" else 4}
    status, lines, _ = transcribe("in", "--output-format", "json", "--output-dir", "out")
    assert status == 0 and {json.loads(line)["file"] for line in lines} >= {"in/tab\there.wav", r"in/latin\udce9.wav"}
    assert {path.stem for path in Path("out").iterdir()} == set(names)
    status, lines, errors = transcribe("", "in/good.wav")
    assert status == 1 and len(lines) == 1 and "the name of a sound is empty" in errors


def test_folder_that_cannot_be_read_is_named_and_the_rest_goes_on(transcribe, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    good = _write(tmp_path / "open.wav")
    inside = Path.iterdir

    def refusing(folder):
        if folder.name == "closed":
            # to root, who may run this, no folder is closed
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return inside(folder)

    monkeypatch.setattr(Path, "iterdir", refusing)
    status, lines, errors = transcribe(tmp_path)
    assert status == 1 and [line.split("\t")[0] for line in lines] == [good]
    assert "closed: cannot be read (Permission denied)." in errors


def test_warning_is_printed_and_the_sound_used(transcribe, tmp_path, caplog):
    path = Path(_write(tmp_path / "a.wav", 4.0))
    path.write_bytes(path.read_bytes()[:64000])
    status, lines, _ = transcribe(path)
    assert status == 0 and lines[0].split("\t")[1]
    assert "a.wav: truncated: its header says" in caplog.text


@pytest.mark.parametrize(
    "wanted",
    [
        "txt",
        "json",
        *(pytest.param(name, marks=pytest.mark.sweep) for name in ("srt", "vtt", "TextGrid", "tsv", "ctm")),
    ],
)
def test_output_dir_gets_a_file_for_each_sound_beside_the_lines(transcribe, tmp_path, wanted):
    _write(tmp_path / "in" / "deep" / "a.wav", 25.0)
    _write(tmp_path / "in" / "b.wav")
    status, lines, _ = transcribe(tmp_path / "in", "--output-format", wanted, "--output-dir", tmp_path / "out")
    assert status == 0 and len(lines) == 2
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path / "out")) for path in files] == [f"b.{wanted}", f"deep/a.{wanted}"]
    assert all(set(path.read_text(encoding="utf-8")) & set("今天气很好") for path in files)
    if wanted == "json":
        assert json.loads(lines[1]) == json.loads(files[1].read_text(encoding="utf-8"))
        assert len(json.loads(lines[1])["segments"]) > 1
    else:
        assert lines[0].startswith(f"{tmp_path}/in/b.wav\t")


@pytest.mark.parametrize("wanted", ["txt", "TextGrid"])
def test_file_that_is_there_is_replaced_only_if_that_is_wanted(transcribe, tmp_path, wanted):
    for name in ("a", "b", "c"):
        _write(tmp_path / f"{name}.wav")
    reference = tmp_path / f"b.{wanted}"
    reference.write_text("by hand")
    flags = [tmp_path, "--output-format", wanted, "--output-dir", tmp_path]
    status, lines, errors = transcribe(*flags)
    assert (status, lines) == (1, []) and not (tmp_path / f"a.{wanted}").exists()
    assert f"{reference} exists already (1 of 3 " in errors and "`--existing skip`" in errors
    status, lines, errors = transcribe(*flags, "--existing", "skip")
    assert (status, len(lines)) == (0, 2) and (tmp_path / f"c.{wanted}").exists()
    assert errors == f"1 of 3 files exist in {tmp_path} already; skipping them\n"
    assert reference.read_text() == "by hand"
    status, lines, errors = transcribe(*flags, "--existing", "skip")
    assert (status, lines) == (0, []) and "3 of 3 files" in errors
    status, lines, errors = transcribe(*flags, "--existing", "replace")
    assert (status, len(lines), errors) == (0, 3, "") and reference.read_text() != "by hand"


def test_subtitles_of_one_sound_are_printed_and_of_two_need_a_folder(transcribe, tmp_path):
    names = [_write(tmp_path / f"{i}.wav") for i in range(2)]
    status, lines, _ = transcribe(names[0], "--output-format", "srt")
    assert status == 0 and lines[0] == "1" and "-->" in lines[1]
    status, _, errors = transcribe(*names, "--output-format", "srt")
    assert status == 1 and "`--output-format srt` of 2 sounds needs `--output-dir` (one file each)." in errors


def test_tsv_has_one_head(transcribe, tmp_path):
    _, lines, _ = transcribe(*(_write(tmp_path / f"{i}.wav") for i in range(2)), "--output-format", "tsv")
    assert lines[0] == "path\tstart\tend\ttext" and [line.split("\t")[1] for line in lines[1:]] == ["0.000"] * 2


def test_ctm_has_a_row_a_word(transcribe, tmp_path):
    names = [_write(tmp_path / f"{i}.wav") for i in range(2)]
    status, lines, _ = transcribe(*names, "--output-format", "ctm")
    assert status == 0 and {line.split()[0] for line in lines} == {"0", "1"}
    assert all(len(line.split()) == 6 and len(line.split()[4]) == 1 for line in lines)


@pytest.mark.parametrize("way", ["screen", "files"])
def test_sounds_of_one_name_have_ids_of_their_own_in_ctm(transcribe, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.wav", "in b/x.wav", "in_b/x.wav", "in b/x.flac", "in b/only one.wav"):
        _write(tmp_path / name)
    flags = ["--output-format", "ctm", *(["--output-dir", "out"] if way == "files" else [])]
    status, lines, _ = transcribe("a/x.wav", "in b", "in_b", *flags)
    if way == "files":
        lines = [line for path in Path("out").iterdir() for line in path.read_text(encoding="utf-8").splitlines()]
    assert status == 0 and all(len(line.split()) == 6 for line in lines)
    assert {line.split()[0] for line in lines} == {"a/x.wav", "in_b/x.wav", "in_b/x.wav-2", "in_b/x.flac", "only_one"}


def test_names_that_collide_get_files_of_their_own(tmp_path, monkeypatch):
    for name in ("a.wav", "a.flac", "deep/a.wav", "deep/A.wav", "b.wav"):
        _write(tmp_path / name, 0.1)
    monkeypatch.chdir(tmp_path)
    sounds, problems = find_sounds(["a.wav", "a.flac", "deep/a.wav", "deep/A.wav", "b.wav", "a.wav"])
    assert problems == []
    paths = output_paths(Path("out"), sounds, "srt")
    names = ["a.wav.srt", "a.flac.srt", "a.wav-2.srt", "A.wav-3.srt", "b.srt", "a.wav-4.srt"]
    assert paths == [Path("out") / name for name in names]


def test_max_segment_and_channel_reach_the_recognizer(transcribe, tmp_path):
    name = _write(tmp_path / "a.wav", 9.0)
    flags = ["--output-format", "json", "--max-segment-s", "4"]
    _, lines, _ = transcribe(name, *flags)
    segments = json.loads(lines[0])["segments"]
    assert len(segments) >= 3 and max(segment["end"] - segment["start"] for segment in segments) <= 4
    status, _, errors = transcribe(name, "--channel", "1")
    assert status == 1 and "a.wav: has only channel 0, but channel 1 is wanted" in errors


@pytest.mark.parametrize(
    ("flags", "message", "status"),
    [
        (["a.wav", "--channel", "-1"], "`--channel` must be at least 0, but is -1", 2),
        (["a.wav", "--batch-seconds", "0"], "`--max-duration` must be above 0 s, but is 0", 2),
        (["a.wav", "--num-threads", "0"], "`--num-threads` must be at least 1, but is 0", 2),
        (["a.wav", "--max-segment-s", "1000"], "`--max-segment-s` must be in 2..300 s, but is 1000", 2),
        (["a.wav", "--output-format", "doc"], "doc", 2),
        ([], "Name at least one sound", 2),
        (["a.wav", "--output-dir", ""], "must be a path, but is empty", 2),
        (["a.wav", "--beam-size", "16"], "`--beam-size` 16 needs a beam: add `--decoding-method modified_beam_sear", 2),
        (["a.wav", "--length-norm", "0"], "`--length-norm` 0 needs a beam: add `--decoding-method", 2),
        (["a.wav", "--hotwords-file", "x"], "`--hotwords-file` x needs a beam: add `--decoding-method", 2),
        (["a.wav", "--lm-scale", "0.5"], "`--lm-scale` 0.5 needs `--ngram-lm`.", 2),
        (["a.wav", "--method", "beam_search", "--lodr-lm", "x"], "`--lodr-lm` x needs `--ngram-lm`.", 2),
        (["a.wav", "--lodr-scale", "0.5"], "`--lodr-scale` 0.5 needs `--lodr-lm`.", 2),
        (["a.wav", "--hotwords-score", "3"], "`--hotwords-score` 3 needs `--hotwords-file`.", 2),
        (
            ["a.wav", "--method", "beam_search", "--max-sym-per-frame", "2"],
            "`--max-sym-per-frame` 2 needs `--decoding-method greedy_search`.",
            2,
        ),
        (["a.wav", "--output-format", "ctm", "--align", "false"], "`--output-format` ctm needs `--align true`.", 2),
        (["a.wav", "--existing", "skip"], "`--existing` skip needs `--output-dir`", 2),
        (["a.wav", "--nbest", "4"], "`--nbest` 4 needs a beam: add `--decoding-method modified_beam_search`", 2),
        (
            ["a.wav", "--nbest", "8", "--method", "beam_search", "--beam-size", "4", "--output-format", "json"],
            "`--nbest` 8 must be at most `--beam-size` 4",
            2,
        ),
        (["a.wav", "--nbest", "2", "--method", "beam_search"], "`--nbest` 2 needs `--output-format json`", 2),
    ],
)
def test_bad_option_is_named(transcribe, flags, message, status):
    found, _, errors = transcribe(*flags)
    assert found == status and message in " ".join(errors.replace("│", " ").split())


def test_absent_device_is_one_line(model, capsys):
    assert main(["transcribe", model, "a.wav", "--device", "gpu"]) == 1
    assert "`--device` must be auto, cpu, cuda or cuda:N, but is 'gpu'" in capsys.readouterr().err


def test_output_dir_that_is_a_file_is_named(transcribe, tmp_path):
    name = _write(tmp_path / "a.wav")
    status, _, errors = transcribe(name, "--output-dir", name)
    assert status == 1 and "a.wav is not a folder" in errors
