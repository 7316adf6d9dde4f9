"""What users get wrong: one line that says what, where and how to go on; a status other than 0; never a traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from small_corpus import write_small_corpus

from stateless_transducer import __version__
from stateless_transducer.cli import _guarded, main
from stateless_transducer.text.tokens import build_token_table


def _fails(capsys, arguments, message, status=1):
    """Run, and look for the message on standard error, where long lines are wrapped."""
    try:
        found = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        found = stopped.code
    printed = " ".join(capsys.readouterr().err.split())
    assert found == status, printed
    assert re.search(message, printed), printed
    assert "Traceback" not in printed


def _corpus(folder, lines, wavs):
    transcript = folder / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.parent.mkdir(parents=True)
    transcript.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "data_aishell" / "wav").mkdir()
    for name, samples in wavs.items():
        path = folder / "data_aishell" / "wav" / "train" / "S0002" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(samples, 0.1, np.float32), 16000, subtype="PCM_16")
    return folder


def test_missing_corpus_folder_is_named(tmp_path, capsys):
    _fails(capsys, ["prepare", "aishell", "--corpus-dir", tmp_path / "no"], r"`--corpus-dir` .*/no: no such folder")


def test_folder_that_is_not_aishells_is_named(tmp_path, capsys):
    message = r"is not AISHELL's: data_aishell/transcript/aishell_transcript_v0.8.txt is missing"
    _fails(capsys, ["prepare", "aishell", "--corpus-dir", tmp_path], message)


def test_corpus_without_audio_is_explained(tmp_path, capsys):
    _corpus(tmp_path, ["A1 今天"], {})
    message = r"no utterance has both audio and text. Expected wav files like data_aishell/wav/train/S0002/.* unpacked"
    _fails(capsys, ["prepare", "aishell", "--corpus-dir", tmp_path, "--data-dir", tmp_path / "data"], message)


@pytest.fixture
def spoilt(tmp_path):
    """One good utterance and one of each fault."""
    lines = ["GOOD1 今天", "NOAUDIO 明天", "TRUNCATED 后天", "EMPTY 上午", "TEXT 下午", "SHORT 早上", "NOTEXT"]
    corpus = _corpus(tmp_path / "corpus", lines, {n: 16000 for n in ("GOOD1", "TRUNCATED", "NOLINE", "NOTEXT")})
    wavs = corpus / "data_aishell" / "wav" / "train" / "S0002"
    (wavs / "TRUNCATED.wav").write_bytes((wavs / "TRUNCATED.wav").read_bytes()[:9000])
    soundfile.write(wavs / "EMPTY.wav", np.zeros(0, np.float32), 16000)
    (wavs / "TEXT.wav").write_text("no sound")
    soundfile.write(wavs / "SHORT.wav", np.zeros(320, np.float32), 16000)
    return corpus


KINDS = {
    "text without audio": "NOAUDIO",
    "audio without text": "NOLINE",
    "unreadable audio": "TRUNCATED",
    "empty text": "NOTEXT",
    "too short": "SHORT",
}


def test_faults_of_a_corpus_are_listed_and_counted(spoilt, tmp_path, capsys):
    flags = ["--data-dir", str(tmp_path / "data"), "--perturb-speed", "false", "--num-jobs", "1"]
    assert main(["prepare", "aishell", "--corpus-dir", str(spoilt), *flags]) == 0
    printed = capsys.readouterr().out
    assert "left out: 7" in printed and "3  unreadable audio (" in printed
    listed = (tmp_path / "data" / "manifests" / "aishell_problems.tsv").read_text(encoding="utf-8")
    for kind, id_ in KINDS.items():
        assert f"{kind}\t{id_}\t" in listed, kind
    assert "truncated: its header says 32000 bytes of samples, but 8956 are there" in listed
    assert "EMPTY.wav: holds no samples (0 s of audio)" in listed and "TEXT.wav: not a sound file" in listed


def test_sound_that_breaks_off_is_listed_when_it_is_read(tmp_path, capsys):
    """The header of a flac is whole, whatever is missing behind it."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("whole", "broken"):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
        soundfile.write(folder / f"{name}.flac", noise, 16000)
        (folder / f"{name}.txt").write_text("a")
    (folder / "broken.flac").write_bytes((folder / "broken.flac").read_bytes()[:9000])
    flags = ["--data-dir", str(tmp_path / "data"), "--perturb-speed", "false", "--num-jobs", "1"]
    assert main(["prepare", "table", str(folder), *flags]) == 0
    listed = (tmp_path / "data" / "manifests" / "table_problems.tsv").read_text()
    assert "unreadable audio\tbroken\t" in listed and "whole" not in listed


