from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from stateless_transducer.features import FbankConfig, fbank

NAMES = ("chirp", "noise", "short", "silence_tone")


@pytest.mark.parametrize("name", NAMES)
def test_fbank_equals_kaldifeats(name, golden):
    arrays = load_file(golden / "feats.safetensors")
    found = fbank(arrays[f"{name}.wav"].astype(np.float32) / 32768, FbankConfig())
    wanted = arrays[f"{name}.kaldifeat"]
    assert found.shape == wanted.shape and found.dtype == np.float32
    # near the floor, log amplifies the rounding of two different FFTs (measured: 6.2e-3)
    error = np.abs(found - wanted)
    assert error[wanted > -12].max(initial=0) < 1e-3 and error.max() < 1e-2 and error.mean() < 2e-4


def test_fbank_of_nothing_is_empty():
    assert fbank(np.zeros(0, np.float32), FbankConfig()).shape == (0, 80)


def test_bad_configuration_is_named():
    with pytest.raises(ValueError, match="`num_mel_bins` must be at least 7, but is 3"):
        FbankConfig(num_mel_bins=3)
