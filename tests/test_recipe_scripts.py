"""The scripts of ``egs/aishell/ASR/transducer_stateless_modified``: icefall's options, files and words."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from model_sizes import SMALL_ZIPFORMER, zipformer_model
from small_corpus import TINY, TOKENS, write_small_corpus

from stateless_transducer.checkpoint import Checkpoint, load_checkpoint, skeleton
from stateless_transducer.cli import COMMANDS, main
from stateless_transducer.commands.recipe import IcefallSwitches
from stateless_transducer.commands.shared.option_groups import options_of
from stateless_transducer.features import FbankConfig
from stateless_transducer.icefall import save_icefall
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.recogs import read_recogs
from stateless_transducer.text.tokens import TokenTable, build_token_table
from stateless_transducer.training.weight_averages import average_checkpoints

EGS = Path(__file__).parents[1] / "egs"
SCRIPTS = EGS / "aishell" / "ASR" / "transducer_stateless_modified"

# of icefall's scripts, with its defaults
DATA = (
    "--manifest-dir data/fbank --max-duration 200 --bucketing-sampler true --num-buckets 15 --concatenate-cuts false "
    "--duration-factor 1.0 --gap 1.0 --on-the-fly-feats false --shuffle true --drop-last true --return-cuts true "
    "--num-workers 2 --enable-spec-aug true --spec-aug-time-warp-factor 80 --enable-musan true"
)
SEARCH = (
    "--beam-size 4 --beam 4 --max-contexts 4 --max-states 8 --num-paths 200 --nbest-scale 0.5 --context-size 2 "
    "--max-sym-per-frame 1"
)
EXP = "--exp-dir transducer_stateless_modified/exp"
ICEFALLS = {
    "train": f"--world-size 1 --master-port 12354 --tensorboard true --num-epochs 30 --start-epoch 0 {EXP} "
    f"--lang-dir data/lang_char --lr-factor 5.0 --context-size 2 --modified-transducer-prob 0.25 {DATA}",
    "decode": f"--epoch 30 --avg 10 {EXP} --lang-dir data/lang_char --decoding-method greedy_search {SEARCH} {DATA}",
    "export": f"--epoch 20 --avg 10 {EXP} --jit false --tokens data/lang_char/tokens.txt --context-size 2",
    "pretrained": f"--checkpoint pretrained.pt --lang-dir data/lang_char --method greedy_search --sample-rate 16000 "
    f"{SEARCH} a.wav b.wav",
}


def _run(script, *arguments):
    """Status of a script, run in this process."""
    path = SCRIPTS / f"{script}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(path), run_name="__main__")
    return stopped.value.code


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A tiny model, trained for two epochs; the corpus is beside."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("recipe")
    flags = [*write_small_corpus(folder), "--tensorboard", "true", "--subsampling-channels", "16"]
    assert _run("train", *flags, "--exp-dir", folder / "exp", "--num-epochs", 2, "--max-duration", 6) == 0
    return folder / "exp"


def _decoding(exp):
    return "--exp-dir", exp, "--manifest-dir", exp.parent, "--test-sets", "dev"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("train", "train.py: error: `--lang-dir` data/lang_char holds no tokens.txt"),
        ("decode", "decode.py: error: data/fbank/aishell_cuts_test.jsonl.gz is missing"),
        ("export", "export.py: error: `--epoch` 20 `--avg` 10 needs epoch-11.pt"),
        ("pretrained", "pretrained.py: error: pretrained.pt: no such"),
    ],
)
def test_all_options_of_icefalls_are_understood(script, message, tmp_path, monkeypatch, capsys):
    """What is wrong is only that nothing is there."""
    monkeypatch.chdir(tmp_path)
    assert _run(script, *ICEFALLS[script].split()) == 1
    assert message in capsys.readouterr().err


SIZES_OF_ZIPFORMER = (
    "--num-encoder-layers 2,2,3,4,3,2 --downsampling-factor 1,2,4,8,4,2 --feedforward-dim 512,768,1024,1536,1024,768 "
    "--num-heads 4,4,4,8,4,4 --encoder-dim 192,256,384,512,384,256 --query-head-dim 32 --value-head-dim 12 "
    "--pos-head-dim 4 --pos-dim 48 --encoder-unmasked-dim 192,192,256,256,256,192 "
    "--cnn-module-kernel 31,31,15,15,15,31 --decoder-dim 512 --joiner-dim 512 --causal false"
)
HEADS = (
    "--chunk-size 16 --left-context-frames 128 --use-transducer true --use-ctc false --use-cr-ctc false "
    "--use-attention-decoder false"
)
ICEFALLS_ZIPFORMER = {
    "train": "--world-size 2 --master-port 12354 --tensorboard true --num-epochs 60 --start-batch 0 --base-lr 0.045 "
    "--lr-batches 7500 --lr-epochs 18 --ref-duration 600 --context-size 1 --prune-range 5 --lm-scale 0.25 "
    "--am-scale 0.0 --simple-loss-scale 0.5 --ctc-loss-scale 0.2 --seed 42 --print-diagnostics false --inf-check false "
    "--save-every-n 4000 --keep-last-k 30 --average-period 200 --use-fp16 1 --use-transducer true --use-ctc false "
    "--use-attention-decoder false --use-cr-ctc false --exp-dir zipformer/exp --lang-dir data/lang_char "
    f"--chunk-size 16,32,64,-1 --left-context-frames 64,128,256,-1 {SIZES_OF_ZIPFORMER} {DATA}",
    "decode": f"--epoch 54 --avg 17 --use-averaged-model true {HEADS} --exp-dir zipformer/exp "
    f"--lang-dir data/lang_char --decoding-method greedy_search {SEARCH} {SIZES_OF_ZIPFORMER} {DATA}",
    "export": f"--epoch 54 --avg 17 --use-averaged-model true {HEADS} --jit false --tokens data/lang_char/tokens.txt "
    f"--context-size 1 {SIZES_OF_ZIPFORMER}",
    "pretrained": "--checkpoint pretrained.pt --tokens data/lang_char/tokens.txt --method greedy_search "
    f"--sample-rate 16000 {SEARCH} {SIZES_OF_ZIPFORMER} a.wav",
}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("train", "train.py: error: `--lang-dir` data/lang_char holds no tokens.txt"),
        ("decode", "decode.py: error: data/fbank/aishell_cuts_test.jsonl.gz is missing"),
        ("export", "export.py: error: `--epoch` 54 `--avg` 17 needs epoch-37.pt, epoch-54.pt"),
        ("pretrained", "pretrained.py: error: pretrained.pt: no such"),
    ],
)
def test_all_options_of_icefalls_zipformer_are_understood(script, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _run(f"../zipformer/{script}", *ICEFALLS_ZIPFORMER[script].split()) == 1
    assert message in capsys.readouterr().err


def test_numbers_of_the_zipformer_are_icefalls(monkeypatch, capsys):
    """Its switches as well; losses that training lacks are refused."""
    numbers = runpy.run_path(str(SCRIPTS.parent / "zipformer" / "train.py"))["NUMBERS"]
    model = skeleton(ModelConfig.from_sizes({**numbers.model.sizes(), "vocab_size": 4336}))
    # less the two projections of the simple loss
    assert sum(parameter.numel() for parameter in model.parameters()) == 73_412_551 - 2 * 2_224_368
    config = IcefallSwitches(use_bf16=True, use_ctc=True).applied_to(numbers.train)
    assert IcefallSwitches(use_ctc=True, use_cr_ctc=True).applied_to(numbers.train).optim.cr_loss_scale == 0.2
    assert (config.precision, config.optim.ctc_loss_scale, config.optim.ctc_epochs) == ("bf16", 0.2, 60)
    assert IcefallSwitches().applied_to(numbers.train) == numbers.train
    for flag, value in (
        ("--use-attention-decoder", "true"),
        ("--use-transducer", "false"),
        ("--start-batch", "4000"),
    ):
        _fails(capsys, 2, f"`{flag}` must be", "../zipformer/train", flag, value)


def test_numbers_are_the_tutorials():
    numbers = runpy.run_path(str(SCRIPTS / "train.py"))["NUMBERS"]
    model = skeleton(ModelConfig.from_sizes({**numbers.model.sizes(), "vocab_size": 4336}))
    assert sum(parameter.numel() for parameter in model.parameters()) == 87_939_824
    given = ICEFALLS["train"].split()
    wanted = dict(zip(given[::2], given[1::2], strict=True))
    train, optim, data = numbers.train, numbers.train.optim, numbers.data
    assert f"{train.num_epochs} {optim.lr_factor} {optim.modified_transducer_prob}" == " ".join(
        wanted[flag] for flag in ("--num-epochs", "--lr-factor", "--modified-transducer-prob")
    )
    assert (train.exp_dir, numbers.lang_dir, data.manifest_dir) == tuple(
        Path(wanted[flag]) for flag in ("--exp-dir", "--lang-dir", "--manifest-dir")
    )
    assert f"{data.max_duration} {data.num_buckets}" == f"{wanted['--max-duration']} {wanted['--num-buckets']}"


RECIPES = ("transducer_stateless_modified", "transducer_stateless_modified-2", "pruned_transducer_stateless")


@pytest.mark.parametrize("folder", [*RECIPES, "zipformer"])
@pytest.mark.parametrize("script", ["train", "decode", "export", "pretrained"])
def test_script_can_be_started_and_knows_its_recipe(script, folder):
    path = SCRIPTS.parent / folder / f"{script}.py"
    assert path.stat().st_mode & 0o111 and path.read_text().startswith("#!/usr/bin/env python3\n")
    if script != "pretrained":
        numbers = runpy.run_path(str(path))["NUMBERS"]
        exp_dir = numbers.train.exp_dir if script == "train" else numbers.exp_dir
        assert exp_dir == Path(folder, "exp")


def test_numbers_of_the_other_recipes_differ_where_they_are_meant_to():
    plain, mixed, pruned = (runpy.run_path(str(SCRIPTS.parent / name / "train.py"))["NUMBERS"] for name in RECIPES)
    assert (plain.model, plain.data) == (pruned.model, pruned.data)
    assert (pruned.train.prune.prune_range, plain.train.prune.prune_range) == (5, 0)
    assert replace(mixed.data, mix_prefix=None) == plain.data and mixed.train.optim == plain.train.optim
    assert mixed.data.mix_prefix == "aidatatang_200zh" and mixed.lang_dir != plain.lang_dir


SCRIPTS_OF_ALL_RECIPES = sorted(SCRIPTS.parents[2].glob("*/ASR/**/*.py"))


@pytest.mark.parametrize("path", SCRIPTS_OF_ALL_RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_script_outside_the_environment_says_so(path):
    # -S: as a Python without this package
    ran = subprocess.run([sys.executable, "-S", path], capture_output=True, text=True, env={}, cwd=path.parent)
    assert ran.returncode == 1
    message = rf"{path.name}: error: No module named '\w+'. Activate the environment in which .*"
    assert re.fullmatch(message, ran.stderr.strip())


@pytest.mark.parametrize("script", ["train", "decode", "export", "pretrained"])
def test_script_explains_itself(script, capsys):
    assert _run(script, "--help") == 0
    assert f"usage: {SCRIPTS / script}.py" in capsys.readouterr().out.replace("\n", "")


# prepare.sh has options of its own, leave_one_out.sh calls the others
SHELL_SCRIPTS = [path for name in ("run", "other_*", "finetune", "english") for path in EGS.glob(f"*/ASR/{name}.sh")]


@pytest.mark.parametrize("path", sorted(SHELL_SCRIPTS), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_options_of_shell_scripts_exist(path):
    lines = path.read_text().replace("\\\n", " ").splitlines()
    text = "\n".join(line.partition("# ")[0] for line in lines)
    commands = set(re.findall(r"\btransducer ((?:prepare|export) \w+|[a-z]+)", text))
    assert commands <= COMMANDS.keys() and "decode" in commands
    modules = (import_module(f"stateless_transducer.commands.{COMMANDS[name][0]}") for name in commands)
    known = {name for module in modules for option in options_of(module.Options) for name in option.names}
    for script in path.parent.glob("*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
    assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", text)) <= known


def test_training_leaves_the_tutorials_files(exp):
    names = {path.name for path in exp.iterdir()}
    assert {"epoch-0.pt", "epoch-1.pt", "best-train-loss.pt", "best-valid-loss.pt", "tensorboard", "log"} <= names
    assert list((exp / "tensorboard").glob("events.out.tfevents.*"))
    (log,) = (exp / "log").glob("log-train-20??-??-??-??-??-??")
    assert f"Command: {SCRIPTS}/train.py --manifest-dir" in log.read_text()


def test_training_goes_on_from_an_epoch(exp, tmp_path, capsys):
    """--start-epoch 2 --num-epochs 3: from epoch-1.pt, three epochs in all."""
    shutil.copy(exp / "epoch-1.pt", tmp_path)
    corpus = "--manifest-dir", exp.parent, "--lang-dir", exp.parent / "lang", *TINY, "--subsampling-channels", 16
    assert _run("train", *corpus, "--exp-dir", tmp_path, "--num-epochs", 3, "--start-epoch", 2) == 0
    assert f"Loading checkpoint from {tmp_path}/epoch-1.pt: resumes with epoch 2, batch 0," in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("epoch-*.pt")) == ["epoch-1.pt", "epoch-2.pt"]


@pytest.mark.parametrize("flag", ["--decoding-method", "--method"])
@pytest.mark.parametrize(
    ("method", "tail"),
    [
        ("greedy_search", "context-2-max-sym-per-frame-1"),
        ("beam_search", "beam_search-beam-size-4"),
        ("modified_beam_search", "modified_beam_search-beam-size-4"),
    ],
)
def test_results_of_each_method_are_in_its_folder(exp, flag, method, tail):
    folder = exp / "log" / method
    shutil.rmtree(folder, ignore_errors=True)
    assert _run("decode", *_decoding(exp), "--epoch", 1, "--avg", 2, flag, method) == 0
    for kind in ("recogs", "errs", "wer-summary"):
        assert (folder / f"{kind}-dev-epoch-1-avg-2-{tail}.txt").is_file()
    assert len(list(folder.glob(f"log-decode-epoch-1-avg-2-{tail}-20??-??-??-??-??-??"))) == 1


def test_epoch_and_average_need_not_be_named(exp, capsys):
    assert _run("decode", *_decoding(exp)) == 0
    assert "averaging ['epoch-1.pt']" in capsys.readouterr().err


def test_options_without_meaning_are_said_to_have_none(exp, capsys):
    plain, idle = (_run("decode", *_decoding(exp), *extra) for extra in ([], DATA.split()[4:]))
    assert plain == idle == 0
    said = re.findall(r"^`(--[\w-]+)` has no effect here \(see --help-all\)\.$", capsys.readouterr().err, re.MULTILINE)
    # the data's options that do mean something
    assert {*DATA.split()[4::2]} - {*said} == {"--on-the-fly-feats", "--num-workers"}


def test_exported_weights_are_icefalls_and_can_be_transcribed_with(exp, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", torch.randn(16000).mul(0.1).clamp(-1, 1).numpy(), 16000)
    flags = "--exp-dir", exp, "--epoch", 1, "--avg", 2, "--tokens", exp.parent / "lang" / "tokens.txt"
    assert _run("export", *flags) == 0
    assert f"averaging ['epoch-0.pt', 'epoch-1.pt']\nSaved to {exp}/pretrained.pt\n" in capsys.readouterr().out
    weights = torch.load(exp / "pretrained.pt", weights_only=True)
    assert list(weights) == ["model"] and "encoder.encoder_embed.conv.0.weight" in weights["model"]
    for name in ("m.pt", "m.safetensors"):
        assert main(["average", "--exp-dir", str(exp), "--avg", "2", "--output", str(tmp_path / name)]) == 0
    lang = "--lang-dir", exp.parent / "lang"
    found = []
    for model in (exp / "pretrained.pt", tmp_path / "m.pt", tmp_path / "m.safetensors"):
        capsys.readouterr()
        assert _run("pretrained", "--checkpoint", model, *lang, tmp_path / "a.wav") == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] == found[2] and found[0].startswith(f"{tmp_path / 'a.wav'}:\n")


@pytest.mark.parametrize(
    # a model with random weights is silent without the penalty
    "method",
    [
        "greedy_search --blank-penalty 2".split(),
        *(
            pytest.param(f"{method} --blank-penalty 2".split(), marks=pytest.mark.sweep)
            for method in ("beam_search", "modified_beam_search")
        ),
    ],
)
def test_icefalls_model_says_what_it_says_after_import(golden, tmp_path, capsys, method):
    """And a file that cannot be read does not keep the others from being read."""
    lang = tmp_path / "lang_char"
    build_token_table(["一二三四五六七八九十百千万今明后天早上下午晚的是不在"], "char").write(lang)
    generator = torch.Generator().manual_seed(7)
    sounds = [tmp_path / f"{name}.wav" for name in "abc"]
    for sound, seconds in ((sounds[0], 1), (sounds[2], 2)):
        wave = torch.randn(16000 * seconds, generator=generator).mul(0.1).clamp(-1, 1)
        soundfile.write(sound, wave.numpy(), 16000)
    sounds[1].write_text("no sound")
    model = golden / "r" / "pretrained.pt"
    assert _run("pretrained", "--checkpoint", model, "--lang-dir", lang, "--method", *method, *sounds) == 1
    printed = capsys.readouterr()
    assert f"{sounds[1]}: not a sound file" in printed.err
    import_flags = ["--checkpoint", str(model), "--lang-dir", str(lang), "--output", str(tmp_path / "m.pt")]
    assert main(["import", *import_flags]) == 0
    capsys.readouterr()
    flags = ["--output-format", "json", "--decoding-method", *method, str(sounds[0]), str(sounds[2])]
    assert main(["transcribe", str(tmp_path / "m.pt"), *flags]) == 0
    found = [json.loads(line)["segments"][0]["tokens"] for line in capsys.readouterr().out.splitlines()]
    assert all(found)
    wanted = (f"{sound}:\n{' '.join(tokens)}\n\n" for sound, tokens in zip(sounds[::2], found, strict=True))
    assert printed.out == "".join(wanted)


def test_pretrained_takes_the_sizes_that_icefalls_zipformer_does_not_show(tmp_path, capsys):
    tokens = build_token_table(["一二三四五六七八"], "char")
    tokens.write(tmp_path / "lang")
    encoder = replace(SMALL_ZIPFORMER, causal=True)
    config = zipformer_model(len(tokens), encoder, decoder_dim=12, joiner_dim=20)
    save_icefall(tmp_path / "p.pt", Checkpoint(build_model(config).state_dict(), config, FbankConfig(), tokens))
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    flags = ["--checkpoint", tmp_path / "p.pt", "--lang-dir", tmp_path / "lang"]
    sizes = [("--num-heads", "2,4,2"), ("--chunk-size", "8"), ("--left-context-frames", "16")]
    for flag, value in sizes:
        _fails(capsys, 1, f"the weights do not show `{flag}`", "../zipformer/pretrained", *flags, tmp_path / "a.wav")
        flags += [flag, value]
    assert _run("../zipformer/pretrained", *flags, tmp_path / "a.wav") == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.wav'}:\n")


def test_pretrained_takes_one_channel_and_cuts_where_it_is_told_to(golden, tmp_path, capsys):
    """icefall takes channel 0, and never cuts."""
    lang = tmp_path / "lang_char"
    build_token_table(["一二三四五六七八九十百千万今明后天早上下午晚的是不在"], "char").write(lang)
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(2, 40000, generator=generator).mul(0.1).clamp(-1, 1).numpy()
    soundfile.write(tmp_path / "left.wav", left, 16000)
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], axis=1), 16000)

    def text(name, *flags):
        command = ["--checkpoint", golden / "r" / "pretrained.pt", "--lang-dir", lang, "--blank-penalty", "2", *flags]
        assert _run("pretrained", *command, tmp_path / name) == 0
        return capsys.readouterr().out.splitlines()[1]

    whole = text("left.wav")
    assert whole == text("both.wav", "--channel", "0") != text("both.wav")
    assert text("left.wav", "--max-segment-s", "2", "--vad", "energy") != whole


def _fails(capsys, status, message, *command):
    assert _run(*command) == status
    printed = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err).split())
    assert message in printed and "Traceback" not in printed


def test_search_that_is_not_here_is_refused(exp, capsys):
    message = "invalid choice 'fast_beam_search'"
    _fails(capsys, 2, message, "decode", *_decoding(exp), "--decoding-method", "fast_beam_search")


@pytest.mark.sweep
def test_jit_writes_a_scripted_model(exp, capsys):
    assert _run("export", "--exp-dir", exp, "--epoch", 1, "--avg", 2, "--jit", "true") == 0
    assert f"Saved to {exp}/cpu_jit.pt" in capsys.readouterr().out
    features, lens = torch.randn(1, 60, 80), torch.tensor([60])
    model = average_checkpoints([exp / "epoch-0.pt", exp / "epoch-1.pt"]).model()
    found, wanted = (each.encode(features, lens)[0] for each in (torch.jit.load(str(exp / "cpu_jit.pt")), model))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("script", ["decode", "export"])
def test_other_tokens_or_context_than_said_are_refused(script, exp, tmp_path, capsys):
    given = _decoding(exp) if script == "decode" else ("--exp-dir", exp)
    build_token_table(["xyz"], "char").write(tmp_path)
    message = f"{script}.py: error: `--lang-dir` {tmp_path}: the model was trained with other tokens."
    _fails(capsys, 1, message, script, *given, "--lang-dir", tmp_path)
    message = f"{script}.py: error: `--context-size` is 1, but that of the model is 2."
    _fails(capsys, 1, message, script, *given, "--context-size", 1)
    assert TOKENS == load_checkpoint(exp / "epoch-1.pt").token_table
    same = "--lang-dir", exp.parent / "lang", "--context-size", 2
    assert _run(script, *given, *same) == 0


def test_pretrained_without_sounds_or_tokens_says_so(exp, golden, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _fails(capsys, 2, "Name at least one sound file.", "pretrained", "--checkpoint", exp / "epoch-1.pt")
    message = "pretrained.py: error: `--lang-dir` data/lang_char holds no tokens.txt"
    _fails(capsys, 1, message, "pretrained", "--checkpoint", golden / "r" / "pretrained.pt", "a.wav")
    _fails(capsys, 1, "a.wav: no such file", "pretrained", "--checkpoint", exp / "epoch-1.pt", "a.wav")


@pytest.mark.sweep
@pytest.mark.parametrize("unit", ["char", "bbpe"])
def test_zipformer_is_trained_decoded_exported_and_used(unit, tmp_path, capsys):
    """With the scripts alone; results are in characters for either unit."""
    corpus = write_small_corpus(tmp_path, count=8)[:2]
    build_token_table(["abc", "defgh", "ca"], unit, vocab_size=40).write(tmp_path / "lang")
    exp, lang = tmp_path / "exp", ["--lang-dir", tmp_path / "lang"]
    sizes = (
        "--encoder-dim 16 --encoder-unmasked-dim 12 --feedforward-dim 16 --num-heads 2 --query-head-dim 4 "
        "--value-head-dim 4 --pos-head-dim 2 --pos-dim 8 --cnn-module-kernel 5 --num-encoder-layers 1 "
        "--downsampling-factor 1,2 --joiner-dim 16 --decoder-dim 16"
    )
    options = (
        "--num-epochs 2 --max-duration 4 --num-workers 0 --min-utterance-s 0.3 --spec-aug-time-warp-factor 0 "
        "--average-period 1 --prune-warm-step 2 --tensorboard false --use-ctc true --use-cr-ctc true"
    )
    assert _run("../zipformer/train", *corpus, *lang, *sizes.split(), *options.split(), "--exp-dir", exp) == 0
    assert _run("../zipformer/decode", *_decoding(exp), *lang, "--epoch", 1, "--avg", 1) == 0
    (recogs,) = (exp / "log").rglob("recogs-dev-*.txt")
    references = ["".join(utterance.reference) for utterance in read_recogs(recogs)]
    texts = [cut.supervisions[0].text for cut in CutSet.from_file(tmp_path / "aishell_cuts_dev.jsonl.gz")]
    assert sorted(references) == sorted(texts)
    assert _run("../zipformer/export", "--exp-dir", exp, "--epoch", 1, "--avg", 1) == 0
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    capsys.readouterr()
    # an untrained model is silent without the penalty
    flags = ["--checkpoint", exp / "pretrained.pt", *lang, "--num-heads", 2, "--blank-penalty", 9]
    assert _run("../zipformer/pretrained", *flags, tmp_path / "a.wav") == 0
    name, tokens = capsys.readouterr().out.splitlines()[:2]
    assert name == f"{tmp_path / 'a.wav'}:" and set(tokens.split()) <= set(TokenTable.read(tmp_path / "lang").symbols)
