"""The commands of the README, on a tiny synthetic corpus, from speech to text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
import torch
from model_sizes import conformer_model

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.commands import demo
from stateless_transducer.data.augment import Augment
from stateless_transducer.icefall_layouts import icefall_conformer_name
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training import distributed

pytest.importorskip("espeakng_loader", reason="the tiny corpus is spoken by espeak-ng: pip install '.[demo]'")

SIZES = (
    "--num-layers 1 --attention-dim 16 --num-heads 2 --feedforward-dim 16 --conv-kernel 3 --subsampling-channels 4 "
    "--joiner-dim 16 --max-duration 10 --num-buckets 2 --min-utterance-s 0.3 --num-workers 0 "
    "--tensorboard false --log-interval 2 --optimizer adamw --warm-step 4 --ctc-loss-scale 0.5"
).split()


class World(NamedTuple):
    folder: Path
    corpus: Path
    data: Path
    exp: Path

    @property
    def train(self) -> list[str]:
        flags = ["train", "--manifest-dir", self.data / "fbank", "--lang-dir", self.data / "lang_char", *SIZES]
        return [str(flag) for flag in flags]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A corpus of five voices, prepared, and a model trained for two epochs."""
    folder = tmp_path_factory.mktemp("world")
    made = World(folder, folder / "corpus", folder / "data", folder / "exp")
    speakers = "--num-train-speakers 3 --num-dev-speakers 1 --num-test-speakers 1 --utterances-per-speaker 4".split()
    assert main(["prepare", "synthetic", "--corpus-dir", str(made.corpus), *speakers]) == 0
    assert main(["prepare", "aishell", "--corpus-dir", str(made.corpus), "--data-dir", str(made.data)]) == 0
    assert main([*made.train, "--exp-dir", str(made.exp), "--num-epochs", "2"]) == 0
    return made


def _test_wavs(world):
    return sorted((world.corpus / "data_aishell" / "wav" / "test").rglob("*.wav"))


def test_synthetic_corpus_has_aishells_layout(world):
    wavs = sorted((world.corpus / "data_aishell" / "wav").glob("*/S????/BAC009S????W????.wav"))
    assert len(wavs) == 20
    info = soundfile.info(wavs[0])
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    transcript = world.corpus / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    texts = dict(line.split(" ", 1) for line in transcript.read_text(encoding="utf-8").splitlines())
    assert sorted(texts) == sorted(path.stem for path in wavs)
    assert len(set(texts.values())) == 20, "a sentence is said twice"
    words = {line.split()[0] for line in (world.corpus / "resource_aishell" / "lexicon.txt").read_text().splitlines()}
    assert words == {word for text in texts.values() for word in text.split()}
    assert len((world.corpus / "resource_aishell" / "speaker.info").read_text().splitlines()) == 5


@pytest.mark.sweep
def test_synthetic_corpus_is_reproducible(world, tmp_path):
    flags = "--num-train-speakers 3 --num-dev-speakers 1 --num-test-speakers 1 --utterances-per-speaker 4".split()
    assert main(["prepare", "synthetic", "--corpus-dir", str(tmp_path), *flags, "--num-jobs", "1"]) == 0
    for path in _test_wavs(world):
        assert path.read_bytes() == (tmp_path / path.relative_to(world.corpus)).read_bytes()


def test_preparation_writes_icefalls_files(world):
    for split in ("train", "dev", "test"):
        for kind in ("recordings", "supervisions"):
            assert (world.data / "manifests" / f"aishell_{kind}_{split}.jsonl.gz").exists()
        assert (world.data / "fbank" / f"aishell_cuts_{split}.jsonl.gz").exists()
    for name in ("tokens.txt", "words.txt", "lexicon.txt", "text"):
        assert (world.data / "lang_char" / name).exists()


