"""The one front end: sound file -> wave -> fbank, the same for training, decoding and transcription.

Letters: S samples, T_in feature frames, F mel bins. NumPy only, so that serving needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import soundfile
import soxr

PADDING_VALUE = -23.025850929940457
"""log(1e-10): what stands behind the end of an utterance in a padded batch of features."""


# a headerless .raw is a TypeError to soundfile
_UNREADABLE = (soundfile.SoundFileError, TypeError)


class AudioError(ValueError):
    """A sound file cannot be used; the message names the file and says why."""


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
    computer = knf.OnlineFbank(_options(config))
    wave = np.ascontiguousarray(samples, dtype=np.float32)
    computer.accept_waveform(config.sample_rate, wave)  # pyright: ignore[reportArgumentType]
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, config.num_mel_bins), np.float32)


class FbankStream:
    """`fbank` of sound that comes in pieces: the same frames to the last bit, however it is cut.

    `take` forgets what lies before it, so that a stream may run for days.
    """

    def __init__(self, config: FbankConfig) -> None:
        self._config, self._computer = config, knf.OnlineFbank(_options(config))
        self._input_rate: int | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._num_kept_from = 0
        self.num_samples = 0
        """Samples so far, at the rate of the configuration."""

    @property
    def num_frames(self) -> int:
        """Frames so far, forgotten ones included."""
        return self._computer.num_frames_ready

    def accept(self, samples: np.ndarray, sample_rate: int) -> None:
        """Take the next samples, (S,), float32 in [-1, 1]; other rates than the configuration's are resampled.

        Raises:
            ValueError: the rate is not that of the samples before.
        """
        if self._input_rate is None:
            self._input_rate = sample_rate
            if sample_rate != self._config.sample_rate:
                self._resampler = soxr.ResampleStream(sample_rate, self._config.sample_rate, 1)
        if sample_rate != self._input_rate:
            raise ValueError(f"`sample_rate` must stay {self._input_rate} Hz within a stream, but is {sample_rate}.")
        self._feed(self._resampler.resample_chunk(samples) if self._resampler else samples)

    def flush(self) -> None:
        """Let out what the resampler holds back; nothing can be accepted after it."""
        if self._resampler:
            self._feed(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def pad(self, num_frames: int) -> None:
        """Append silence until there are ``num_frames`` frames."""
        self._feed(np.zeros(max(0, samples_until(num_frames, self._config) - self.num_samples), np.float32))

    def take(self, start: int, count: int) -> np.ndarray:
        """Frames ``start`` to ``start + count``, (count, F); those before ``start`` are forgotten."""
        self._computer.pop(start - self._num_kept_from)
        self._num_kept_from = start
        return np.stack([self._computer.get_frame(i) for i in range(start, start + count)])

    def _feed(self, samples: np.ndarray) -> None:
        self.num_samples += len(samples)
        wave = np.ascontiguousarray(samples, dtype=np.float32)
        self._computer.accept_waveform(self._config.sample_rate, wave)  # pyright: ignore[reportArgumentType]


def samples_until(num_frames: int, config: FbankConfig) -> int:
    """Samples at which so many frames are known: the end of the last one's window."""
    shift, window = (int(config.sample_rate * ms / 1000) for ms in (config.frame_shift_ms, config.frame_length_ms))
    return (num_frames - 1) * shift + shift // 2 - window // 2 + window if num_frames else 0


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


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """A sound file as one channel (the mean of all) at the wanted rate.

    wav, flac, mp3, ogg and opus are read by libsndfile, everything else (m4a, aac, video) by PyAV where installed.

    Returns:
        (S,), float32.

    Raises:
        AudioError: missing, not audio, truncated or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    try:
        samples, found_rate = _read_with_soundfile(path)
    except _UNREADABLE as err:
        samples, found_rate = _read_with_av(path, str(err))
    if not len(samples):
        raise AudioError(f"{path}: holds no samples (0 s of audio).")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: holds samples that are not numbers.")
    return resample(samples, found_rate, sample_rate)


def audio_blocks(path: str | Path, block_s: float) -> Iterator[tuple[np.ndarray, int]]:
    """A sound file piece by piece: one channel (the mean of all), (S,), float32, and the file's own sample rate.

    What libsndfile cannot read (m4a, aac, video) is read as a whole first.

    Raises:
        AudioError: missing, not audio, truncated or empty; from the first piece on.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    found = False
    for samples, rate in _blocks(path, block_s):
        if not np.isfinite(samples).all():
            raise AudioError(f"{path}: holds samples that are not numbers.")
        found |= len(samples) > 0
        yield samples, rate
    if not found:
        raise AudioError(f"{path}: holds no samples (0 s of audio).")