def test_strict_makes_faults_an_error(spoilt, tmp_path, capsys):
    flags = ["--data-dir", tmp_path / "data", "--strict", "true"]
    _fails(capsys, ["prepare", "aishell", "--corpus-dir", spoilt, *flags], r"`--strict`: 7 problems:")


def test_dask_without_its_package_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    corpus = _corpus(tmp_path / "corpus", ["A1 今天"], {"A1": 16000})
    monkeypatch.setitem(sys.modules, "distributed", None)
    flags = ["--data-dir", tmp_path / "data", "--dask", "tcp://127.0.0.1:8786"]
    message = r"`--dask` needs distributed: pip install 'stateless-transducer\[dask\]'"
    _fails(capsys, ["prepare", "aishell", "--corpus-dir", corpus, *flags], message)


@pytest.fixture
def lang_dir(tmp_path):
    build_token_table(["今天"], "char").write(tmp_path / "lang")
    return tmp_path / "lang"


def test_training_without_tokens_says_how_to_make_them(tmp_path, capsys):
    flags = ["--lang-dir", tmp_path, "--exp-dir", tmp_path / "exp"]
    _fails(capsys, ["train", *flags], r"holds no tokens.txt; make it with `transducer prepare`")


def test_training_without_cuts_says_what_is_there(tmp_path, lang_dir, capsys):
    (tmp_path / "mine_cuts_train.jsonl.gz").touch()
    flags = ["--lang-dir", lang_dir, "--manifest-dir", tmp_path, "--exp-dir", tmp_path / "exp"]
    _fails(capsys, ["train", *flags], r"aishell_cuts_train.jsonl.gz is missing \(found .*: mine_cuts_train.jsonl.gz\)")
    (tmp_path / "mine_cuts_test.jsonl.gz").touch()
    message = r"aishell_cuts_test.jsonl.gz is missing \(.*\); pass `--prefix mine`, or run `transducer prepare` first"
    _fails(capsys, ["decode", "--model", "m.pt", "--manifest-dir", tmp_path], message)
    _fails(capsys, ["decode", "--test-sets", "dev", "--manifest-dir", tmp_path], r"is missing \(.*\); run `transducer")


@pytest.mark.parametrize("command", ["export onnx --output o --model", "info", "decode --model", "train --init-from"])
def test_folder_of_a_training_in_place_of_a_model_is_explained(tmp_path, capsys, command):
    exp_dir, flags = tmp_path / "exp", []
    exp_dir.mkdir()
    (exp_dir / "epoch-9.pt").touch()
    if command.startswith(("train", "decode")):
        flags = [*write_small_corpus(tmp_path), "--exp-dir", tmp_path / "other"][: 2 if "decode" in command else None]
        (tmp_path / "aishell_cuts_dev.jsonl.gz").rename(tmp_path / "aishell_cuts_test.jsonl.gz")
    message = f"/exp.* `transducer average --exp-dir {exp_dir} --output model.pt` makes a model.*: {exp_dir}/epoch-9.pt"
    _fails(capsys, [*command.split(), exp_dir, *flags], message)


def test_folder_that_cannot_be_written_is_named(tmp_path, lang_dir, capsys):
    # a file where a folder should be stops the superuser, too
    (tmp_path / "file").touch()
    flags = ["--lang-dir", lang_dir, "--exp-dir", tmp_path / "file" / "exp"]
    _fails(capsys, ["train", *flags], r"`--exp-dir` .*/file/exp cannot be written: Not a directory")


def test_resuming_without_its_checkpoint_lists_what_is_there(tmp_path, lang_dir, capsys):
    for epoch in (0, 2):
        (tmp_path / f"epoch-{epoch}.pt").touch()
    flags = ["--lang-dir", lang_dir, "--exp-dir", tmp_path, "--start-epoch", "5"]
    _fails(capsys, ["train", *flags], r"`--start-epoch` 5 needs epoch-4.pt in .*, which holds epoch-0.pt, epoch-2.pt")


def test_checkpoint_that_is_none_is_refused_by_transcribe(tmp_path, capsys):
    (tmp_path / "m.pt").write_text("no model")
    _fails(capsys, ["transcribe", tmp_path / "m.pt", "a.wav"], r"m.pt is not a checkpoint, or is truncated")


class _Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_malicious_checkpoint_is_not_executed(tmp_path, capsys):
    torch.save(_Malice(str(tmp_path / "written")), tmp_path / "epoch-0.pt")
    _fails(capsys, ["decode", "--exp-dir", tmp_path, "--epoch", "0", "--avg", "1"], "cuts_test.jsonl.gz is missing")
    _fails(capsys, ["average", "--exp-dir", tmp_path, "--output", tmp_path / "m.pt"], "epoch-0.pt is refused: it holds")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("import", "model"),
        ("export icefall", "model"),
        ("export torch", "model"),
        ("report --exp-dir exp", "model"),
        ("report --exp-dir exp --model m.pt", "sounds"),
        ("transcribe m.pt", "manifest"),
    ],
)
def test_input_is_not_written_over(tmp_path, capsys, command, name):
    given, link = tmp_path / "p.pt", tmp_path / "link.jit.pt"
    given.write_text("kept")
    link.symlink_to(given)
    message = f"`--output` {link} is the file that `--{name}` {given} names; choose another one."
    _fails(capsys, [*command.split(), f"--{name}", given, "--output", link], message)
    assert given.read_text() == "kept"


