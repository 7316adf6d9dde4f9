"""``transducer transcribe --manifest``: many sounds, here or on a cluster, in as many runs as it takes."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
import soundfile
from model_sizes import conformer_model
from warm import dask_workers, interpreter

from stateless_transducer.checkpoint import Checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.recognition.manifest import read_manifest
from stateless_transducer.text.tokens import build_token_table

TOKENS = build_token_table(["今天天气很好"], "char")
SIZES = conformer_model(
    vocab_size=len(TOKENS), num_layers=1, attention_dim=8, num_heads=2, feedforward_dim=8, joiner_dim=8
)


@pytest.fixture
def folder(tmp_path):
    """A model that talks nonsense, five sounds, and a manifest of six parts of them."""
    network = build_model(SIZES)
    network.joiner.output_linear.bias.data[0] -= 0.5
    save_checkpoint(tmp_path / "model.pt", Checkpoint(network.state_dict(), SIZES, FbankConfig(), TOKENS))
    rows = []
    for i in range(5):
        noise = 0.1 * np.random.default_rng(i).standard_normal(16000 * (1 + i))
        soundfile.write(tmp_path / f"{i}.wav", noise, 16000)
        rows.append({"id": i, "path": f"{i}.wav"})
    rows.append({"id": "part", "path": str(tmp_path / "4.wav"), "start": 1.5, "duration": 2.0})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def transcribe(folder, capsys):
    """Run the command: status, standard output, standard error."""

    def run(*flags, output="out.jsonl"):
        files = ["--manifest", str(folder / "in.jsonl"), "--output", str(folder / output), "--vad", "energy"]
        try:
            status = main(["transcribe", str(folder / "model.pt"), *files, "--device", "cpu", *flags])
        except SystemExit as stopped:
            status = stopped.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def _read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _same(one, other):
    """But for the last digits of the log-probabilities, since batches were of other sizes."""
    for a, b in zip(one["segments"], other["segments"], strict=True):
        assert a.pop("log_probs") == pytest.approx(b.pop("log_probs"), rel=1e-4)
    assert one == other


def test_manifest_gives_an_object_a_row(folder, transcribe, capsys):
    status, printed, errors = transcribe()
    assert (status, printed, errors) == (0, "", f"{folder}/out.jsonl: 6 new sounds, 6 of 6 in all\n")
    found = _read(folder / "out.jsonl")
    assert [row["id"] for row in found] == ["0", "1", "2", "3", "4", "part"]
    assert [row["duration"] for row in found] == [1.0, 2.0, 3.0, 4.0, 5.0, 2.0]
    assert all(row["text"] for row in found)
    # the same as without a manifest
    assert main(["transcribe", str(folder / "model.pt"), str(folder / "2.wav"), "--output-format", "json"]) == 0
    _same({"id": "2", **json.loads(capsys.readouterr().out)}, found[2])


def test_manifest_of_another_system_is_read(tmp_path):
    """Windows puts a mark before the text; JSON may hold what ends a line elsewhere."""
    lines = ['\ufeff{"id": "1", "path": "a\u2028b.wav"}', '{"id": "2\x853", "path": "b.wav"}', ""]
    (tmp_path / "in.txt").write_bytes("\r\n".join(lines).encode())
    first, second = read_manifest(tmp_path / "in.txt")
    assert (first.sound.path.name, second.id) == ("a\u2028b.wav", "2 3")


@pytest.mark.parametrize(
    ("bounds", "seconds"),
    [
        ({"start": 1, "end": 2.5}, 1.5),
        ({"offset": 1.0, "duration": 1.5, "text": "x"}, 1.5),
        ({"end": 2}, 2.0),
        ({"duration": 2}, 2.0),
        ({"offset": 3}, 2.0),
        ({}, 5.0),
    ],
)
def test_part_of_a_file_is_bounded_by_the_keys_of_tables(folder, transcribe, bounds, seconds):
    (folder / "in.jsonl").write_text(json.dumps({"id": "x", "audio_filepath": "4.wav", **bounds}))
    assert transcribe()[0] == 0
    assert [row["duration"] for row in _read(folder / "out.jsonl")] == [seconds]


def test_second_run_does_what_the_first_left(folder, transcribe):
    (folder / "3.wav").rename(folder / "away.wav")
    status, _, errors = transcribe()
    assert status == 1 and f"transducer: 3: {folder}/3.wav: no such file." in errors
    assert "1 of 6 sounds could not be read. Run again to retry." in errors
    before = (folder / "out.jsonl").read_bytes()
    # killed while it wrote a line
    (folder / "out.jsonl").write_bytes(before[:-20])
    (folder / "away.wav").rename(folder / "3.wav")
    status, printed, errors = transcribe()
    assert (status, printed) == (0, "")
    assert errors == (
        f"4 of 6 sounds are in {folder}/out.jsonl already - skipping them, whatever model and options produced "
        "them. Name another `--output` to transcribe them again\n"
        f"{folder}/out.jsonl: 2 new sounds, 6 of 6 in all\n"
    )
    ids = [row["id"] for row in _read(folder / "out.jsonl")]
    assert ids == ["0", "1", "2", "4", "3", "part"]
    status, _, errors = transcribe()
    assert status == 0 and "6 of 6 sounds are in" in errors


@pytest.mark.parametrize("name", ["pipe", "/dev/stdout"])
def test_output_may_be_a_pipe(folder, name):
    os.mkfifo(folder / "pipe")
    words = ["transcribe", str(folder / "model.pt"), "--manifest", str(folder / "in.jsonl"), "--vad", "energy"]
    words = [interpreter(), "-m", "stateless_transducer.cli", *words, "--output", str(folder / name)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = (folder / "pipe").read_bytes() if name == "pipe" else process.stdout.read()
    assert process.returncode == 0
    assert [json.loads(line)["id"] for line in found.splitlines()] == ["0", "1", "2", "3", "4", "part"]


def test_cluster_gives_what_one_machine_gives(folder, transcribe, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="a cluster needs Dask: pip install '.[dask]'")
    scores = "".join(f"-{1 + n} {symbol}\n" for n, symbol in enumerate(("<unk>", "</s>", "今", "天", "气")))
    (folder / "lm.arpa").write_text(f"\\data\\\nngram 1=6\n\n\\1-grams:\n-99 <s>\n{scores}\n\\end\\\n")
    (folder / "words.txt").write_text("天气\n")
    scorers = ["--method", "modified_beam_search", "--ngram-lm", "lm.arpa", "--hotwords-file", "words.txt"]
    monkeypatch.chdir(folder)
    assert transcribe(*scorers)[0] == 0
    monkeypatch.chdir("/")
    (folder / "in.jsonl").write_text((folder / "in.jsonl").read_text() + '{"id": "absent", "path": "no.wav"}\n')
    with (
        dask_workers(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", local_directory=str(folder / "dask")
        ) as cluster,
    ):
        # the workers run in another folder than the command
        monkeypatch.chdir(folder)
        flags = (*scorers, "--num-threads", "1")
        status, _, errors = transcribe("--dask", cluster.scheduler_address, *flags, output="spread.jsonl")
    assert status == 1 and "transducer: absent: " in errors and "no.wav: no such file" in errors
    assert "6 new sounds, 6 of 7 in all\n" in errors
    here, there = (sorted(_read(folder / name), key=lambda row: row["id"]) for name in ("out.jsonl", "spread.jsonl"))
    for own, other in zip(here, there, strict=True):
        _same(own, other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "in.jsonl: bad row, line 7: not JSON: "),
        ('{"id": 7}', "in.jsonl: bad row, line 7: '' cannot be the name of a sound file."),
        ('{"id": 7, "path": "0.wav", "start": -1}', "in.jsonl: bad row, line 7: begins at -1 s"),
        ('{"id": 7, "path": "0.wav", "end": 1, "duration": 2}', "is 2 s long, but ends at 1 s"),
        ('{"id": 7, "path": "0.wav", "offset": 1}', "several columns may be the start: start, offset"),
        ('["id"]', "in.jsonl: bad row, line 7: not a JSON object."),
        ('{"id": "part", "path": "0.wav"}', "in.jsonl: duplicate id, part: line 7, first on line 6."),
    ],
)
def test_bad_line_of_a_manifest_is_named(folder, transcribe, line, message):
    with (folder / "in.jsonl").open("a") as file:
        file.write(line + "\n")
    status, _, errors = transcribe()
    assert status == 1 and message in errors and not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    "content",
    [
        "my notes\n",
        "my notes",
        '{"id": "1", "path": "a.wav"}',
        '{"id": "1", "path": "a.wav"}\n',
        '["id"]',
        '{"id": "1", "segments": []}\n{"id": "2"}',
    ],
)
def test_output_that_is_something_else_is_left_alone(folder, transcribe, content):
    (folder / "out.jsonl").write_text(content)
    status, _, errors = transcribe()
    number = content.strip().count("\n") + 1
    assert status == 1 and f"out.jsonl:{number} is not a transcript. Name another file" in errors
    assert (folder / "out.jsonl").read_text() == content


def test_output_that_is_the_manifest_is_left_alone(folder, transcribe):
    (folder / "link.jsonl").symlink_to("in.jsonl")
    before = (folder / "in.jsonl").read_bytes()
    for name in ("in.jsonl", "../" + folder.name + "/in.jsonl", "link.jsonl"):
        status, _, errors = transcribe(output=name)
        assert status == 1 and "is the file that `--manifest`" in errors
    assert (folder / "in.jsonl").read_bytes() == before


def test_last_line_that_lacks_only_its_end_is_kept(folder, transcribe):
    assert transcribe()[0] == 0
    before = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").write_bytes(before[:-1])
    _, _, errors = transcribe()
    assert "6 of 6 sounds are in" in errors and (folder / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output-format", "srt"], "no files, no other outputs"),
        (["--output-dir", "x"], "no files, no other outputs"),
        (["a.wav"], "no files, no other outputs"),
    ],
)
def test_manifest_and_files_do_not_mix(transcribe, flags, message):
    status, _, errors = transcribe(*flags)
    assert status == 2 and message in " ".join(errors.replace("│", " ").split())


def test_dask_needs_a_manifest(folder, capsys):
    with pytest.raises(SystemExit):
        main(["transcribe", str(folder / "model.pt"), "a.wav", "--dask", "tcp://127.0.0.1:1"])
    assert "`--manifest` and `--output` belong together" in capsys.readouterr().err
