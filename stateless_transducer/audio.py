"""Read sound files of any format, and pipes, as one channel of samples at a given rate, whole or block by block.

Letters: S samples, C channels. NumPy only, so that serving needs no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr  # pyright: ignore[reportMissingTypeStubs]

from stateless_transducer.audio_files import (
    AudioError,
    Block,
    Damaged,
    Warn,
    open_blocks,
    open_container,
    wav_or_flac_length,
)
from stateless_transducer.files import file_problem, printable

SOUND_SUFFIXES = frozenset(
    ".wav .flac .mp3 .opus .ogg .oga .m4a .aac .wma .amr .aiff .aif .au .caf .sph .w64 .rf64 .ac3 .mka "
    ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .ogv .3gp".split()
)
"""Suffixes by which sound files and videos are found in a folder; a file that is named may have any suffix."""

# shares of full scale; a 16-bit file that clips has 32767 / 32768
_CLIPPED, _SILENT = 0.9999, 1e-4
# peak of the mean by the peak of the channels, below which they cancel out
_CANCELLED = 0.01
_MAX_CLIPPED_SHARE = 0.01
# resampled or mixed sound may be a little above 1; live sound has the same bound
_MAX_SAMPLE = 8
MIN_RATE, MAX_RATE = 1000, 1_000_000
"""Bounds of sample rates, in Hz: the memory of resampled sound grows with the ratio of two rates."""


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """Return a whole sound file as one channel (the mean of all) at a given rate.

    Returns:
        (S,), float32.

    Raises:
        AudioError: the file is missing, not audio, truncated, damaged or empty.

    Example:
        >>> wave = read_audio("a.wav", 16000)
        >>> wave.dtype, wave.ndim
        (dtype('float32'), 1)
    """
    return np.concatenate(list(stream_audio(path, sample_rate)))


def stream_audio(
    source: str | Path | BinaryIO,
    sample_rate: int,
    *,
    channel: int | None = None,
    start_s: float = 0.0,
    duration_s: float = math.inf,
    block_s: float = 10.0,
    warn: Warn = None,
) -> Iterator[np.ndarray]:
    """Yield a sound as one channel at a given rate, in blocks; joined, they are equal to a single block.

    libsndfile reads wav and flac; PyAV reads other formats.

    Args:
        source: a file or an open binary file; formats that are read from front to back may come from a pipe.
        sample_rate: of the blocks.
        channel: number of the channel, from 0; None: the mean of all.
        start_s: where to begin.
        duration_s: where to end, from the start.
        block_s: approximate length of a block.
        warn: called with a line about each oddity: damage (the readable part is used), silence, clipping, several
            tracks. None: damage is an error, and oddities are not looked for.

    Yields:
        (S,), float32.

    Raises:
        AudioError: the sound is missing, not audio or empty, holds samples that are not numbers, lacks the channel, or
            is truncated or damaged and there is no ``warn``.
    """
    name = printable(source) if isinstance(source, str | Path) else _name_of(source)
    blocks = _limit(_checked_blocks(source, name, start_s, warn), duration_s)
    is_empty = True
    for samples in _resample_blocks(_join(one_channel(blocks, name, channel, warn), block_s), sample_rate):
        if len(samples):
            is_empty = False
            yield samples
    if is_empty:
        place = f" from {start_s:g} s on" if start_s > 0 else ""
        raise AudioError(f"{name}: holds no samples{place} (0 s of audio).")


def audio_duration(path: str | Path) -> tuple[float, int]:
    """Return seconds and sample rate of a sound file: by its header for wav and flac, by decoding it for other formats.

    Raises:
        AudioError: the file is missing, not audio, truncated, damaged or empty.
    """
    length = wav_or_flac_length(Path(path))
    lengths = Counter({length[1]: length[0]} if length else {})
    if length is None:
        for samples, rate in _checked_blocks(path, printable(path), 0.0, None):
            lengths[rate] += len(samples)
    if not lengths.total():
        raise AudioError(f"{printable(path)}: holds no samples (0 s of audio).")
    # joined files may have several rates
    return sum(num_samples / rate for rate, num_samples in lengths.items()), next(reversed(lengths))


def stated_duration(path: str | Path) -> float | None:
    """Return the seconds of a sound file by its header; None if it does not state them or cannot be read."""
    if file_problem(Path(path)):
        # reading from a pipe would consume it
        return None
    length = wav_or_flac_length(Path(path))
    if length is not None:
        return length[0] / length[1]
    import av
    import av.error

    try:
        # without `file:`, FFmpeg takes the part of a name before a colon for a protocol
        with open_container(f"file:{path}") as container:
            return container.duration / av.time_base if container.duration else None
    except (OSError, UnicodeEncodeError, av.error.FFmpegError):
        # PyAV opens no name that is not UTF-8
        return None


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Resample (S,) to (S * to_rate / from_rate,)."""
    if from_rate == to_rate:
        return samples
    return soxr.resample(samples, from_rate, to_rate).astype(np.float32)


