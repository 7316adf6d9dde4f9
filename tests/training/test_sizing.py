"""``--size``: the model, batches and schedule that suit data and machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_corpus import write_small_corpus

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.commands import train
from stateless_transducer.commands.shared.sizes import replaced
from stateless_transducer.commands.train import ModelFlags
from stateless_transducer.model.config import ZIPFORMER_SIZES, DecoderConfig, ZipformerConfig
from stateless_transducer.model.sizes import named_sizes
from stateless_transducer.training import sizing
from stateless_transducer.training.memory import stored_bytes
from stateless_transducer.training.sizing import Machine, choose

GIB = 2**30
LAPTOP, SERVER = Machine("a CPU", 2, 3 * GIB), Machine("a CPU", 64, 200 * GIB)
CARD, SMALL_CARD = Machine("a GPU", 0, 40 * GIB), Machine("a GPU", 0, 0.4 * GIB)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    """Flags of a corpus alone, without sizes of a model."""
    flags = write_small_corpus(tmp_path_factory.mktemp("corpus"), count=8)
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [word for flag, value in pairs if flag in ("--manifest-dir", "--lang-dir") for word in (flag, value)]


def _build(corpus: list[str], hours: float):
    """Builder of tasks with the hours in utterances of 12 s, by their lengths."""
    options = train.parse_options(train.Options, "train", corpus, "", train.Options())

    def build(settings):
        task = train._task(replaced(options, settings), "", warn=lambda text: None, tell=lambda text: None)
        numbers = np.zeros(round(hours * 300), int)
        lengths = task.data.lengths.of(numbers)
        lengths = replace(lengths, seconds=np.full(len(numbers), 12.0))
        training_set = replace(task.data.training_set, numbers=numbers, lengths=lengths)
        return replace(task, data=replace(task.data, training_set=training_set))

    return build


@pytest.mark.parametrize(
    ("hours", "machine", "size"),
    [
        (1, CARD, "tiny"),
        (20, LAPTOP, "small"),
        pytest.param(200, LAPTOP, "tiny", marks=pytest.mark.sweep),
        (200, CARD, "medium"),
        pytest.param(100, SERVER, "small", marks=pytest.mark.sweep),
        pytest.param(200, SMALL_CARD, "small", marks=pytest.mark.sweep),
    ],
)
def test_size_follows_hours_device_and_memory(corpus, monkeypatch, hours, machine, size):
    monkeypatch.setattr(sizing, "_needed_bytes", lambda task: 16 * sizing._num_parameters(task))
    choice = choose("auto", "conformer", _build(corpus, hours), {}, machine)
    assert choice.size == size
    assert f"{size}, " in choice.reason and f"{hours:.1f} h" in choice.reason and machine.summary in choice.reason


def test_batches_and_epochs_follow_hours_and_memory(corpus, monkeypatch):
    monkeypatch.setattr(sizing, "_needed_bytes", lambda task: task.data.config.max_duration * GIB / 10)
    minutes, hours = (choose("tiny", "conformer", _build(corpus, h), {}, CARD).settings for h in (0.1, 100))
    assert minutes["num_epochs"] > hours["num_epochs"] == 20
    assert minutes["max_duration"] == 16 and hours["max_duration"] == 200
    given = choose("tiny", "conformer", _build(corpus, 100), {"num_epochs": 4, "world_size": 2}, CARD).settings
    assert (given["num_epochs"], given["ctc_epochs"], given["max_duration"]) == (4, 2, 72)
    causal = choose("tiny", "conformer", _build(corpus, 1), {"causal": True}, CARD).settings
    assert minutes["feature_norm"] == "level" and causal["feature_norm"] == "global" and causal["gain_range_db"] == 10
    # 3.2 of 4 GiB may be used, for 32 s
    crowded = choose("tiny", "conformer", _build(corpus, 100), {}, replace(CARD, free_bytes=4 * GIB)).settings
    assert crowded["max_duration"] == 25
    # two processes share the memory of a CPU: 12.8 GiB hold two batches of 50 s
    build_two = _build(corpus, 100)
    machine, two = replace(LAPTOP, free_bytes=16 * GIB), {"world_size": 2}
    shared = choose("tiny", "conformer", lambda settings: build_two({**settings, **two}), two, machine).settings
    assert shared["max_duration"] == 50
    # no batch is small enough: shorter utterances
    monkeypatch.setattr(sizing, "_needed_bytes", lambda task: task.data.config.max_utterance_s * GIB)
    full = choose("tiny", "conformer", _build(corpus, 0.1), {}, replace(CARD, free_bytes=10 * GIB))
    assert full.settings["max_utterance_s"] <= 8 and "do not fit" in full.reason
    # the user has decided otherwise, or there is no memory at all
    build, little = _build(corpus, 0.1), replace(CARD, free_bytes=GIB / 2)
    for given, message in (
        ({"max_utterance_s": 12.0}, "`max_utterance_s` 12 with `size` tiny .*80% .*0.5 GiB free"),
        ({"max_duration": 30.0}, "`max_duration` 30 with `size` tiny"),
        ({}, "1 s with `size` tiny .*0.5 GiB free"),
    ):
        with pytest.raises(ValueError, match=message):
            choose("tiny", "conformer", build, given, little)


def test_options_win_and_a_resumed_run_keeps_its_numbers(corpus, tmp_path, monkeypatch, capsys):
    command = ["train", *corpus, "--exp-dir", str(tmp_path), "--size", "auto", "--resume", "--num-layers", "1"]
    assert main([*command, "--num-epochs", "1", "--max-duration", "9"]) == 0
    assert "--feature-norm level" in (told := capsys.readouterr().err)
    assert "--num-layers 4" not in told and "--max-duration 16" not in told
    first = load_checkpoint(tmp_path / "epoch-0.pt")
    assert first.model_config.encoder.num_layers == 1 and first.model_config.encoder.attention_dim == 96
    # more data or less memory must not change the model in the middle
    monkeypatch.setattr(sizing, "choose", lambda *_: pytest.fail("chosen anew"))
    assert main([*command, "--num-epochs", "2", "--max-duration", "9"]) == 0
    assert load_checkpoint(tmp_path / "epoch-1.pt").model_config == first.model_config


def test_stored_bytes_are_those_of_a_checkpoint(corpus, tmp_path):
    """Without a mean of the weights, with an exponential one, and with that since the start."""
    for means in ([], ["--ema-decay", "0.9"], ["--average-period", "1"]):
        flags = ["--num-epochs", "1", "--size", "tiny", "--num-layers", "1", *means]
        flags += ["--exp-dir", str(tmp_path / "".join(means))]
        options = train.parse_options(train.Options, "train", [*corpus, *flags], "", train.Options())
        train.run(options, command="")
        objective = train._task(options, "", warn=lambda text: None, tell=lambda text: None).build_objective()
        size = (options.train.exp_dir / "epoch-0.pt").stat().st_size
        assert stored_bytes(objective, options.train.optim) == pytest.approx(size, rel=0.1)


def test_dry_run_reports_choice_and_time(corpus, tmp_path, capsys):
    flags = ["--exp-dir", str(tmp_path), "--size", "tiny", "--dry-run"]
    assert main(["train", *corpus, *flags]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["size"].startswith("tiny, ") and "--warm-step " in lines["chosen"]
    assert float(lines["speed"].split()[1]) > 0 and "per epoch" in lines["time"]
    assert not any(tmp_path.iterdir())


def test_a_zipformer_has_the_published_sizes(corpus, monkeypatch):
    monkeypatch.setattr(sizing, "_needed_bytes", lambda task: 0)
    flags = [*corpus, "--encoder", "zipformer", "--size", "small", "--cnn-module-kernel", "7"]
    options = train.parse_options(train.Options, "train", flags, "", train.Options())
    encoder = options.model.encoder
    assert isinstance(encoder, ZipformerConfig) and encoder.encoder_dim == ZIPFORMER_SIZES["s"].encoder_dim
    assert encoder.cnn_module_kernel == (7,) * 6 and options.model.joiner.joiner_proj


def test_named_size_leaves_the_rest_of_a_recipe():
    """Both options set layers and widths alone: a recipe keeps its decoder and its causal encoder."""
    encoder, decoder = ZipformerConfig(causal=True), DecoderConfig(1, 512, "grouped")
    usual = ModelFlags(encoder=encoder, decoder=decoder, joiner=ZipformerConfig.usual_joiner)
    defaults = train.Options(encoder="zipformer", model=usual)
    options = train.parse_options(train.Options, "train", ["--zipformer-size", "l"], "", defaults)
    large = ZIPFORMER_SIZES["l"]
    assert options.model == replace(usual, encoder=replace(large, causal=True))
    assert (
        set(options.passed_sizes)
        == set(named_sizes("zipformer", "large"))
        == {*("num_encoder_layers", "encoder_dim", "encoder_unmasked_dim", "feedforward_dim")}
    )
    assert not train.parse_options(train.Options, "train", [], "", defaults).passed_sizes
    flags = ["--encoder", "zipformer", "--context-size", "3"]
    assert train.parse_options(train.Options, "train", flags, "", train.Options()).passed_sizes == (
        "encoder",
        "context_size",
    )


def test_sizes_that_cannot_be_are_refused(corpus, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--encoder", "zipformer", "--size", "small", "--zipformer-size", "s"])
    assert "`--size` small and `--zipformer-size` s" in capsys.readouterr().err
    assert main(["train", *corpus, "--size", "auto", "--init-from", "model.pt"]) == 1
    err = capsys.readouterr().err
    assert "`--size` is auto" in err and "`--init-from` model.pt" in err and err.count("\n") == 1
    with pytest.raises(ValueError, match="`size` is tiny, but `encoder=toy` offers no sizes"):
        choose("tiny", "toy", _build(corpus, 1), {}, LAPTOP)
    monkeypatch.delitem(sizing.ENCODER_SIZES["conformer"], "large")
    with pytest.raises(ValueError, match="`size` must be one of auto, tiny, small, medium .*, but is large"):
        choose("large", "conformer", _build(corpus, 1), {}, LAPTOP)