@pytest.mark.parametrize(
    ("command", "option", "output"),
    [
        ("import", "onnx", "encoder.onnx"),
        ("import", "onnx", "tokens.txt"),
        ("export icefall", "model", "exp/pretrained.jit.pt"),
        ("export torch", "model", "exp/pretrained.jit.pt"),
    ],
)
def test_files_of_a_folder_are_not_written_over(tmp_path, capsys, command, option, output):
    (tmp_path / "exp").mkdir()
    for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt", "exp/pretrained.jit.pt"):
        (tmp_path / name).write_text("kept")
    arguments = [*command.split(), f"--{option}", tmp_path, "--output", tmp_path / output]
    _fails(capsys, arguments, f"`--output` {tmp_path / output} is the file that `--{option}` {tmp_path / output} names")
    assert (tmp_path / output).read_text() == "kept"


@pytest.mark.parametrize("output", ["epoch-5.pt", "checkpoint-20.pt", "epoch-6.pt", "sub/../epoch-5.pt", "link.pt"])
def test_average_takes_the_place_of_no_checkpoint(tmp_path, capsys, output):
    exp_dir = tmp_path / "exp"
    (exp_dir / "sub").mkdir(parents=True)
    for name in ("epoch-5.pt", "checkpoint-20.pt"):
        (exp_dir / name).write_text("kept")
    (exp_dir / "link.pt").hardlink_to(exp_dir / "epoch-5.pt")
    message = f"`--output` {exp_dir}/{output} has the name of a training checkpoint in `--exp-dir` {exp_dir}."
    _fails(capsys, ["average", "--exp-dir", exp_dir, "--output", exp_dir / output], message)
    assert (exp_dir / "epoch-5.pt").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["train", "--max-duration", "-3"], "`--max-duration` must be above 0 s, but is -3", 2),
        (["train", "--modified-transducer-prob", "1.5"], "`--modified-transducer-prob` must be in 0..1, but is 1.5", 2),
        (["train", "--start-epoch", "30"], r"`--start-epoch` must be in 0..29 \(`--num-epochs` 30\), but is 30", 2),
        (["train", "--num-epochs", "many"], "many", 2),
        (["decode", "--temperature", "inf"], "--temperature: must be a finite number, but is 'inf'", 2),
        (["transcribe", "m.pt", "--blank-penalty", "nan"], "--blank-penalty: must be a finite number, but is 'nan'", 2),
        (["train", "--enable-spec-aug", "maybe"], "must be true or false, but is 'maybe'", 2),
        (["train", "--ctc-loss-scale", "-1"], "`--ctc-loss-scale` must be at least 0, but is -1", 2),
        (["train", "--gain-range-db", "41"], "`--gain-range-db` must be in 0..40 dB, but is 41", 2),
        (["demo", "--num-epochs", "0"], "`--num-epochs` must be at least 1, but is 0", 2),
        (["decode", "--beam-size", "0"], "`--beam-size` must be at least 1, but is 0", 2),
        (
            ["decode", "--beam-size", "8"],
            "`--beam-size` 8 needs a beam: add `--decoding-method modified_beam_search`",
            1,
        ),
        (["decode", "--decoding-method", "magic"], "magic", 2),
        (["prepare", "wikipedia"], "no command 'prepare wikipedia'; commands: prepare aishell", 2),
        (["prepare", "download", "--corpus", "aishell", "--mirror", "ftp://x"], "`--mirror` must begin with http", 2),
        (["teach"], "no command 'teach'; commands: demo", 2),
        (["trian"], "no command 'trian'; did you mean `transducer train`?", 2),
        (["transcribee", "m.pt", "a.wav"], "no command 'transcribee'; did you mean `transducer transcribe`?", 2),
        (["prepare", "tabel"], "no command 'prepare tabel'; did you mean `transducer prepare table`?", 2),
        (["prepair"], "no command 'prepair'; did you mean `transducer prepare`?", 2),
        (["expotr", "onnx"], "no command 'expotr'; did you mean `transducer export onnx`?", 2),
        (["train", "--optimizer", "adamw", "--lr-factor", "3"], "`--lr-factor` 3 needs `--optimizer noam`", 1),
        (["train", "--peak-lr", "0.01"], "`--peak-lr` 0.01 needs `--optimizer adamw`", 1),
        (["train", "--cr-loss-scale", "0.2"], "`--cr-loss-scale` 0.2 needs `--ctc-loss-scale` above 0", 2),
        (["train", "--ref-duration", "9"], "`--ref-duration` 9 needs `--encoder zipformer`", 1),
        (["train", "--lr-epochs", "9"], "`--lr-epochs` 9 needs `--optimizer scaled-adam`", 1),
        (["train", "--optimizer", "scaled-adam", "--warm-step", "9"], "`--warm-step` 9 needs `--optimizer noam` or", 1),
        (["train", "--ema-decay", "0.5", "--average-period", "9"], "`--ema-decay` 0.5 and `--average-period` 9", 2),
        (["average", "--use-ema", "--use-averaged-model", "--exp-dir", "a", "--output", "b"], "`--use-ema` and", 2),
        (["train", "--weight-decay", "0"], "`--weight-decay` 0 needs `--optimizer adamw`", 1),
        (["train", "--decay-epochs", "3"], "`--decay-epochs` 3 needs `--optimizer adamw`", 1),
        (["train", "--ctc-epochs", "3"], "`--ctc-epochs` 3 needs `--ctc-loss-scale` above 0", 1),
        (["train", "--prune-warm-step", "3"], "`--prune-warm-step` 3 needs `--prune-range` above 0", 1),
        (["train", "--lm-scale", "0.5"], "`--simple-lm-scale` 0.5 needs `--prune-range` above 0", 1),
        (["train", "--master-port", "3"], "`--master-port` 3 needs `--world-size` above 1", 1),
        (["train", "--save-every", "0", "--keep-last", "9"], "`--keep-last` 9 needs `--save-every` above 0", 1),
        (["train", "--mix-prob", "0.5"], "`--mix-prob` 0.5 needs `--mix-prefix`", 1),
        (["train", "--lengthen-from-epoch", "2"], "`--lengthen-from-epoch` 2 needs `--silence-s` or `--join-", 1),
        (
            ["train", "--enable-spec-aug", "false", "--num-frame-masks", "2"],
            "`--num-frame-masks` 2 needs `--enable-spec-aug true`",
            1,
        ),
        (
            ["train", "--num-frame-masks", "0", "--frames-mask-size", "9"],
            "`--frames-mask-size` 9 needs `--num-frame-masks` above 0",
            1,
        ),
    ],
)
def test_bad_option_is_named(arguments, message, status, capsys):
    _fails(capsys, arguments, message, status)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (lambda: torch.empty(10**14), r"\(.*DefaultCPUAllocator: can't allocate memory.*\)"),
        (lambda: np.empty(10**15), r"\(Unable to allocate .*\)"),
    ],
)
def test_memory_that_is_not_there_is_one_line(raised, said, capsys):
    assert _guarded("transducer", raised) == 1
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"transducer: error: out of memory {said}; lower `--max-duration`\.\n", printed)


