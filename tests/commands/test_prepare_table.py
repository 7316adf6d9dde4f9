"""``transducer prepare table`` from the command line: sound files of all kinds, good and bad, to cuts and tokens."""

from __future__ import annotations

import io
import json
import shlex
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from stateless_transducer.cli import main
from stateless_transducer.commands import prepare_table
from stateless_transducer.data import preparation
from stateless_transducer.data.cutting import features_from_sound
from stateless_transducer.text.tokens import TokenTable

# file -> sample rate, channels, how soundfile is to write it
SOUNDS = {
    "a.wav": (16000, 1, {}),
    "b/slow.wav": (8000, 1, {}),
    "b/stereo.flac": (44100, 2, {}),
    "b/odd.ogg": (22050, 1, {}),
    "c.mp3": (44100, 2, {}),
    "c.opus": (48000, 1, {"format": "OGG", "subtype": "OPUS"}),
    "d/float.wav": (22050, 2, {"subtype": "FLOAT"}),
    "dev.wav": (16000, 1, {}),
}
TEXTS = {name: "hello you" for name in SOUNDS} | {"a.wav": "你 好", "dev.wav": "hello zoë 好"}
TRAIN_IDS = {"a", "b-slow", "b-stereo", "b-odd", "c", "copus", "d-float"}
PROBLEMS = {
    "unreadable audio": 4,
    "empty text": 1,
    "missing audio": 1,
    "silent audio": 1,
    "duplicate id": 1,
    "bad row": 1,
    "too much text": 1,
}


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    out: str
    err: str


def _run(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["prepare", "table", *map(str, arguments)])
    return Ran(status, out.getvalue(), err.getvalue())


def _tone(rate: int, num_channels: int) -> np.ndarray:
    """One second of 440 Hz, (S, channels)."""
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    return np.repeat(wave[:, None], num_channels, axis=1).astype(np.float32)


def _write_m4a(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(_tone(44100, 2).T.copy(), format="fltp", layout="stereo")
        frame.rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])


