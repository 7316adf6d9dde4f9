"""Files of earlier layouts load as before; tests/golden/layout1 was written by the last version that had layout 1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stateless_transducer.checkpoint import load_checkpoint
from stateless_transducer.export.onnx_model import OnnxTransducer
from stateless_transducer.model.config import ConformerConfig

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