@pytest.mark.parametrize("arguments", [["--help"], ["models"], ["prepare"]])
def test_reader_of_the_output_that_has_gone_is_no_error(arguments, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", output)
        assert main(arguments) == 1
    assert capsys.readouterr().err == ""


def test_package_is_a_program():
    ran = subprocess.run([sys.executable, "-m", "stateless_transducer", "--version"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, f"transducer {__version__}\n")


def test_another_error_of_torch_is_shown_whole():
    with pytest.raises(RuntimeError, match="shape"):
        _guarded("transducer", lambda: torch.zeros(2) + torch.zeros(3).reshape(2, 2))


def test_help_names_every_command_and_loads_no_torch():
    program = "import sys; from stateless_transducer.cli import main; main(['--help']); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("False\n")
    names = ("demo", "prepare aishell", "prepare table", "train", "decode", "compare", "average", "import")
    for name in (*names, "export icefall", "export onnx", "export torch", "info", "report", "transcribe", "stream"):
        assert f"\n  {name} " in printed


def test_help_of_the_commands_loads_no_torch():
    commands = ["train", "decode", "compare", "import", "info", "transcribe", "stream", "demo"]
    commands += [f"export {what}" for what in ("icefall", "onnx", "torch")]
    commands += [f"prepare {what}" for what in ("aishell", "table", "musan", "lang", "download")]
    program = (
        "import sys; from stateless_transducer.cli import main\n"
        f"for command in {commands}:\n"
        "    try: main([*command.split(), '--help'])\n"
        "    except SystemExit: print('shown', command, 'torch' in sys.modules, 'lhotse' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    shown = [line for line in printed.splitlines() if line.startswith("shown ")]
    assert shown == [f"shown {command} False False" for command in commands] and printed.count("--") > len(commands)