def check_rate(sample_rate: float) -> int:
    """Return a sample rate as a whole number.

    Raises:
        ValueError: The rate is out of bounds, or no whole number.
    """
    if not MIN_RATE <= sample_rate <= MAX_RATE or sample_rate != int(sample_rate):
        raise ValueError(f"`sample_rate` must be a whole number in {MIN_RATE}..{MAX_RATE} Hz, but is {sample_rate}.")
    return int(sample_rate)


def _name_of(file: BinaryIO) -> str:
    name = getattr(file, "name", None)
    return "standard input" if name in ("<stdin>", 0) else printable(name or "sound")


def _checked_blocks(source: str | Path | BinaryIO, name: str, start_s: float, warn: Warn) -> Iterator[Block]:
    """Yield the blocks of a sound; damage, which is known after them, is a warning or an error."""
    if isinstance(source, str | Path):
        problem = file_problem(Path(source), may_be_pipe=True) if str(source) else "the name of the file is empty"
        if problem:
            raise AudioError(f"{name}: {problem}.")
    seconds = 0.0
    try:
        for samples, rate in open_blocks(source, name, start_s, warn):
            # the stated rate decides how much memory the resampled sound takes
            if not MIN_RATE <= rate <= MAX_RATE:
                raise AudioError(f"{name}: its header says {rate} samples a second, not {MIN_RATE} to {MAX_RATE}.")
            seconds += len(samples) / rate
            yield samples, rate
    except Damaged as damage:
        if warn is None or not seconds:
            raise AudioError(f"{name}: {damage}.") from damage
        warn(f"{name}: {damage}; what could be read is used, {seconds:.2f} s.")
    except OSError as err:
        # permissions, a network disk
        raise AudioError(f"{name}: cannot be read ({err.strerror or err}).") from err


def _limit(blocks: Iterable[Block], duration_s: float) -> Iterator[Block]:
    """Yield the samples before the end, and read no block after it."""
    left_s = duration_s
    for samples, rate in blocks:
        if len(samples) >= left_s * rate:
            yield samples[: round(left_s * rate)], rate
            return
        left_s -= len(samples) / rate
        yield samples, rate


def one_channel(blocks: Iterable[Block], name: str, channel: int | None, warn: Warn) -> Iterator[Block]:
    """Reduce blocks (S, C) to (S,), one channel or the mean of all, and warn about oddities; see `stream_audio`."""
    total = clipped = 0
    seconds = peak = mono_peak = 0.0
    for samples, rate in blocks:
        num_channels = samples.shape[1]
        if channel is not None and not 0 <= channel < num_channels:
            which = "only channel 0" if num_channels == 1 else f"channels 0 to {num_channels - 1}"
            raise AudioError(f"{name}: has {which}, but channel {channel} is wanted.")
        mono = samples.mean(axis=1) if channel is None else samples[:, channel]
        if not np.isfinite(mono).all():
            seconds += np.isfinite(mono).argmin() / rate
            raise AudioError(f"{name}: holds samples that are not numbers, the first after {seconds:.2f} s.")
        if (loudest := np.abs(mono).max(initial=0)) > _MAX_SAMPLE:
            raise AudioError(f"{name}: holds samples of {loudest:.3g} times full scale; divide them, to be in [-1, 1].")
        if warn is not None:
            loudness = np.abs(samples if channel is None else mono)
            clipped += np.count_nonzero(loudness >= _CLIPPED)
            total, peak = total + loudness.size, max(peak, float(loudness.max(initial=0)))
            mono_peak = max(mono_peak, float(loudest))
        seconds += len(mono) / rate
        yield mono, rate
    if warn is not None and total and peak < _SILENT:
        warn(f"{name}: silent: its loudest sample is {peak:.1g} of full scale.")
    elif warn is not None and mono_peak < _CANCELLED * peak:
        warn(f"{name}: its channels cancel each other out in their mean; take one of them: `--channel 0`.")
    if warn is not None and clipped > _MAX_CLIPPED_SHARE * total:
        warn(f"{name}: clipped: {100 * clipped / total:.1f} % of its samples are at full scale.")


def _join(blocks: Iterable[Block], block_s: float) -> Iterator[Block]:
    """Join small blocks of the same rate to longer ones."""
    parts: list[np.ndarray] = []
    length, joined_rate = 0, 0
    for samples, rate in blocks:
        if parts and (rate != joined_rate or length >= block_s * rate):
            yield np.concatenate(parts), joined_rate
            parts, length = [], 0
        parts.append(samples)
        length, joined_rate = length + len(samples), rate
    if parts:
        yield np.concatenate(parts), joined_rate


def _resample_blocks(blocks: Iterable[Block], to_rate: int) -> Iterator[np.ndarray]:
    """Resample as one stream, bit-equal to `resample` of the whole; a change of the rate begins another stream."""
    stream, from_rate = None, 0
    for samples, rate in blocks:
        if rate != from_rate:
            if stream is not None:
                yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
            stream = None if rate == to_rate else soxr.ResampleStream(rate, to_rate, 1, dtype="float32")
            from_rate = rate
        yield samples if stream is None else stream.resample_chunk(samples)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
