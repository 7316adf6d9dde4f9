"""Starting from a trained model, by the commands."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from model_sizes import resized
from small_corpus import TOKENS, write_small_corpus

from stateless_transducer.checkpoint import load_checkpoint, save_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.text.tokens import TokenTable, build_token_table
from stateless_transducer.training.finetune import adapted_weights, describe_tokens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return ["train", *write_small_corpus(tmp_path_factory.mktemp("corpus")), "--max-duration", "12", "--dropout", "0"]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert main([*corpus, "--exp-dir", str(folder), "--num-epochs", "2"]) == 0
    return folder / "epoch-1.pt"


def test_training_goes_on_from_the_weights(corpus, trained, tmp_path, capsys):
    """Sizes are the model's own, whatever the flags' defaults; the first batch is as good as the model is."""
    flags = list(corpus)
    at = flags.index("--num-layers")
    del flags[at : at + 2]
    assert main([*flags, "--exp-dir", str(tmp_path), "--num-epochs", "1", "--init-from", str(trained)]) == 0
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if "Starting from" in line]
    assert " INFO " in line and line.endswith(f"from {trained}, with its sizes: all 11 tokens are the model's own")
    first = float(printed.split("batch 0, loss[loss=")[1].split(",")[0])
    assert first < 1.3 * load_checkpoint(trained).provenance["train_loss"]
    assert load_checkpoint(tmp_path / "epoch-0.pt").model_config == load_checkpoint(trained).model_config


def test_frozen_layers_are_the_models(corpus, trained, tmp_path):
    flags = ["--exp-dir", str(tmp_path), "--num-epochs", "1", "--init-from", str(trained), "--freeze-layers", "1"]
    assert main([*corpus, *flags]) == 0
    before, after = load_checkpoint(trained).weights, load_checkpoint(tmp_path / "epoch-0.pt").weights
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "joiner.output_linear.weight" in moved
    assert not any(name.startswith(("encoder.layers.0", "encoder.embed")) for name in moved)


def test_tokens_that_are_known_keep_their_rows(trained):
    old = load_checkpoint(trained)
    table = TokenTable((*TOKENS.symbols[:3], "新", "c", "a", "二"))
    config = resized(old.model_config, vocab_size=len(table))
    fresh = build_model(config).state_dict()
    weights = adapted_weights(old, table, fresh)
    assert (
        describe_tokens(old.token_table, table)
        == "5 of 7 tokens keep their rows, 2 are new (新 二), 6 of the model's tokens are not used"
    )
    for name in ("decoder.embedding.weight", "joiner.output_linear.weight", "joiner.output_linear.bias"):
        for symbol, row in table.ids.items():
            wanted = old.weights[name][TOKENS.ids[symbol]] if symbol in TOKENS.ids else fresh[name][row]
            assert torch.equal(weights[name][row], wanted), (name, symbol)
    assert torch.equal(weights["encoder.after_norm.weight"], old.weights["encoder.after_norm.weight"])


def test_another_vocabulary_is_learnt(corpus, trained, tmp_path, capsys):
    lang = tmp_path / "lang"
    build_token_table(["hgfedcbaz"], "char").write(lang)
    flags = [*corpus, "--exp-dir", str(tmp_path / "exp"), "--num-epochs", "1", "--init-from", str(trained)]
    flags[flags.index("--lang-dir") + 1] = str(lang)
    assert main(flags) == 0
    assert "11 of 12 tokens keep their rows, 1 are new (z)" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "exp" / "epoch-0.pt").token_table == TokenTable.read(lang)


def test_plan_and_memory_are_told_without_training(corpus, tmp_path, capsys):
    assert main([*corpus, "--exp-dir", str(tmp_path / "exp"), "--dry-run", "true"]) == 0
    printed = capsys.readouterr().out
    for line in ("model         5,", "24 utterances", "epoch         ", "30 epochs", "memory        about 0.0 GiB"):
        assert line in printed
    assert "warning" not in printed and not (tmp_path / "exp").exists()


def test_heads_of_training_are_told_apart_from_the_model(corpus, tmp_path, capsys):
    flags = ["--exp-dir", str(tmp_path / "exp"), "--dry-run", "true", "--ctc-loss-scale", "0.5"]
    assert main([*corpus, *flags]) == 0
    # 16 numbers and a bias for each of 11 tokens
    line = r"model +(\S+) parameters, \1 of them trainable, and 187 in heads for training only; conformer, 1 layer "
    assert re.search(line, capsys.readouterr().out)


@pytest.mark.parametrize("flags", [["--dry-run", "true"], []])
def test_warm_up_that_does_not_end_is_told(corpus, tmp_path, capsys, flags):
    assert main([*corpus, "--exp-dir", str(tmp_path / "exp"), "--num-epochs", "1", "--warm-step", "90", *flags]) == 0
    printed = capsys.readouterr()
    line = r"`--warm-step` 90 is too long for (\d+) batches \(1 epoch of \1\): the learning rate does not rise above"
    assert re.search(f"warning +{line}", printed.out) if flags else re.search(f"WARNING .*{line}", printed.err)


@pytest.mark.sweep
def test_largest_batch_is_proposed_and_no_weights_are_touched(corpus, trained, tmp_path, capsys):
    before = trained.read_bytes()
    flags = ["--exp-dir", str(trained.parent), "--find-max-duration", "true"]
    assert main([*corpus, *flags]) == 0
    proposal = capsys.readouterr().out.strip().splitlines()[-1]
    assert float(proposal.removeprefix("--max-duration ")) > 1
    assert trained.read_bytes() == before


def test_missing_model_is_named(corpus, tmp_path, capsys):
    assert main([*corpus, "--exp-dir", str(tmp_path), "--init-from", str(tmp_path / "none.pt")]) == 1
    assert "none.pt: no such" in capsys.readouterr().err


def test_model_without_training_state_cannot_go_on_but_can_be_started_from(corpus, trained, tmp_path, capsys):
    save_checkpoint(tmp_path / "exp" / "epoch-0.pt", replace(load_checkpoint(trained), training_state=None))
    flags = ["--exp-dir", str(tmp_path / "exp"), "--num-epochs", "2", "--start-epoch", "1"]
    assert main([*corpus, *flags]) == 1
    assert "holds a model without its training state" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["--attention-dim 20", "--num-layers 7", "--context-size 1", "--feature-norm level"])
def test_sizes_other_than_the_models_are_refused(corpus, trained, tmp_path, capsys, size):
    flag, value = size.split()
    assert main([*corpus, "--exp-dir", str(tmp_path), "--init-from", str(trained), flag, value]) == 1
    message = rf"`{flag}` is {value}, but the model of `--init-from` {trained} has \w+\. Remove the option"
    assert re.search(message, capsys.readouterr().err)


def test_model_of_other_features_is_refused(corpus, trained, tmp_path, capsys):
    save_checkpoint(tmp_path / "m.pt", replace(load_checkpoint(trained), fbank_config=FbankConfig(low_freq=40.0)))
    assert main([*corpus, "--exp-dir", str(tmp_path / "exp"), "--init-from", str(tmp_path / "m.pt")]) == 1
    assert re.search("`--init-from` .*m.pt expects .*: low_freq 40, not 20", capsys.readouterr().err)
