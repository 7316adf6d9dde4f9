"""Files of earlier layouts load as before; tests/golden/layout1 was written by the last version that had layout 1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.data.batches import Batch, Update
from stateless_transducer.export.onnx_model import OnnxTransducer
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.model.config import ConformerConfig
from stateless_transducer.model.transducer import build_model
from stateless_transducer.training.config import OptimConfig, PruneConfig, TrainConfig
from stateless_transducer.training.distributed import Rank
from stateless_transducer.training.learner import Learner
from stateless_transducer.training.objective import TransducerObjective
from stateless_transducer.training.state import Position, load_resumable, restore

LAYOUT1 = Path(__file__).parent / "golden" / "layout1"


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "onnx"])
def test_model_of_layout_1_gives_the_same_numbers(name):
    expected = json.loads((LAYOUT1 / "expected.json").read_text())
    features, lens = torch.linspace(-8, 0, 50 * 80).view(1, 50, 80), torch.tensor([50])
    if name == "onnx":
        model = OnnxTransducer.open(LAYOUT1 / name)
        encoder_out, _ = model.encode(features.numpy(), lens.numpy())
        logits = model.join(encoder_out[0, :1], model.predict(np.zeros((1, 2), np.int64)))
        assert model.subsampling == ConformerConfig().subsampling
    else:
        loaded = load_checkpoint(LAYOUT1 / name)
        assert loaded.model_config.sizes()["encoder"] == "conformer" and loaded.model_config.feature_norm == "level"
        model = loaded.model()
        with torch.no_grad():
            encoder_out, _ = model.encode(features, lens)
            logits = model.join(encoder_out[0, :1], model.predict(torch.zeros(1, 2, dtype=torch.int64)))
    # another processor rounds otherwise
    np.testing.assert_allclose(encoder_out.flatten()[:16], expected["encoder_out"], atol=1e-6)
    np.testing.assert_allclose(logits.flatten(), expected["logits"], atol=1e-6)


def _batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(length, 80, generator=generator) for length in (60, 47)]
    tokens = [torch.randint(1, 9, (count,), generator=generator) % 9 + 1 for count in (4, 3)]
    pad = torch.nn.utils.rnn.pad_sequence
    return Batch(
        pad(features, batch_first=True, padding_value=PADDING_VALUE),
        torch.tensor([60, 47]),
        pad(tokens, batch_first=True, padding_value=2),
        torch.tensor([4, 3]),
        ("a", "b"),
        ("", ""),
        0.01,
    )


def test_training_of_layout_1_resumes(monkeypatch):
    """With a CTC head, the simple joiner and a mean of the weights: the next two updates are those of the version."""
    weights = PruneConfig.weights
    # that version counted the warm-up of the pruned loss from 0
    monkeypatch.setattr(PruneConfig, "weights", lambda config, step: weights(config, step - 1))
    checkpoint = load_resumable(LAYOUT1 / "training.pt")
    optim = OptimConfig(optimizer="adamw", peak_lr=1e-2, warm_step=2, ema_decay=0.9, ctc_loss_scale=0.5, ctc_epochs=3)
    config = TrainConfig(optim=optim, prune=PruneConfig(prune_range=3, prune_warm_step=4))
    objective = TransducerObjective(build_model(checkpoint.model_config), config)
    learner, position = Learner(objective, config, Rank(0, 1, torch.device("cpu"))), Position()
    restore(checkpoint, learner, position, config, {"--seed": 42, "--max-duration": 16.0})
    assert (position.step, position.epoch) == (2, 1)
    assert learner.mean is not None
    for name, value in learner.mean.weights.items():
        assert not torch.equal(value, checkpoint.weights[name])
    for step, expected in zip((3, 4), json.loads((LAYOUT1 / "expected.json").read_text())["next"], strict=True):
        batch = _batch(step)
        update = Update([batch], batch.seconds, int(batch.token_lens.sum()))
        result = learner.learn(update, step=step, epoch=1, done=0.5)
        assert [result.total, result.weight, result.grad_norm, result.rate] == pytest.approx(expected, rel=1e-5)
