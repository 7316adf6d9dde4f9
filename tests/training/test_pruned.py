"""Training with the pruned loss: what is summed, what it is weighed with, what is kept and thrown away."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from model_sizes import conformer_model
from small_corpus import write_small_corpus
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.cli import main
from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.model.transducer import build_model
from stateless_transducer.ops.pruned_loss import (
    prune_joiner_inputs,
    prune_ranges,
    pruned_transducer_loss,
    simple_transducer_loss,
)
from stateless_transducer.training.config import OptimConfig, PruneConfig, TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.objective import TransducerObjective

SIZES = conformer_model(
    vocab_size=9, num_layers=1, attention_dim=16, num_heads=2, feedforward_dim=16, joiner_dim=16, dropout=0
)
TOPOLOGIES = pytest.mark.parametrize("symbols", [None, 1], ids=["standard", "modified"])


def _batch(device):
    generator = torch.Generator().manual_seed(11)
    lens, token_lens = [90, 70, 40], [7, 4, 0]
    features = [torch.randn(length, 80, generator=generator) for length in lens]
    return Batch(
        pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE),
        torch.tensor(lens),
        torch.randint(1, 9, (3, 7), generator=generator),
        torch.tensor(token_lens),
        ("a", "b", "c"),
        ("",) * 3,
        0.01,
    ).to(device)


def _objective(device, **options):
    torch.manual_seed(4)
    return TransducerObjective(build_model(SIZES), TrainConfig(prune=PruneConfig(**options))).to(device)


@TOPOLOGIES
def test_band_of_all_rows_gives_the_whole_loss(symbols, device):
    batch, pruned = _batch(device), _objective(device, prune_range=8)
    whole = TransducerObjective(pruned.model, TrainConfig())
    ours, truth = (objective.unweighted_losses(batch, symbols, with_ctc=False) for objective in (pruned, whole))
    torch.testing.assert_close(ours.nll, truth.nll, rtol=1e-6, atol=0)
    assert truth.simple_nll is None and torch.equal(ours.encoder_lens, truth.encoder_lens)


@TOPOLOGIES
def test_losses_are_those_of_the_simple_joiners_band(symbols, device):
    batch, objective = _batch(device), _objective(device, prune_range=2, lm_scale=0.2, am_scale=0.1)
    ours = objective.unweighted_losses(batch, symbols, with_ctc=False)
    model, linear = objective.model, objective.simple_joiner
    encoder_out, lens = model.encode(batch.features, batch.feature_lens)
    decoder_out = model.decoder.all_prefixes(batch.tokens)
    said = {"tokens": batch.tokens, "token_lens": batch.token_lens, "max_symbols_per_frame": symbols}
    simple = simple_transducer_loss(
        encoder_out @ linear.from_encoder.weight.T + linear.from_encoder.bias,
        lens,
        decoder_out @ linear.from_decoder.weight.T + linear.from_decoder.bias,
        **said,
        lm_only_scale=0.2,
        am_only_scale=0.1,
    )
    torch.testing.assert_close(ours.simple_nll, simple.nll, rtol=1e-6, atol=0)
    occupations = simple.blank_occupation, simple.symbol_occupation
    ranges = prune_ranges(*occupations, lens, batch.token_lens, width=2, max_symbols_per_frame=symbols)
    assert ranges.width == 2
    logits = model.join(*prune_joiner_inputs(encoder_out, decoder_out, ranges.starts, width=2))
    torch.testing.assert_close(ours.nll, pruned_transducer_loss(logits, ranges.starts, lens, **said), rtol=1e-6, atol=0)
    # fewer paths
    whole = model.nll(encoder_out, lens, batch.tokens, batch.token_lens, max_symbols_per_frame=symbols)
    assert (ours.nll >= whole * (1 - 1e-6)).all() and ours.nll[0] > whole[0] * 1.01


def test_weights_go_from_one_and_a_tenth_to_what_is_asked_for():
    config = PruneConfig(prune_range=5, simple_loss_scale=0.5, prune_warm_step=100)
    assert config.weights(1) == pytest.approx((0.109, 0.995))
    assert config.weights(50) == pytest.approx((0.55, 0.75))
    assert config.weights(100) == config.weights(9999) == pytest.approx((1.0, 0.5))
    assert replace(config, prune_warm_step=0).weights(1) == pytest.approx((1.0, 0.5))


def test_weights_are_icefalls(zipformer_golden):
    scales = json.loads((zipformer_golden / "train" / "scales.json").read_text())["loss_scales_warm_step_2000"]
    for row in scales:
        found = PruneConfig(prune_range=5).weights(row["batch_idx_train"])
        assert found == pytest.approx((row["pruned_loss_scale"], row["simple_loss_scale"]), rel=1e-12)


def _learner(device, prune, rank=None, **options):
    torch.manual_seed(4)
    optim = OptimConfig(optimizer="adamw", peak_lr=1e-2, warm_step=1, ctc_loss_scale=0.1)
    config = TrainConfig(optim=optim, prune=prune, **options)
    objective = TransducerObjective(build_model(SIZES), config).to(device)
    return Learner(objective, config, rank or Rank(0, 1, device))


def _learn(learner, batch, step=1):
    return learner.learn(Update([batch], batch.seconds, int(batch.token_lens.sum())), step=step, epoch=0, done=0.0)


def test_gradient_is_of_the_weighted_sum(device):
    """At step 50 of a warm-up of 100: 0.55 of the pruned loss and 0.75 of the simple one."""
    config = PruneConfig(prune_range=3, prune_warm_step=100)
    learner, batch = _learner(device, config), _batch(device)
    losses = learner.objective.unweighted_losses(batch, None, with_ctc=True)
    wanted = 0.55 * losses.nll.sum() + 0.75 * losses.simple_nll.sum() + 0.1 * losses.ctc_nll.sum()
    (wanted / int(batch.token_lens.sum())).backward()
    gradients = {name: each.grad.clone() for name, each in learner.objective.named_parameters()}
    norm = torch.stack([each.norm() for each in gradients.values()]).norm().item()
    assert all(each.any() for name, each in gradients.items() if name.endswith("weight")), "all parts learn"
    # standard or modified loss is drawn; here it is told
    config = learner.objective.config
    learner.objective.config = replace(config, optim=replace(config.optim, modified_transducer_prob=0.0))
    assert _learn(learner, batch, step=50).grad_norm == pytest.approx(norm, rel=1e-5)


def test_processes_exchange_the_gradients_of_all_parts(device):
    """One that believes to be one of two, so that it doubles what the exchange with itself does not halve."""
    config, batch = PruneConfig(prune_range=3), _batch(device)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        alone, shared = _learner(device, config), _learner(device, config, rank=Rank(0, 2, device))
        assert _learn(shared, batch).grad_norm == pytest.approx(2 * _learn(alone, batch).grad_norm, rel=1e-5)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pruned_training_lowers_the_whole_loss(precision, device):
    learner, batch = (
        _learner(device, PruneConfig(prune_range=3, prune_warm_step=5), precision=precision),
        _batch(device),
    )

    def whole():
        with torch.no_grad():
            features, tokens = (batch.features, batch.feature_lens), (batch.tokens, batch.token_lens)
            return learner.objective.model.eval()(*features, *tokens).sum().item()

    before = whole()
    for step in range(1, 16):
        assert not _learn(learner, batch, step=step).is_skipped
    assert whole() < 0.7 * before


def test_utterance_that_only_the_simple_loss_cannot_take_is_named(device):
    learner, batch = _learner(device, PruneConfig(prune_range=3)), _batch(device)
    with torch.no_grad():
        learner.objective.simple_joiner.from_decoder.bias[2] = torch.nan
    found = _learn(learner, batch)
    assert found.is_skipped and found.bad_ids == ("a", "b", "c")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    torch.manual_seed(1)
    prune = ["--prune-range", "3", "--prune-warm-step", "4"]
    return ["train", *write_small_corpus(tmp_path_factory.mktemp("corpus")), "--max-duration", "6", *prune]


@pytest.fixture(scope="module")
def exp(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp")
    assert main([*corpus, "--exp-dir", str(folder), "--num-epochs", "2"]) == 0
    return folder


@pytest.mark.sweep
def test_resumed_pruned_training_is_bit_equal(corpus, exp, tmp_path):
    shutil.copy(exp / "epoch-0.pt", tmp_path)
    assert main([*corpus, "--exp-dir", str(tmp_path), "--num-epochs", "2", "--start-epoch", "1"]) == 0
    parts, whole = (load_checkpoint(folder / "epoch-1.pt") for folder in (tmp_path, exp))
    assert all(torch.equal(parts.weights[name], value) for name, value in whole.weights.items())
    assert set(whole.training_state["heads"]) == {
        f"simple_joiner.from_{side}.{kind}" for side in ("encoder", "decoder") for kind in ("weight", "bias")
    }
    assert not [name for name in whole.weights if "simple" in name]


def test_going_on_without_pruning_is_refused(corpus, exp, capsys):
    flags = ["--exp-dir", str(exp), "--num-epochs", "3", "--start-epoch", "2", "--prune-range", "0"]
    # options of the pruned loss would be refused without it
    flags += ["--prune-warm-step", "2000"]
    assert main([*corpus, *flags]) == 1
    assert (
        "`--prune-range above 0` was True before; a resumed run cannot change it to False." in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_range": -1}, "`prune_range` must be at least 0, but is -1"),
        ({"prune_warm_step": -1}, "`prune_warm_step` must be at least 0, but is -1"),
        ({"simple_loss_scale": -0.5}, "`simple_loss_scale` must be at least 0, but is -0.5"),
        ({"lm_scale": 1.5}, "`lm_scale` must be in 0..1, but is 1.5"),
        ({"lm_scale": 0.6, "am_scale": 0.5}, "`lm_scale` and `am_scale` must be at most 1 together, but are 1.1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PruneConfig(**options)
