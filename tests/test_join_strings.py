"""``egs/digits/ASR/join_strings.py``: recordings and the silences between them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCRIPT = Path(__file__).parents[1] / "egs" / "digits" / "ASR" / "join_strings.py"


@pytest.fixture
def folder(tmp_path):
    lines = ["id\tpath\tspeaker\ttext"]
    for level, (word, take) in enumerate([("one", 0), ("one", 1), ("two", 0), ("two", 1)], start=1):
        soundfile.write(tmp_path / f"{word}{take}.wav", np.full(1600, level / 10, np.float32), 16000)
        lines.append(f"{word}{take}\t{word}{take}.wav\tann\t{word}")
    (tmp_path / "manifest.tsv").write_text("\n".join(lines) + "\n")
    lines = ["id\tspeaker\tsplit\ttext\tsegments\tgaps_ms"]
    for split in ("train", "dev"):
        lines += [f"{split}{n}\tann\t{split}\tone two one\tone0 two0 one1\t100 50 0 200" for n in range(3)]
    (tmp_path / "strings.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def _joined(folder, *options):
    given = [
        "--recordings",
        folder / "manifest.tsv",
        "--strings",
        folder / "strings.tsv",
        "--output-dir",
        folder / "out",
    ]
    subprocess.run([sys.executable, SCRIPT, *given, *options], check=True, capture_output=True)
    with (folder / "out" / "table.tsv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file, delimiter="\t")}


def test_recordings_stand_between_silences(folder):
    row = _joined(folder)["train0"]
    assert (row["text"], row["speaker"], row["split"]) == ("one two one", "ann", "train")
    samples, rate = soundfile.read(folder / "out" / row["path"])
    assert rate == 16000 and len(samples) == 1600 + 1600 + 800 + 1600 + 0 + 1600 + 3200
    levels = [samples[i] for i in (0, 1700, 3300, 4100, 5700, 7300)]
    assert levels == pytest.approx([0, 0.1, 0, 0.3, 0.2, 0], abs=1e-3)


@pytest.mark.sweep
def test_noise_is_in_the_recordings_of_training_strings_and_not_in_the_silences(folder):
    plain, _ = _of_all(folder)
    noisy, rows = _of_all(folder, "--noise-share", "1", "--noise-snr-db", "20", "20")
    again, _ = _of_all(folder, "--noise-share", "1", "--noise-snr-db", "20", "20")
    for id_, row in rows.items():
        noise = noisy[id_] - plain[id_]
        assert np.array_equal(noisy[id_], again[id_])
        if row["split"] == "dev":
            assert not noise.any()
            continue
        is_silent = plain[id_] == 0
        assert not noise[is_silent].any()
        snr = np.mean(plain[id_][~is_silent] ** 2) / np.mean(noise[~is_silent] ** 2)
        assert 10 * np.log10(snr) == pytest.approx(20, abs=0.1)
        # below 4 kHz, where the speech of such recordings is
        power = np.abs(np.fft.rfft(noise)) ** 2
        assert power[: len(power) // 2].sum() > 0.95 * power.sum()
    assert not np.array_equal(noisy["train0"], noisy["train1"])
    other, _ = _of_all(folder, "--noise-share", "1", "--noise-split", "dev")
    assert [id_ for id_ in rows if not np.array_equal(other[id_], plain[id_])] == ["dev0", "dev1", "dev2"]


def test_speaker_to_hold_out_is_dev_and_the_others_train_up_to_the_limits(folder):
    lines = ["id\tspeaker\tsplit\ttext\tsegments\tgaps_ms"]
    for speaker, split, count in (("ann", "train", 3), ("bob", "dev", 2), ("cai", "train", 3), ("dee", "test", 3)):
        lines += [f"{speaker}{n}\t{speaker}\t{split}\tone\tone0\t0 0" for n in range(count)]
    (folder / "strings.tsv").write_text("\n".join(lines) + "\n")
    rows = _joined(folder, "--dev-speaker", "ann", "--dev-limit", "1", "--train-limit", "2")
    splits = {id_: row["split"] for id_, row in rows.items()}
    train = dict.fromkeys(("bob0", "bob1", "cai0", "cai1"), "train")
    assert splits == {"ann0": "dev", **train, "dee0": "test", "dee1": "test", "dee2": "test"}
    with pytest.raises(subprocess.CalledProcessError) as failed:
        _joined(folder, "--dev-speaker", "eve")
    assert b"`--dev-speaker` must be one of ann, bob, cai, but is eve" in failed.value.stderr


def _of_all(folder, *options):
    rows = _joined(folder, *options)
    return {id_: soundfile.read(folder / "out" / row["path"])[0] for id_, row in rows.items()}, rows
