"""Sound: files of any kind, or a pipe, to one channel of samples at the wanted rate, whole or block by block.

Letters: S samples, C channels. NumPy only, so that serving needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from stateless_transducer.audio_files import (
    UNREADABLE,
    AudioError,
    Block,
    Damaged,
    av_blocks,
    has_av,
    known_length,
    open_blocks,
    refuse_absent,
    unread,
    unreadable,
)

SOUND_SUFFIXES = frozenset(
    ".wav .flac .mp3 .opus .ogg .oga .m4a .aac .wma .amr .aiff .aif .au .caf .sph .w64 .rf64 .ac3 .mka "
    ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .ogv .3gp".split()
)
"""By which sound files, videos among them, are found in a folder; any other file is read if it is named."""

# of full scale; a 16-bit file that clips has 32767 / 32768
_CLIPPED, _SILENT = 0.9999, 1e-4
# of the peak of the channels, the peak of their mean, where one is the other upside down
_CANCELLED = 0.01
_MAX_CLIPPED_SHARE = 0.01
# a little above 1 happens to resampled or mixed sound; live sound has the same bound
_LARGEST = 8
_RATES = 1000, 1_000_000


def read_audio(path: str | Path, sample_rate: int) -> np.ndarray:
    """A whole sound file as one channel (the mean of all) at the wanted rate.

    Returns:
        (S,), float32.

    Raises:
        AudioError: missing, not audio, truncated, damaged or empty.
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
    warn: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """A sound as one channel at the wanted rate, in blocks; joined, they are what a single block would be.

    wav, flac, ogg and opus are read by libsndfile, everything else (mp3, m4a, aac, video, joined ogg files) by PyAV
    where installed; mp3 by libsndfile where it is not.

    Args:
        source: a file, or an open binary file; a pipe will do for what can be read from the front to the back.
        sample_rate: of the blocks.
        channel: which one, from 0; None: the mean of all.
        start_s: where to begin.
        duration_s: how much of what follows.
        block_s: about how long blocks are.
        warn: called with a line about each oddity: damage, where what could be read is used; silence; clipping; tracks.
            None: damage is an error, oddities are not looked for.

    Yields:
        (S,), float32.

    Raises:
        AudioError: missing, not audio or empty; holds samples that are not numbers; lacks the channel; is damaged, and
            there is no ``warn``.
    """
    name = str(source) if isinstance(source, str | Path) else _name_of(source)
    blocks = _limited(_tolerant(_readable(open_blocks(source, name, start_s, warn), name), name, warn), duration_s)
    mono = _gathered(one_channel(blocks, name, channel, warn), block_s)
    is_empty = True
    for samples in _resampled(mono, sample_rate):
        if len(samples):
            is_empty = False
            yield samples
    if is_empty:
        place = f" from {start_s:g} s on" if start_s > 0 else ""
        raise AudioError(f"{name}: holds no samples{place} (0 s of audio).")


def audio_duration(path: str | Path) -> tuple[float, int]:
    """Seconds and sample rate of a sound file, from its header where it has one.

    Raises:
        AudioError: missing, not audio, truncated or empty.
    """
    path = Path(path)
    refuse_absent(path)
    try:
        with soundfile.SoundFile(path) as file:
            num_samples, rate = known_length(path, file), file.samplerate
            missing = unread(path, file)
            if missing:
                raise AudioError(f"{path}: {missing}.")
    except UNREADABLE as err:
        blocks = _tolerant(av_blocks(path, str(path), str(err)), str(path), None)
        lengths = [(len(samples), rate) for samples, rate in blocks]
        num_samples, rate = sum(length for length, _ in lengths), lengths[-1][1] if lengths else 1
    if not num_samples:
        raise AudioError(f"{path}: holds no samples (0 s of audio).")
    return num_samples / rate, rate


def stated_duration(path: str | Path) -> float | None:
    """Seconds of a sound file as its header states them; None where it does not, or cannot be read."""
    if not Path(path).is_file():
        # to look into a pipe would take from it
        return None
    try:
        return soundfile.info(path).duration
    except UNREADABLE:
        if not has_av():
            return None
    import av
    import av.error

    try:
        with av.open(f"file:{path}", metadata_errors="replace") as container:
            return container.duration / av.time_base if container.duration else None
    except (OSError, av.error.FFmpegError):
        return None