def test_stored_features_equal_the_front_ends(world):
    from lhotse import CutSet

    from stateless_transducer.audio import read_audio, resample
    from stateless_transducer.features import FbankConfig, fbank

    cuts = {cut.id: cut for cut in CutSet.from_file(world.data / "fbank" / "aishell_cuts_train.jsonl.gz")}
    assert len(cuts) == 3 * 12
    for id_, speed in ((min(cuts), 1.0), (f"{min(cuts)}_sp0.9", 0.9), (f"{min(cuts)}_sp1.1", 1.1)):
        samples = read_audio(cuts[id_].recording.sources[0].source, 16000)
        wanted = torch.from_numpy(fbank(resample(samples, 16000 * speed, 16000), FbankConfig()))
        # stored in steps of 1/256
        torch.testing.assert_close(torch.from_numpy(cuts[id_].load_features()), wanted, rtol=0, atol=1 / 512 + 1e-5)
        assert cuts[id_].duration == pytest.approx(cuts[min(cuts)].duration / speed, abs=1e-3)


def test_second_corpus_replaces_neither_tokens_nor_results_of_the_first(world, tmp_path, capsys):
    data, exp = tmp_path / "data", tmp_path / "exp"
    shutil.copytree(world.data, data)
    shutil.copytree(world.exp, exp)
    flags = ["--exp-dir", str(exp), "--manifest-dir", str(data / "fbank"), "--avg", "1"]
    assert main(["decode", *flags]) == 0
    log = exp / "log" / "greedy_search"
    first, tokens = {path: path.read_bytes() for path in log.glob("re*")}, (data / "lang_char/tokens.txt").read_bytes()
    table = tmp_path / "other.csv"
    rows = "".join(f"{path},你好,{split}\n" for split, path in zip(("train", "test"), _test_wavs(world), strict=False))
    table.write_text(f"path,text,split\n{rows}", encoding="utf-8")
    capsys.readouterr()
    for _ in range(2):
        assert main(["prepare", "table", str(table), "--data-dir", str(data), "--prefix", "other"]) == 0
        printed = capsys.readouterr().out
        assert f"{data}/lang_char has the tokens of another corpus and is left unchanged" in printed
        assert f"--lang-dir {data}/lang_other_char" in printed
    assert (data / "lang_char" / "tokens.txt").read_bytes() == tokens
    assert set("你好") < set(TokenTable.read(data / "lang_other_char").symbols)
    assert main(["decode", *flags, "--prefix", "other"]) == 0
    assert {path: path.read_bytes() for path in first} == first
    assert len(list(log.glob("recogs-other-test-epoch-1-avg-1-*.txt"))) == 1


def test_preparing_again_skips_and_says_so(world, capsys):
    assert main(["prepare", "aishell", "--corpus-dir", str(world.corpus), "--data-dir", str(world.data)]) == 0
    assert capsys.readouterr().out.count("already there - skipping") == 5


def test_training_leaves_the_tutorials_files(world):
    names = {path.name for path in world.exp.iterdir()}
    assert {"epoch-0.pt", "epoch-1.pt", "best-train-loss.pt", "best-valid-loss.pt", "log"} <= names
    log = next((world.exp / "log").glob("log-train-*")).read_text()
    lines = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \[\w+\.py:\d+\] (.*)$", log, re.MULTILINE)
    assert lines[:2] == ["Training started", "Device: cpu"]
    # icefall's lines, of each kind the first, in its order
    wanted = (
        r"About to create model",
        r"Number of model parameters: \d+",
        r"epoch 0, learning rate 0",
        r"Epoch 0, batch 0, loss\[loss=\S+, over \d+\.00 frames\. \], tot_loss\[loss=\S+, over \d+\.\d\d frames\. \], "
        r"batch size: \d+, .*",
        r"Computing validation loss",
        r"Epoch 0, validation: loss=\S+, over \d+\.00 frames\. ",
        rf"Saving checkpoint to {world.exp}/epoch-0.pt: .*",
        r"Done!",
    )
    places = [next(i for i, line in enumerate(lines) if re.fullmatch(pattern, line)) for pattern in wanted]
    assert places == sorted(places) and places[-1] == len(lines) - 1
    checkpoint = load_checkpoint(world.exp / "epoch-1.pt")
    position = checkpoint.training_state["position"]
    assert (position["epoch"], position["batch"]) == (2, 0)
    assert (world.exp / "best-train-loss.pt").read_bytes() in [
        (world.exp / f"epoch-{epoch}.pt").read_bytes() for epoch in range(2)
    ]
    assert json.loads((world.exp / "config.json").read_text())["train"]["num_epochs"] == 2
    assert "transducer train --manifest-dir" in (world.exp / "README").read_text()
    assert checkpoint.provenance["command"].startswith("transducer train --manifest-dir")