def audio_duration(path: str | Path) -> tuple[float, int]:
    """Seconds and sample rate of a sound file, from its header where it has one.

    Raises:
        AudioError: missing, not audio, truncated or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file.")
    try:
        with soundfile.SoundFile(path) as file:
            _refuse_truncated_wav(path, file)
            num_samples, rate = _known_length(file), file.samplerate
    except _UNREADABLE as err:
        samples, rate = _read_with_av(path, str(err))
        num_samples = len(samples)
    if not num_samples:
        raise AudioError(f"{path}: holds no samples (0 s of audio).")
    return num_samples / rate, rate


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """(S,) at one rate -> (S * to_rate / from_rate,) at another."""
    if from_rate == to_rate:
        return samples
    return soxr.resample(samples, from_rate, to_rate).astype(np.float32)


def _read_with_soundfile(path: Path) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(path) as file:
        _refuse_truncated_wav(path, file)
        _known_length(file)
        samples = file.read(dtype="float32", always_2d=True)
        return samples.mean(axis=1), file.samplerate


def _blocks(path: Path, block_s: float) -> Iterator[tuple[np.ndarray, int]]:
    try:
        file = _FrontToBack(path)
    except _UNREADABLE as err:
        samples, rate = _read_with_av(path, str(err))
        size = max(1, round(block_s * rate))
        yield from ((samples[start : start + size], rate) for start in range(0, len(samples), size))
        return
    with file:
        _refuse_truncated_wav(path, file)
        size = max(1, round(block_s * file.samplerate))
        try:
            while len(samples := file.read(size, dtype="float32", always_2d=True)):
                yield samples.mean(axis=1), file.samplerate
        except soundfile.SoundFileError as err:
            raise AudioError(f"{path}: breaks off ({err}).") from err


class _FrontToBack(soundfile.SoundFile):
    """A file without seeking: soundfile seeks behind each read, and an mp3 then goes on with the wrong samples."""

    def seekable(self) -> bool:
        """No."""
        return False


def _known_length(file: soundfile.SoundFile) -> int:
    """Samples a channel; a flac that was written to a pipe does not say."""
    if file.frames >= 2**40:
        raise soundfile.SoundFileRuntimeError("its header does not tell how long it is")
    return file.frames


def _refuse_truncated_wav(path: Path, file: soundfile.SoundFile) -> None:
    """Libsndfile silently reads what is there; the header of a plain wav says how much should be."""
    if file.format not in ("WAV", "WAVEX"):
        return
    with path.open("rb") as raw:
        head = raw.read(4096)
    position = 12
    while position + 8 <= len(head):
        size = int.from_bytes(head[position + 4 : position + 8], "little")
        if head[position : position + 4] == b"data":
            there = path.stat().st_size - position - 8
            # streams written to a pipe have 0 or the largest number here: length unknown
            if there < size < 0x7FFFFFFF:
                raise AudioError(f"{path}: truncated: its header says {size} bytes of samples, but {there} are there.")
            return
        position += 8 + size + size % 2


def _read_with_av(path: Path, soundfile_message: str) -> tuple[np.ndarray, int]:
    try:
        import av
        import av.error
    except ImportError:
        raise AudioError(
            f"{path}: not a sound file that libsndfile can read ({soundfile_message}); "
            "for m4a, aac and video: pip install 'stateless-transducer[media]'."
        ) from None
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: holds no audio.")
            rate = container.streams.audio[0].rate
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
            frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            frames += resampler.resample(None)
    except av.error.FFmpegError as err:
        raise AudioError(f"{path}: not a sound file ({err}).") from err
    samples = [frame.to_ndarray().reshape(-1) for frame in frames]
    return (np.concatenate(samples) if samples else np.zeros(0, np.float32)), rate