def resample(samples: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """(S,) at one rate -> (S * to_rate / from_rate,) at another."""
    if from_rate == to_rate:
        return samples
    return soxr.resample(samples, from_rate, to_rate).astype(np.float32)


def _name_of(file: BinaryIO) -> str:
    name = getattr(file, "name", None)
    return "standard input" if name in ("<stdin>", 0) else str(name or "sound")


def _readable(blocks: Iterable[Block], name: str) -> Iterator[Block]:
    """The blocks; what the file system says against them (permissions, a network disk) is an AudioError."""
    try:
        yield from blocks
    except OSError as err:
        raise unreadable(name, err) from err


def _tolerant(blocks: Iterable[Block], name: str, warn: Callable[[str], None] | None) -> Iterator[Block]:
    """The blocks; damage, which is met behind them, is a warning or an error."""
    seconds = 0.0
    try:
        for samples, rate in blocks:
            # what a header says decides how much memory its samples take at another rate
            if not _RATES[0] <= rate <= _RATES[1]:
                raise AudioError(f"{name}: its header says {rate} samples a second, not {_RATES[0]} to {_RATES[1]}.")
            seconds += len(samples) / rate
            yield samples, rate
    except Damaged as damage:
        if warn is None or not seconds:
            raise AudioError(f"{name}: {damage}.") from damage
        warn(f"{name}: {damage}; what could be read is used, {seconds:.2f} s.")


def _limited(blocks: Iterable[Block], duration_s: float) -> Iterator[Block]:
    """What lies before the end; no more blocks are read behind it."""
    left_s = duration_s
    for samples, rate in blocks:
        if len(samples) >= left_s * rate:
            yield samples[: round(left_s * rate)], rate
            return
        left_s -= len(samples) / rate
        yield samples, rate


def one_channel(
    blocks: Iterable[Block], name: str, channel: int | None, warn: Callable[[str], None] | None
) -> Iterator[Block]:
    """Blocks (S, C) -> (S,): one channel, or the mean of all, and what is odd about them; see `stream_audio`."""
    total = clipped = 0
    seconds = peak = mono_peak = 0.0
    for samples, rate in blocks:
        there = samples.shape[1]
        if channel is not None and channel >= there:
            which = "only channel 0" if there == 1 else f"channels 0 to {there - 1}"
            raise AudioError(f"{name}: has {which}, but channel {channel} is wanted.")
        mono = samples.mean(axis=1) if channel is None else samples[:, channel]
        if not np.isfinite(mono).all():
            seconds += np.isfinite(mono).argmin() / rate
            raise AudioError(f"{name}: holds samples that are not numbers, the first after {seconds:.2f} s.")
        if (loudest := np.abs(mono).max(initial=0)) > _LARGEST:
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


def _gathered(blocks: Iterable[Block], block_s: float) -> Iterator[Block]:
    """Small blocks joined until they are as long as wanted, never across a change of the rate."""
    kept: list[np.ndarray] = []
    kept_rate, length = 0, 0
    for samples, rate in blocks:
        if kept and (rate != kept_rate or length >= block_s * rate):
            yield np.concatenate(kept), kept_rate
            kept, length = [], 0
        kept.append(samples)
        kept_rate, length = rate, length + len(samples)
    if kept:
        yield np.concatenate(kept), kept_rate


def _resampled(blocks: Iterable[Block], sample_rate: int) -> Iterator[np.ndarray]:
    """One stream of samples, bit-equal to `resample` of the whole; a change of the rate begins a new one."""
    stream, rate = None, 0
    for samples, found in blocks:
        if found != rate:
            if stream is not None:
                yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
            stream = None if found == sample_rate else soxr.ResampleStream(found, sample_rate, 1, dtype="float32")
            rate = found
        yield samples if stream is None else stream.resample_chunk(samples)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