def _write_bad_files(folder: Path) -> None:
    (folder / "letter.wav").write_text("Dear reader, this is no sound at all.")
    whole = (folder / "a.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    whole = (folder / "b/odd.ogg").read_bytes()
    (folder / "truncated.ogg").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(folder / "zeros.wav", np.zeros(8000, np.float32), 16000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A table of good and bad rows beside its sound files."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, (rate, num_channels, how) in SOUNDS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, _tone(rate, num_channels), rate, **how)
    _write_bad_files(folder)
    rows = [(name, text, "valid" if name == "dev.wav" else "Train", "") for name, text in TEXTS.items()]
    # c.mp3 and c.opus would both be c
    rows = [(*row[:3], "copus" if row[0] == "c.opus" else "") for row in rows]
    rows += [("truncated.ogg", "x", "train", "truncated-ogg")]
    rows += [(name, "x", "train", "") for name in ("letter.wav", "truncated.wav", "empty.wav", "missing.wav")]
    rows += [
        ("zeros.wav", "hello you", "train", ""),
        ("a.wav", "", "train", "silent"),
        ("a.wav", "x" * 50, "train", "babble"),
        ("a.wav", "x", "train", "a"),
    ]
    rows += [("a.wav", "too", "few")]
    if find_spec("av"):
        _write_m4a(folder / "e.m4a")
        rows.append(("e.m4a", "hello you", "train", ""))
    table = "".join("\t".join(row) + "\n" for row in [("path", "sentence", "subset", "utt_id"), *rows])
    (folder / "table.tsv").write_text(table, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def prepared(corpus, data_dir) -> Ran:
    return _run(corpus / "table.tsv", "--data-dir", data_dir, "--prefix", "mine", "--num-jobs", 1)


@pytest.fixture(scope="module")
def cuts(prepared, data_dir) -> dict[str, CutSet]:
    return {
        split: CutSet.from_file(data_dir / "fbank" / f"mine_cuts_{split}.jsonl.gz").to_eager()
        for split in ("train", "dev")
    }


def test_prepare_table_succeeds_in_spite_of_bad_rows(prepared):
    assert prepared.status == 0, prepared.err
    assert "left out: 9" in prepared.out
    assert "silent audio (zeros: " in prepared.out
    assert "next: transducer train --manifest-dir " in prepared.out


def test_prepare_table_makes_cuts_of_every_good_file(cuts):
    assert {cut.id for cut in cuts["train"] if "_sp" not in cut.id} - {"e"} == TRAIN_IDS
    assert len(cuts["train"]) % 3 == 0
    assert [cut.id for cut in cuts["dev"]] == ["dev"]


def test_prepare_table_makes_cuts_of_m4a(cuts):
    pytest.importorskip("av")
    assert "e" in {cut.id for cut in cuts["train"]}


def test_prepare_table_gives_same_tone_for_all_formats(cuts):
    features = {cut.id: cut.load_features() for cut in cuts["train"] if "_sp" not in cut.id}
    # lossy formats pad: aac up to 46 ms
    assert all(100 <= len(frames) <= 105 for frames in features.values())
    assert len({int(frames[10:90].mean(axis=0).argmax()) for frames in features.values()}) == 1


def test_prepare_table_lists_problems_by_kind(prepared, data_dir):
    lines = (data_dir / "manifests" / "mine_problems.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert Counter(line.split("\t")[0] for line in lines) == PROBLEMS
    unreadable = {line.split("\t")[1] for line in lines if line.startswith("unreadable audio")}
    assert unreadable == {"letter", "truncated", "truncated-ogg", "empty"}


def test_prepare_table_takes_tokens_from_train_only(prepared, data_dir):
    tokens = TokenTable.read(data_dir / "lang_char")
    assert set(tokens.symbols) == {"<blk>", "<sos/eos>", "<unk>", "▁", *"你好heloyu"}


def test_prepare_table_reports_units_that_tokens_lack(prepared):
    assert "lang_char/tokens.txt lacks, which the model cannot recognize:\n  dev: 2 of " in prepared.out
    assert "2 distinct: z (1) ë (1)\n" in prepared.out


def test_prepare_table_makes_each_part_once(prepared, corpus, data_dir):
    again = _run(corpus / "table.tsv", "--data-dir", data_dir, "--prefix", "mine")
    assert again.status == 0
    assert again.out.count("already there - skipping") == 4


def test_strict_prepare_table_counts_problems(corpus, tmp_path):
    ran = _run(corpus / "table.tsv", "--data-dir", tmp_path, "--strict", "true", "--num-jobs", 1)
    assert ran.status == 1
    assert "transducer: error: `--strict`: 9 problems:" in ran.err
    assert (tmp_path / "manifests" / "table_problems.tsv").exists()


def test_strict_prepare_table_refuses_units_that_tokens_lack(prepared, corpus, data_dir):
    ran = _run(corpus / "table.tsv", "--data-dir", data_dir, "--prefix", "mine", "--strict", "true")
    assert ran.status == 1
    assert "`--strict`: units that " in ran.err
    assert "dev: 2 of " in ran.err


def test_prepare_table_reads_folder_and_holds_out(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare_features", lambda *_, **__: None)
    for speaker, text in (("S1", "one two"), ("S2", "two three")):
        for i in range(2):
            (tmp_path / "in" / speaker).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "in" / speaker / f"{i}.wav", _tone(8000, 1), 8000)
            (tmp_path / "in" / speaker / f"{i}.txt").write_text(text)
    flags = ("--data-dir", tmp_path / "out", "--token", "word", "--dev-share", 0.5, "--num-jobs", 1)
    ran = _run(tmp_path / "in", *flags)
    assert ran.status == 0, ran.err
    assert "2 of 4 training utterances (1 of 2 speakers) are now dev." in ran.out
    tokens = TokenTable.read(tmp_path / "out" / "lang_word")
    assert tokens.unit == "word"
    assert len(tokens) == 3 + 2
    assert "dev: 2 of 4 units, 1 distinct: " in ran.out
    # a piece of a word is told by what cannot be spelt of it
    ran = _run(tmp_path / "in", *flags[:2], "--token", "bpe", "--vocab-size", 30, "--dev-share", 0.5, "--num-jobs", 1)
    assert ran.status == 0, ran.err
    pieces = TokenTable.read(tmp_path / "out" / "lang_bpe_30")
    assert "`--token bpe` is for alphabetic scripts" not in ran.out
    assert pieces.unit == "bpe"
    assert "dev: " in ran.out and set(pieces.unknown_units("one two three")) < set("onetwhr")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.csv",), "no.csv: no such table or folder."),
        (("all.csv", "--text-column", "words"), "`--text-column` words: "),
        ((".", "--audio-dir", "."), "`--audio-dir` and `--...-column` are for tables, but "),
    ],
    ids=["no source", "no column", "folder"],
)
def test_prepare_table_says_what_is_wrong(tmp_path, arguments, message):
    (tmp_path / "all.csv").write_text("path,text,split,part\na.wav,a,other,eval\nb.wav,b,train,\n")
    soundfile.write(tmp_path / "a.wav", _tone(8000, 1), 8000)
    ran = _run(tmp_path / arguments[0], *arguments[1:], "--data-dir", tmp_path / "data", "--num-jobs", 1)
    assert ran.status == 1
    assert message in ran.err


def test_prepare_table_without_train_makes_features_but_no_tokens(tmp_path):
    (tmp_path / "all.csv").write_text("path,text,split\na.wav,a,eval\n")
    soundfile.write(tmp_path / "a.wav", _tone(8000, 1), 8000)
    ran = _run(tmp_path / "all.csv", "--data-dir", tmp_path / "data", "--num-jobs", 1)
    assert ran.status == 0
    assert "no split train, hence no tokens: enough for `transducer decode --test-sets`" in ran.out
    assert (tmp_path / "data" / "fbank" / "table_cuts_eval.jsonl.gz").exists()
    assert not (tmp_path / "data" / "lang_char").exists()


def test_changed_table_gets_new_tokens_in_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare_features", lambda *_, **__: None)
    soundfile.write(tmp_path / "a.wav", _tone(8000, 1), 8000)
    for text in ("one", "two!"):
        (tmp_path / "all.csv").write_text(f"path,text\na.wav,{text}\n")
        for unit in ("char", "word"):
            flags = ("--data-dir", tmp_path / "data", "--num-jobs", 1, "--token", unit)
            ran = _run(tmp_path / "all.csv", *flags)
            assert ran.status == 0, ran.err
            symbols = TokenTable.read(tmp_path / "data" / f"lang_{unit}").symbols
            assert {text} < set(symbols) if unit == "word" else set(text) < set(symbols)
    assert sorted(path.name for path in (tmp_path / "data").glob("lang_*")) == ["lang_char", "lang_word"]


def test_parts_of_a_file_become_utterances_of_their_own(tmp_path):
    """NeMo's manifests: offset and duration. Each part has the features that a file of it alone would have."""
    rate = 22050
    rng = np.random.default_rng(0)
    whole = rng.uniform(-0.5, 0.5, 6 * rate) * np.repeat([1, 0.01, 0.1], 2 * rate)
    soundfile.write(tmp_path / "talk.wav", whole, rate)
    parts = {"loud": (0.0, 2.0), "faint": (2.0, 1.5), "fair": (4.0, 2.02)}
    rows = [
        {"audio_filepath": "talk.wav", "offset": start, "duration": seconds, "text": text}
        for text, (start, seconds) in parts.items()
    ]
    rows.append({"audio_filepath": "talk.wav", "offset": 5.0, "duration": 1.5, "text": "beyond"})
    for name, (start, seconds) in parts.items():
        soundfile.write(tmp_path / f"{name}.wav", whole[round(start * rate) :][: round(seconds * rate)], rate)
        rows.append({"audio_filepath": f"{name}.wav", "text": f"{name} alone"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = _run(tmp_path / "t.jsonl", "--data-dir", tmp_path / "data", "--num-jobs", 1, "--speeds", 0.9, 1.1)
    assert ran.status == 0, ran.err
    problems = (tmp_path / "data" / "manifests" / "table_problems.tsv").read_text().splitlines()[1:]
    assert problems == [
        f"beyond the audio\ttalk-0005000-0006500\t5 s and 1.5 s of {tmp_path}/talk.wav, 6.00 s",
    ]
    cuts = CutSet.from_file(tmp_path / "data" / "fbank" / "table_cuts_train.jsonl.gz").to_eager()
    assert len(cuts) == 3 * 6
    for name, (start, seconds) in parts.items():
        end = min(6.0, start + seconds)
        for speed, suffix in ((1.0, ""), (0.9, "_sp0.9"), (1.1, "_sp1.1")):
            cut = cuts[f"talk-{round(start * 1000):07d}-{round((start + seconds) * 1000):07d}{suffix}"]
            alone = cuts[name + suffix]
            assert cut.supervisions[0].text == name and cut.supervisions[0].start == 0
            assert cut.start == pytest.approx(start / speed) and cut.duration == alone.duration
            assert cut.duration == pytest.approx((end - start) / speed, abs=1e-3)
            assert np.array_equal(cut.load_features(), alone.load_features())
            # what is stored in steps of 1/256 is what comes from the sound
            assert np.abs(features_from_sound(cut) - cut.load_features()).max() <= 1 / 256


def test_printed_command_trains_on_all_that_was_accepted(tmp_path, monkeypatch, capsys):
    """Words of a third of a second beside a quarter of a minute; a folder with a blank; an exp folder that is taken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp").mkdir()
    random = np.random.default_rng(0)
    for name, seconds in (("long", 15.0), ("word", 0.33), ("other", 0.4)):
        soundfile.write(f"{name}.wav", random.uniform(-0.1, 0.1, round(8000 * seconds)), 8000)
    Path("t.csv").write_text("path,text\nlong.wav,no yes no yes\nword.wav,yes\nother.wav,no\n")
    for tokens in (["--token", "bpe", "--vocab-size", 12], ["--token", "word"]):
        ran = _run("t.csv", "--data-dir", "my data", "--num-jobs", 1, "--speeds", 0.9, *tokens)
        assert ran.status == 0, ran.err
        command = shlex.split(ran.out.split("next: ")[1])
        assert command[0] == "transducer" and command[command.index("--exp-dir") + 1] == "exp-2"
        tiny = "--num-layers 1 --attention-dim 16 --num-heads 2 --feedforward-dim 16 --joiner-dim 16".split()
        assert main([*command[1:], "--dry-run", "true", *tiny]) == 0
        captured = capsys.readouterr()
        # 15 s at a speed of 0.9
        assert "6 utterances" in captured.out and "0.3 to 16.7 s" in captured.out
        assert "--max-utterance-s 17" in captured.out
        assert "Left out" not in captured.err


def test_characters_like_noise_are_listed_and_normalized_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare_features", lambda *_, **__: None)
    soundfile.write(tmp_path / "a.wav", _tone(8000, 1), 8000)
    (tmp_path / "t.csv").write_text('path,text\na.wav,"Ｏh no, it\'s 2!"\n', encoding="utf-8")
    flags = (tmp_path / "t.csv", "--data-dir", tmp_path / "data", "--num-jobs", 1)
    ran = _run(*flags)
    assert ran.status == 0, ran.err
    listed = ran.out.split("look like noise")[1]
    assert "--normalize-text" in listed
    assert all(f"{character} (1)" in listed for character in "Ｏ,2!") and "'" not in listed.split("units")[0]
    ran = _run(*flags, "--normalize-text")
    assert ran.status == 0, ran.err
    assert "made anew, since these changed: --normalize-text" in ran.out
    assert set(TokenTable.read(tmp_path / "data" / "lang_char").symbols[3:]) == set("▁ohnit's2")
    assert "2 (1)" in ran.out.split("look like noise")[1]


def test_no_command_is_printed_if_nothing_is_left_to_train_on(tmp_path):
    """Four letters in a tenth of a second have no path through the lattice."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 800)
    soundfile.write(tmp_path / "a.wav", noise, 8000)
    (tmp_path / "t.csv").write_text("path,text\na.wav,word\n")
    ran = _run(tmp_path / "t.csv", "--data-dir", tmp_path / "data", "--num-jobs", 1)
    assert ran.status == 0, ran.err
    assert "next: " not in ran.out and "0 utterances left for training" in ran.out


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--dev-share", 0.5), "--dev-share"),
        (("--text-column", "other"), "--text-column"),
        (("--split-column", "other"), "--split-column"),
        (("--audio-dir", "moved"), "--audio-dir"),
    ],
)
def test_changed_options_are_not_skipped(tmp_path, monkeypatch, flags, name):
    monkeypatch.setattr(preparation, "prepare_features", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    for folder in (".", "moved"):
        Path(folder).mkdir(exist_ok=True)
        for i in range(2):
            soundfile.write(f"{folder}/{i}.wav", _tone(8000, 1), 8000)
    Path("t.csv").write_text("path,text,other\n0.wav,one,train\n1.wav,two,test\n")
    usual = ("t.csv", "--data-dir", "data", "--num-jobs", 1)
    first = _run(*usual)
    assert first.status == 0 and "already there" not in first.out, first.err
    assert "already there - skipping" in _run(*usual).out
    changed = _run(*usual, *flags)
    assert changed.status == 0, changed.err
    assert f"data/manifests/table_*: made anew, since these changed: {name}\n" in changed.out


def test_a_reading_that_fails_does_not_pass_for_the_one_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("0.wav", _tone(8000, 1), 8000)
    Path("t.csv").write_text("path,text,empty\n0.wav,one,\n")
    usual = ("t.csv", "--data-dir", "data", "--num-jobs", 1, "--perturb-speed", "false")
    assert _run(*usual).status == 0
    failed = _run(*usual, "--text-column", "empty")
    assert failed.status == 1 and "No utterance is usable" in failed.err
    again = _run(*usual)
    assert again.status == 0, again.err
    assert "1 utterance " in again.out


def test_changed_folder_is_not_skipped(tmp_path, monkeypatch):
    """A sound that has come, a text that was corrected; but not what the command itself has written into the folder."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        soundfile.write(f"{i}.wav", _tone(8000, 1), 8000)
        Path(f"{i}.txt").write_text("one")
    flags = (".", "--num-jobs", 1, "--perturb-speed", "false")
    assert _run(*flags).status == 0
    assert "data/manifests/table_*: already there - skipping" in _run(*flags).out
    Path("1.txt").write_text("three")
    ran = _run(*flags)
    assert "made anew, since these changed: the files\n" in ran.out
    assert {"t", "h", "r"} < set(TokenTable.read(Path("data/lang_char")).symbols)
    soundfile.write("2.wav", _tone(8000, 1), 8000)
    Path("2.txt").write_text("four")
    assert "train        3 utterances" in _run(*flags).out


def test_another_source_with_the_same_prefix_is_refused(prepared, corpus, data_dir, tmp_path):
    (tmp_path / "other.csv").write_text("path,text\na.wav,a\n")
    ran = _run(tmp_path / "other.csv", "--data-dir", data_dir, "--prefix", "mine")
    assert ran.status == 1
    assert f"were made from {corpus / 'table.tsv'}, not from {tmp_path / 'other.csv'}" in ran.err
    # a slip in the name is told as one
    ran = _run(tmp_path / "othre.csv", "--data-dir", data_dir, "--prefix", "mine")
    assert ran.status == 1 and ran.err.endswith("othre.csv: no such table or folder.\n") and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dev_share": 0.6}, "`dev_share` must be in 0..0.5, but is 0.6."),
        ({"dev_share": float("nan")}, "`dev_share` must be a finite number, but is nan."),
        ({"prefix": "a/b"}, "`prefix` must be letters, digits and `_.-`, but is 'a/b'."),
    ],
    ids=["share", "no number", "prefix"],
)
def test_prepare_table_checks_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        prepare_table.Options(Path("t.csv"), **wrong)


def test_pieces_of_chinese_are_advised_against(tmp_path):
    (tmp_path / "all.csv").write_text("path,text,split\na.wav,今天 天气 ok,train\n", encoding="utf-8")
    soundfile.write(tmp_path / "a.wav", _tone(8000, 1), 8000)
    ran = _run(tmp_path / "all.csv", "--data-dir", tmp_path / "data", "--num-jobs", 1, "--token", "bpe")
    assert ran.status == 0, ran.err
    assert "`--token bpe` is for alphabetic scripts" in ran.out