def test_resumed_training_is_bit_equal(world, tmp_path):
    """Random states, optimizer, order of the data: the second epoch is the same, stopped between or not."""
    resumed = tmp_path / "exp"
    resumed.mkdir()
    shutil.copy(world.exp / "epoch-0.pt", resumed)
    assert main([*world.train, "--exp-dir", str(resumed), "--num-epochs", "2", "--start-epoch", "1"]) == 0
    whole, parts = load_checkpoint(world.exp / "epoch-1.pt"), load_checkpoint(resumed / "epoch-1.pt")
    assert parts.provenance["train_loss"] == whole.provenance["train_loss"]
    for name, value in whole.weights.items():
        assert torch.equal(parts.weights[name], value), name


@pytest.mark.sweep
def test_each_epoch_augments_anew(world, tmp_path, monkeypatch):
    """And without MUSAN, training goes on; the log says so once."""
    seen = []
    plain = Augment.__call__
    monkeypatch.setattr(Augment, "__call__", lambda *given: seen.append(given[2:]) or plain(*given))
    assert main([*world.train, "--exp-dir", str(tmp_path), "--num-epochs", "2"]) == 0
    epochs = [{id_ for id_, number in seen if number == epoch} for epoch in (0, 1)]
    assert epochs[0] == epochs[1] and len(seen) == 2 * len(epochs[0])
    log = next((tmp_path / "log").glob("log-train-*")).read_text()
    assert (
        log.count("No noise is mixed in:") == 1
        and "musan_cuts.jsonl.gz is missing. Create it with `transducer prepare" in log
    )


@pytest.mark.sweep
def test_two_processes_train_one_model(world, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_START_METHOD", "forkserver")
    flags = ["--world-size", "2", "--num-epochs", "1", "--master-port", "12399", "--exp-dir", str(tmp_path)]
    assert main([*world.train, *flags]) == 0
    assert load_checkpoint(tmp_path / "epoch-0.pt").provenance["train_loss"] > 0
    logs = [
        path.read_text() for path in sorted((tmp_path / "log").glob("log-train-*-[01]"), key=lambda path: path.name[-1])
    ]
    # the same weights see the same dev set and come to the same loss; the same learning rate in every batch
    for rank, log in enumerate(logs):
        assert re.search(rf" INFO \[trainer\.py:\d+\] \({rank}/2\) Using DDP\n", log)
    for pattern in (r"validation: loss=\S+", r"learning rate: [\d.e-]+"):
        found = [re.findall(pattern, log) for log in logs]
        assert found[0] == found[1] != []


def test_error_on_a_rank_is_one_line(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "_START_METHOD", "forkserver")
    flags = ["--world-size", "2", "--master-port", "12398", "--exp-dir", str(tmp_path), "--max-utterance-s", "0.4"]
    assert main([*world.train, *flags]) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("transducer: error: 0 utterances left for training, which needs at least 2:")


def test_earlier_run_is_not_overwritten(world, capsys):
    assert main([*world.train, "--exp-dir", str(world.exp)]) == 1
    message = (
        "epoch-1.pt of an earlier run; resume with `--resume true` or with `--start-epoch 2` or choose another folder."
    )
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--optimizer", "noam"], "`--optimizer` was adamw before; a resumed run cannot change it to noam."),
        (
            ["--ctc-loss-scale", "0"],
            "`--ctc-loss-scale above 0` was True before; a resumed run cannot change it to False.",
        ),
        (["--num-layers", "2"], "num_layers was 1 and is 2"),
    ],
)
def test_resuming_with_other_options_is_refused(world, capsys, change, message):
    flags = ["--exp-dir", str(world.exp), "--num-epochs", "3", "--start-epoch", "2"]
    assert main([*world.train, *flags, *change]) == 1
    assert message in capsys.readouterr().err


def test_renamed_checkpoint_is_not_gone_on_with(world, tmp_path, capsys):
    shutil.copy(world.exp / "epoch-0.pt", tmp_path / "epoch-3.pt")
    assert main([*world.train, "--exp-dir", str(tmp_path), "--num-epochs", "9", "--start-epoch", "4"]) == 1
    assert "epoch-3.pt resumes at epoch 1, not 4." in capsys.readouterr().err


