"""Single updates: the original's trajectory, bad batches, precision, pieces of an update."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from model_sizes import conformer_model, resized
from safetensors.torch import load_file
from small_corpus import write_small_corpus
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.cli import main
from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.icefall_layouts import conformer_name
from stateless_transducer.model.chunks import WHOLE
from stateless_transducer.model.transducer import build_model
from stateless_transducer.training.config import FineTuneConfig, OptimConfig, PruneConfig, TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner, autocast_dtype
from stateless_transducer.training.objective import TransducerObjective
from stateless_transducer.training.optim import freeze
from stateless_transducer.training.running_mean import RunningMean
from stateless_transducer.training.state import Mean
from stateless_transducer.training.task import TransducerTask

SIZES = conformer_model(
    vocab_size=9, num_layers=2, attention_dim=16, num_heads=2, feedforward_dim=16, joiner_dim=16, dropout=0
)
ADAMW = OptimConfig(optimizer="adamw", peak_lr=1e-2, warm_step=1)


def _batch(lens, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(length, 80, generator=generator) for length in lens]
    said = [torch.randint(1, 9, (count,), generator=generator) for count in tokens]
    return Batch(
        pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE),
        torch.tensor(lens),
        pad_sequence(said, batch_first=True, padding_value=1),
        torch.tensor(tokens),
        tuple(f"u{n}" for n in range(len(lens))),
        ("",) * len(lens),
        0.01,
    )


def _update(*batches):
    return Update(list(batches), sum(b.seconds for b in batches), sum(int(b.token_lens.sum()) for b in batches))


def _learner(device, optim=ADAMW, sizes=SIZES, **options):
    torch.manual_seed(0)
    config = TrainConfig(optim=optim, **options)
    return Learner(TransducerObjective(build_model(sizes), config).to(device), config, Rank(0, 1, device))


def _weights(learner):
    return {name: value.detach().clone() for name, value in learner.objective.model.state_dict().items()}


def _learn(learner, *batches, step=1):
    return learner.learn(_update(*batches), step=step, epoch=0, done=0.0)


@pytest.mark.parametrize("prune_range", [0, 9], ids=["whole", "pruned"])
def test_delay_penalty_begins_after_the_warm_up(prune_range, device):
    optim = replace(ADAMW, delay_penalty=0.1, warm_step=3, modified_transducer_prob=0.0)
    prune = PruneConfig(prune_range=prune_range, lm_scale=0.0)
    objective = _learner(device, optim, prune=prune).objective.eval()
    batch = _batch([90, 70], [6, 4]).to(device)
    # a band of all rows
    encoder_out, lens = objective.model.encode(batch.features, batch.feature_lens)
    nll = {
        penalty: objective.model.nll(encoder_out, lens, batch.tokens, batch.token_lens, delay_penalty=penalty).sum()
        for penalty in (0.0, 0.1)
    }
    during, after = (objective(batch, step, 0) for step in (3, 4))
    for losses, penalty in ((during, 0.0), (after, 0.1)):
        torch.testing.assert_close(losses.utterance_losses.sum(), nll[penalty])
    assert (nll[0.0] - nll[0.1]).abs() > 1e-3
    later = replace(optim, whole_epochs=2)
    penalties = [TrainConfig(optim=later, prune=prune).delay_penalty_at(step=4, epoch=epoch) for epoch in range(3)]
    assert penalties == [0.0, 0.0, 0.1]
    if prune_range:
        assert during.metrics["simple_loss"] != after.metrics["simple_loss"]
    # validation compares models trained with any penalty
    torch.testing.assert_close(objective.evaluate(batch)[0], nll[0.0])


def test_causal_model_sees_whole_utterances_before_chunks(device):
    sizes = resized(SIZES, causal=True, chunk_size=(8,), left_context_frames=(16,))
    objective = _learner(device, replace(ADAMW, whole_epochs=1), sizes).objective
    chunks = []
    for epoch in range(2):
        objective(_batch([90, 70], [6, 4]).to(device), 1, epoch)
        chunks.append(objective.model.encoder.batch_chunks())
    assert chunks == [WHOLE, (8, 16)]


def test_trajectory_is_icefalls(golden, device):
    """24 steps of the original: losses, gradient norms, learning rates, the log's means, and the weights at the end."""
    folder = golden / "train"
    wanted, inputs = json.loads((folder / "trajectory.json").read_text()), load_file(folder / "inputs.safetensors")
    sizes = resized(SIZES, vocab_size=12, num_layers=1, feedforward_dim=32)
    optim = OptimConfig(lr_factor=2.0, warm_step=20)
    learner = _learner(device, optim, sizes)
    initial = load_file(folder / "init.safetensors")
    learner.objective.model.load_state_dict({conformer_name(name): value for name, value in initial.items()})
    recent = Mean(decay=1 - 1 / wanted["reset_interval"])
    for number, step in enumerate(wanted["steps"], start=1):
        name = f"b{step['batch']}"
        lens, token_lens = inputs[f"{name}.x_lens"].long(), inputs[f"{name}.y_lens"].long()
        features = inputs[f"{name}.x"].float().split(lens.tolist())
        tokens = inputs[f"{name}.y"].long().split(token_lens.tolist())
        batch = Batch(
            pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE),
            lens,
            pad_sequence(tokens, batch_first=True, padding_value=1),
            token_lens,
            ("",) * len(lens),
            ("",) * len(lens),
            0.01,
        )
        # the original draws the loss; here it is told
        chosen = replace(optim, modified_transducer_prob=float(step["one_sym_per_frame"]))
        learner.objective.config = replace(learner.objective.config, optim=chosen)
        found = _learn(learner, batch, step=number)
        assert found.total == pytest.approx(step["loss"], rel=1e-4)
        assert found.grad_norm == pytest.approx(step["grad_norm_before_clip"], rel=1e-3)
        assert found.rate == pytest.approx(step["lr"], rel=1e-9)
        # the original counts feature frames // 4
        recent.add(found.total, step["frames"])
        assert f"loss={recent.value:.4g}, over {recent.weight:.2f} frames. " == step["tot_loss_str"]
    for name, value in load_file(folder / "after_step24.safetensors").items():
        # gradients of these are zero but for rounding, which Adam makes large
        if not name.endswith(("in_proj.bias", "linear_pos.weight")):
            ours = learner.objective.model.state_dict()[conformer_name(name)].cpu()
            torch.testing.assert_close(ours, value, rtol=0, atol=5e-4)


