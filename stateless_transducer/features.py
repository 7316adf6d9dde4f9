"""The one front end: wave -> fbank, the same for training, decoding and transcription.

Letters: S samples, T_in feature frames, F mel bins. NumPy only, so that serving needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import kaldi_native_fbank as knf
import numpy as np

PADDING_VALUE = -23.025850929940457
"""log(1e-10): what stands behind the end of an utterance in a padded batch of features."""


@dataclass(frozen=True)
class FbankConfig:
    """Kaldi's log mel filter bank, as lhotse's and kaldifeat's, on samples in [-1, 1], without dither."""

    sample_rate: int = 16000
    """Samples a second; other rates are resampled."""
    num_mel_bins: int = 80
    """Mel bins of a frame."""
    frame_length_ms: float = 25.0
    """Window."""
    frame_shift_ms: float = 10.0
    """Hop."""
    low_freq: float = 20.0
    """Lower edge of the filters, Hz."""
    high_freq: float = -400.0
    """Upper edge, Hz; below zero: counted down from half the sample rate."""

    def __post_init__(self) -> None:
        if self.sample_rate < 1000:
            raise ValueError(f"`sample_rate` must be at least 1000 Hz, but is {self.sample_rate}.")
        if self.num_mel_bins < 7:
            raise ValueError(f"`num_mel_bins` must be at least 7, but is {self.num_mel_bins}.")


def fbank(samples: np.ndarray, config: FbankConfig) -> np.ndarray:
    """Log mel energies of a wave, one frame for each ``frame_shift_ms`` begun (snip_edges off).

    Args:
        samples: (S,), float, in [-1, 1], at ``config.sample_rate``.

    Returns:
        (T_in, F), float32.
    """
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_length_ms
    options.frame_opts.frame_shift_ms = config.frame_shift_ms
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = config.num_mel_bins
    options.mel_opts.low_freq = config.low_freq
    options.mel_opts.high_freq = config.high_freq
    computer = knf.OnlineFbank(options)
    wave = np.ascontiguousarray(samples, dtype=np.float32)
    computer.accept_waveform(config.sample_rate, wave)  # pyright: ignore[reportArgumentType]
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, config.num_mel_bins), np.float32)
