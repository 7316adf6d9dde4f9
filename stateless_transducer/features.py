"""Front end: wave -> fbank, the same for training, decoding and transcription.

Letters: S samples, T_in feature frames, F mel bins. NumPy only, so that serving needs no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import kaldi_native_fbank as knf
import numpy as np
import soxr  # pyright: ignore[reportMissingTypeStubs]
from annotated_types import Interval, Unit

from stateless_transducer.options import check_bounds

SILENCE_VALUE = float(np.log(np.finfo(np.float32).eps))
"""Value of every bin where all samples are 0: Kaldi's smallest energy."""

PADDING_VALUE = -23.025850929940457
"""log(1e-10): value of the padding frames in a batch of features."""


@dataclass(frozen=True)
class FbankConfig:
    """Kaldi's log mel filter bank, as in lhotse and kaldifeat, on samples in [-1, 1], without dither.

    Example:
        >>> FbankConfig(sample_rate=8000, high_freq=-200.0).frame_shift_s
        0.01
    """

    sample_rate: Annotated[int, Interval(ge=1000, le=192_000), Unit("Hz")] = 16000
    """Samples per second; other rates are resampled."""
    num_mel_bins: Annotated[int, Interval(ge=7, le=1000)] = 80
    """Mel bins per frame."""
    frame_length_ms: Annotated[float, Interval(ge=1, le=1000), Unit("ms")] = 25.0
    """Length of the window, in milliseconds."""
    frame_shift_ms: Annotated[float, Interval(ge=1, le=1000), Unit("ms")] = 10.0
    """Step from one frame to the next, in milliseconds."""
    low_freq: float = 20.0
    """Lower edge of the filters, in Hz."""
    high_freq: float = -400.0
    """Upper edge of the filters, in Hz; below zero: relative to half the sample rate."""

    def __post_init__(self) -> None:
        check_bounds(self)
        try:
            knf.OnlineFbank(_options(self))
        except (ValueError, RuntimeError) as err:
            raise ValueError(f"No filter bank of {_spell(self)} can exist ({err}).") from err

    @property
    def frame_shift_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.frame_shift_ms / 1000


def fbank(samples: np.ndarray, config: FbankConfig) -> np.ndarray:
    """Compute the log mel energies of a wave, one frame per ``frame_shift_ms``, rounded (``snip_edges=False``).

    Args:
        samples: (S,), float, in [-1, 1], at ``config.sample_rate``.

    Returns:
        (T_in, F), float32.

    Raises:
        ValueError: the samples have several axes, or are integers, whose scale is unknown.

    Example:
        >>> fbank(np.zeros(16000, np.float32), FbankConfig()).shape  # a second
        (100, 80)
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"`samples` must be (S,), float, in [-1, 1], but are {samples.shape}, {samples.dtype}.")
    computer = knf.OnlineFbank(_options(config))
    wave = np.ascontiguousarray(samples, dtype=np.float32)
    computer.accept_waveform(config.sample_rate, wave)  # pyright: ignore[reportArgumentType]
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, config.num_mel_bins), np.float32)


class FbankStream:
    """Streaming `fbank`: frames bit-equal to those of the whole sound, for pieces of any length.

    `take` frees the frames before it, so that a stream may run for days.
    """

    def __init__(self, config: FbankConfig) -> None:
        self._config, self._computer = config, knf.OnlineFbank(_options(config))
        self._input_rate: int | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._first_frame = 0
        self.num_samples: int = 0
        """Number of samples so far, at the rate of the configuration."""

    @property
    def num_frames(self) -> int:
        """Number of frames so far, including those already freed."""
        return self._computer.num_frames_ready

    def accept(self, samples: np.ndarray, sample_rate: int) -> None:
        """Accept the next samples, (S,), float32 in [-1, 1]; other rates than the configuration's are resampled.

        Raises:
            ValueError: the rate differs from that of earlier samples.
        """
        if self._input_rate is None:
            self._input_rate = sample_rate
            if sample_rate != self._config.sample_rate:
                self._resampler = soxr.ResampleStream(sample_rate, self._config.sample_rate, 1)
        if sample_rate != self._input_rate:
            raise ValueError(f"`sample_rate` must stay {self._input_rate} Hz within a stream, but is {sample_rate}.")
        self._feed(self._resampler.resample_chunk(samples) if self._resampler else samples)

    def flush(self) -> None:
        """Flush the resampler; no samples can be accepted afterwards."""
        if self._resampler:
            self._feed(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def pad(self, num_frames: int) -> None:
        """Append silence until there are ``num_frames`` frames."""
        self._feed(np.zeros(max(0, samples_until(num_frames, self._config) - self.num_samples), np.float32))

    def take(self, start: int, count: int) -> np.ndarray:
        """Return the frames ``start`` to ``start + count``, (count, F), and free those before ``start``."""
        self._computer.pop(start - self._first_frame)
        self._first_frame = start
        return np.stack([self._computer.get_frame(i) for i in range(start, start + count)])

    def _feed(self, samples: np.ndarray) -> None:
        self.num_samples += len(samples)
        wave = np.ascontiguousarray(samples, dtype=np.float32)
        self._computer.accept_waveform(self._config.sample_rate, wave)  # pyright: ignore[reportArgumentType]


def samples_until(num_frames: int, config: FbankConfig) -> int:
    """Return the number of samples that give ``num_frames`` frames: up to the end of the last window."""
    shift, window = (int(config.sample_rate * ms / 1000) for ms in (config.frame_shift_ms, config.frame_length_ms))
    return (num_frames - 1) * shift + shift // 2 - window // 2 + window if num_frames else 0


def _spell(config: FbankConfig) -> str:
    return ", ".join(f"`{name}` {value:g}" for name, value in asdict(config).items())


def _options(config: FbankConfig) -> knf.FbankOptions:
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_length_ms
    options.frame_opts.frame_shift_ms = config.frame_shift_ms
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = config.num_mel_bins
    options.mel_opts.low_freq = config.low_freq
    options.mel_opts.high_freq = config.high_freq
    return options