@pytest.mark.parametrize("optimizer", ["noam", "adamw", "muon", "scaled-adam"])
def test_update_does_not_import_the_compiler(optimizer, device, monkeypatch):
    """It takes as long to import as torch itself; here, importing it fails."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    learner = _learner(device, replace(ADAMW, optimizer=optimizer))
    before = _weights(learner)
    _learn(learner, _batch([60, 40], [3, 2]))
    assert any(not torch.equal(value, before[name]) for name, value in _weights(learner).items())
    learner.optimizer.load_state_dict(learner.optimizer.state_dict())


@pytest.mark.parametrize("optimizer", ["noam", "adamw", "muon"])
def test_pieces_of_an_update_are_worth_the_whole(optimizer, device):
    """Accumulated: the same gradient, whatever the loss is divided by."""
    optim = replace(ADAMW, optimizer=optimizer, warm_step=4, ctc_loss_scale=0.3)
    whole, pieces = _learner(device, optim), _learner(device, optim)
    one = _batch([60, 60, 40, 40], [3, 5, 2, 1])
    halves = [
        Batch(
            one.features[i::2],
            one.feature_lens[i::2],
            one.tokens[i::2],
            one.token_lens[i::2],
            one.ids[i::2],
            ("",) * 2,
            0.01,
        )
        for i in range(2)
    ]
    found, wanted = _learn(pieces, *halves), _learn(whole, one)
    assert found.total == pytest.approx(wanted.total, rel=1e-5) and found.weight == wanted.weight
    assert found.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)


@pytest.mark.parametrize("kind", ["feature", "path"])
def test_batch_without_a_finite_loss_is_skipped_and_named(kind, device):
    learner = _learner(device, replace(ADAMW, modified_transducer_prob=1.0))
    good, bad = _batch([60, 50], [3, 2]), _batch([60, 50], [3, 2])
    if kind == "feature":
        bad.features[1, 7, 3] = torch.nan
    else:
        bad.token_lens[1] = 30  # more than there are frames
        bad = replace(bad, tokens=torch.ones(2, 30, dtype=torch.int64))
    _learn(learner, good)
    before = _weights(learner)
    found = _learn(learner, good, bad, step=2)
    assert found.bad_ids == ("u1",) and found.num_bad == 1 and found.is_skipped
    assert all(torch.equal(value, before[name]) for name, value in _weights(learner).items())
    again = _learn(learner, good, step=3)
    assert not again.is_skipped and any(not torch.equal(v, before[n]) for n, v in _weights(learner).items())


def test_infinite_gradient_is_skipped(device):
    learner = _learner(device)
    learner.objective.model.joiner.output_linear.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = _weights(learner)
    assert _learn(learner, _batch([60], [3])).is_skipped
    assert all(torch.equal(value, before[name]) for name, value in _weights(learner).items())


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_full_gpu_names_the_batch_and_what_to_do(error, device, monkeypatch):
    learner = _learner(device, precision="fp32")
    monkeypatch.setattr(learner.objective, "forward", lambda *args: (_ for _ in ()).throw(error))
    found = r"a batch of 2 utterances, 0.6 s and 3 tokens each at most \(u0, u1\)\. Lower `max_duration`"
    with pytest.raises(ValueError, match=found):
        _learn(learner, _batch([60, 50], [3, 2]))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_precision_learns_as_float32(precision, device):
    narrow, wide = _learner(device, precision=precision), _learner(device, precision="fp32")
    batch = _batch([60, 50], [3, 2])
    losses = {learner: [] for learner in (narrow, wide)}
    for step in range(1, 13):
        for learner, own in losses.items():
            own.append(_learn(learner, batch, step=step).total)
    assert losses[wide][-1] < 0.8 * losses[wide][0]
    # fp16 may skip the first updates while it looks for its scale
    assert losses[narrow][-1] < 0.9 * losses[narrow][0]


@pytest.mark.parametrize(
    "capability, dtype", [((7, 0), None), ((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_automatic_precision_is_one_that_the_gpu_multiplies_in(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    # a V100 or T4 says so of what it emulates
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **options: True)
    assert autocast_dtype("auto", torch.device("cuda", 0)) == dtype
    assert autocast_dtype("auto", torch.device("cpu")) is None


def test_fp16_scale_never_falls_below_one(device):
    learner = _learner(device, precision="fp16")
    _learn(learner, _batch([60], [3]))
    learner.scaler.update(2.0)
    learner.objective.model.joiner.output_linear.bias.register_hook(lambda gradient: gradient * torch.inf)
    for step in range(1, 5):
        assert _learn(learner, _batch([60], [3]), step=step).is_skipped
    assert learner.scaler.get_scale() == 1


@pytest.mark.sweep
def test_fp16_without_a_finite_gradient_at_any_scale_stops(tmp_path, capsys, monkeypatch):
    """An infinite gradient is no news while the scale still falls; at its lowest it is counted."""
    corpus = write_small_corpus(tmp_path / "corpus")
    build = TransducerTask.build_objective

    def build_with_infinite_gradient(plan):
        objective = build(plan)
        objective.model.joiner.output_linear.bias.register_hook(lambda gradient: gradient * torch.inf)
        return objective

    monkeypatch.setattr(TransducerTask, "build_objective", build_with_infinite_gradient)
    flags = ["--exp-dir", str(tmp_path / "exp"), "--precision", "fp16", "--num-epochs", "15", "--max-bad-batches", "4"]
    assert main(["train", *corpus, *flags]) == 1
    assert "4 consecutive batches without a finite loss or gradient; in the last one, the gradient" in (
        capsys.readouterr().err
    )


def test_recomputed_layers_give_the_same_update(device):
    kept, recomputed = (_learner(device, sizes=resized(SIZES, dropout=0.1)) for _ in range(2))
    recomputed.objective.model.encoder.recompute_stages = True
    batch = _batch([60, 50], [3, 2])
    assert _learn(kept, batch).grad_norm == pytest.approx(_learn(recomputed, batch).grad_norm, rel=1e-5)


def test_dropout_follows_from_seed_and_step(device):
    sizes, batch = resized(SIZES, dropout=0.3), _batch([60, 50], [3, 2])

    def loss(step, seed=1):
        torch.rand(step)
        return _learn(_learner(device, sizes=sizes, seed=seed), batch, step=step).total

    assert loss(5) == loss(5) != loss(6) != loss(6, seed=2)


def test_running_mean_forgets_by_its_factor(device):
    learner = _learner(device, replace(ADAMW, ema_decay=0.75))
    wanted = _weights(learner)
    for step in range(1, 4):
        _learn(learner, _batch([60, 50], [3, 2], seed=step), step=step)
        wanted = {name: 0.75 * value + 0.25 * _weights(learner)[name] for name, value in wanted.items()}
    for name, value in learner.mean.weights.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)


def test_frozen_layers_stay_and_lower_ones_learn_slower(device):
    torch.manual_seed(0)
    config = TrainConfig(optim=ADAMW, fine_tune=FineTuneConfig(layer_lr_decay=0.5))
    objective = TransducerObjective(build_model(SIZES), config).to(device)
    freeze(objective, 1)
    learner = Learner(objective, config, Rank(0, 1, device))
    before = _weights(learner)
    _learn(learner, _batch([60, 50], [3, 2]))
    moved = {name: (value - before[name]).abs().max().item() for name, value in _weights(learner).items()}
    assert max(m for n, m in moved.items() if n.startswith(("encoder.embed", "encoder.layers.0."))) == 0
    # Adam's first step is as large as its learning rate
    assert moved["joiner.output_linear.weight"] == pytest.approx(1e-2, rel=0.05)
    assert moved["encoder.layers.1.feed_forward.0.weight"] == pytest.approx(0.5e-2, rel=0.05)


def test_more_frozen_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="`freeze_layers` 3 is more than the 2 layers"):
        freeze(TransducerObjective(build_model(SIZES), TrainConfig()), 3)


def test_plain_mean_is_that_of_every_period():
    model = nn.Linear(1, 1)
    mean = RunningMean(model, average_period=2)
    for step in range(1, 8):
        nn.init.constant_(model.weight, step)
        mean.update(model, step)
    assert mean.weights["weight"].item() == pytest.approx((2 + 4 + 6) / 3, rel=1e-12)