def test_changed_corpus_is_prepared_anew(world, tmp_path, capsys):
    corpus, data = tmp_path / "corpus", tmp_path / "data"
    shutil.copytree(world.corpus, corpus)
    command = ["prepare", "aishell", "--corpus-dir", str(corpus), "--data-dir", str(data), "--perturb-speed", "false"]
    assert main(command) == 0
    transcript = corpus / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.write_text(transcript.read_text(encoding="utf-8").replace("BAC009S0002W0121 ", "X "), encoding="utf-8")
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "made anew, since these changed: transcripts" in printed and "1  text without audio (X" in printed
    assert re.search(r"test\s+3 utterances", printed)
    # the texts are the same ones
    assert printed.count("skipping") == 1 and "lang_char/tokens.txt: already there" in printed


@pytest.mark.parametrize(
    ("method", "suffix"),
    [
        ("greedy_search", "context-2-max-sym-per-frame-1"),
        ("modified_beam_search", "modified_beam_search-beam-size-4"),
    ],
)
def test_decode_writes_icefalls_files_and_a_table(world, golden, capsys, method, suffix):
    flags = ["--epoch", "1", "--avg", "2", "--exp-dir", str(world.exp), "--manifest-dir", str(world.data / "fbank")]
    assert main(["decode", *flags, "--decoding-method", method]) == 0
    folder = world.exp / "log" / method
    for kind in ("recogs", "errs", "wer-summary"):
        assert (folder / f"{kind}-test-epoch-1-avg-2-{suffix}.txt").exists()
    printed = capsys.readouterr().out
    assert "CER %" in printed and "95 % interval" in printed
    recogs = (folder / f"recogs-test-epoch-1-avg-2-{suffix}.txt").read_text(encoding="utf-8").splitlines()
    assert len(recogs) == 2 * 4 and recogs[0].startswith("BAC009S0002W0121:\tref=['")
    summary = json.loads((folder / f"result-test-epoch-1-avg-2-{suffix}.json").read_text(encoding="utf-8"))
    assert summary["averaged"] == ["epoch-0.pt", "epoch-1.pt"] and summary["search"]["decoding_method"] == method
    assert summary["speech_s"] == pytest.approx(
        sum(soundfile.info(path).duration for path in _test_wavs(world)), abs=0.1
    )
    interval = summary["confidence_interval"]
    assert f"{interval['low']:.2f}..{interval['high']:.2f}" in printed
    # both are rounded
    assert summary["wall_s"] == pytest.approx(summary["real_time_factor"] * summary["speech_s"], abs=0.01)
    log = next(folder.glob(f"log-decode-epoch-1-avg-2-{suffix}-20??-*")).read_text(encoding="utf-8")
    for line in ("Decoding started\n", "batch 0/?, cuts processed until now is 4\n", "Done!\n"):
        assert line in log
    icefalls = (golden / "text" / "log_lines.txt").read_text(encoding="utf-8").split("INFO The")
    (wanted,) = (_shape(f"INFO The{lines}") for lines in icefalls if method in lines)
    assert wanted in _shape(log)
    # two results of the same utterances
    assert main(["compare", str(folder), str(folder)]) == 0
    assert re.search(r"p value, two-sided\s+1\n", capsys.readouterr().out)


def _shape(log):
    """Without what differs from run to run: times, places, folders, numbers."""
    log = re.sub(r"^\d+-\S+ \S+ (?=[A-Z]+ )|\S+/(?=\w+_search/)|\[\w+\.py:\d+\] ", "", log, flags=re.MULTILINE)
    return re.sub(r"\d+(\.\d+)?", "0", log)


def test_model_of_icefalls_is_decoded_as_in_the_tutorial(world, tmp_path):
    """An exported file is taken as epoch-9999.pt."""
    lang_dir = world.data / "lang_char"
    sizes = conformer_model(
        len(TokenTable.read(lang_dir)), num_layers=1, attention_dim=16, num_heads=2, feedforward_dim=16, joiner_dim=16
    )
    weights = {icefall_conformer_name(name): value for name, value in build_model(sizes).state_dict().items()}
    torch.save({"model": weights}, tmp_path / "pretrained.pt")
    flags = ["--lang-dir", str(lang_dir), "--output", str(tmp_path / "exp" / "epoch-9999.pt")]
    assert main(["import", "--checkpoint", str(tmp_path / "pretrained.pt"), *flags]) == 0
    flags = ["--exp-dir", str(tmp_path / "exp"), "--manifest-dir", str(world.data / "fbank")]
    assert main(["decode", *flags, "--epoch", "9999", "--avg", "1"]) == 0
    folder = tmp_path / "exp" / "log" / "greedy_search"
    assert (folder / "recogs-test-epoch-9999-avg-1-context-2-max-sym-per-frame-1.txt").exists()


@pytest.fixture(scope="module")
def model(world) -> Path:
    path = world.folder / "model.pt"
    assert main(["average", "--exp-dir", str(world.exp), "--output", str(path)]) == 0
    return path


def test_averaged_model_has_no_training_state(model):
    assert load_checkpoint(model).training_state is None


def test_transcribe_prints_a_line_a_file_and_goes_on_after_a_bad_one(world, model, capsys, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    good = [str(path) for path in _test_wavs(world)[:2]]
    assert main(["transcribe", str(model), good[0], str(tmp_path / "bad.wav"), good[1]]) == 1
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == good
    assert "bad.wav: not a sound file" in printed.err and "1 of 3 sounds could not be read" in printed.err


def test_transcribe_json_has_times(world, model, capsys):
    assert main(["transcribe", str(model), str(_test_wavs(world)[0]), "--output-format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (segment,) = found["segments"]
    assert len(segment["tokens"]) == len(segment["times"]) == len(segment["log_probs"])
    assert found["duration"] > 0.5 and all(0 <= time <= found["duration"] for time in segment["times"])


def test_report_is_one_page_with_pictures_inside(world, model, tmp_path):
    page = tmp_path / "report.html"
    wav = str(_test_wavs(world)[0])
    flags = ["--exp-dir", str(world.exp), "--model", str(model), "--output", str(page)]
    assert main(["report", *flags, "--sounds", wav, "--references", "一<二"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2 and "一&lt;二" in text and "http" not in text.replace("www.w3", "")


def test_characters_unknown_to_the_model_are_counted(world, model, capsys, tmp_path):
    (tmp_path / "t.tsv").write_text(f"path\ttext\tsplit\n{_test_wavs(world)[0]}\t鑫今\ttest\n", encoding="utf-8")
    assert main(["prepare", "table", str(tmp_path / "t.tsv"), "--data-dir", str(tmp_path)]) == 0
    flags = ["--exp-dir", str(world.exp), "--manifest-dir", str(tmp_path / "fbank"), "--prefix", "table"]
    assert main(["decode", *flags]) == 0
    assert "test: the token table lacks 1 unit of the references, counted as errors: 鑫" in capsys.readouterr().err


@pytest.mark.sweep
def test_demo_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    tiny = replace(demo.SIZES.encoder, num_layers=1, attention_dim=16, num_heads=2, feedforward_dim=16)
    monkeypatch.setattr(demo, "SIZES", replace(demo.SIZES, encoder=tiny))
    size = "--num-train-speakers 2 --num-dev-speakers 1 --num-test-speakers 1 --utterances-per-speaker 3".split()
    command = ["demo", "--dir", str(tmp_path), "--num-epochs", "2", *size]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "minutes" in printed.splitlines()[0] and "All done in" in printed
    assert (tmp_path / "report.html").stat().st_size > 10_000
    first = (tmp_path / "exp" / "epoch-0.pt").read_bytes()
    (tmp_path / "exp" / "epoch-1.pt").unlink()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/exp: resuming from epoch-0.pt" in printed and "All done in" in printed
    assert (tmp_path / "exp" / "epoch-0.pt").read_bytes() == first
    assert main(command) == 0
    assert "already trained for 2 epochs - skipping" in capsys.readouterr().out
    assert "the same command\n" in (tmp_path / "exp" / "README").read_text(encoding="utf-8")
    # with the same corpus, and a model of its own
    assert main([*command, "--streaming", "true", "--num-epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"greedy_search: CER [\d.]+ % of whole utterances, [\d.]+ % of live sound", printed)
    assert (tmp_path / "report-streaming.html").exists() and (tmp_path / "exp" / "epoch-0.pt").read_bytes() == first
    assert load_checkpoint(tmp_path / "model-streaming.pt").model_config.is_causal
