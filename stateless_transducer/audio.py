"""Sound: files of any kind, or a pipe, to one channel of samples at the wanted rate, whole or block by block.

Letters: S samples, C channels. NumPy only, so that serving needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

SOUND_SUFFIXES = frozenset(
    ".wav .flac .mp3 .opus .ogg .oga .m4a .aac .wma .amr .aiff .aif .au .caf .sph .w64 .rf64 .ac3 .mka "
    ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .ogv .3gp".split()
)
"""By which sound files, videos among them, are found in a folder; any other file is read if it is named."""

Block = tuple[np.ndarray, int]
"""Samples in [-1, 1], float32, and their rate."""

# a headerless .raw is a TypeError to soundfile
_UNREADABLE = (soundfile.SoundFileError, TypeError)
# of full scale; a 16-bit file that clips has 32767 / 32768
_CLIPPED, _SILENT = 0.9999, 1e-4
# of the peak of the channels, the peak of their mean, where one is the other upside down
_CANCELLED = 0.01
_MAX_CLIPPED_SHARE = 0.01
# a little above 1 happens to resampled or mixed sound; live sound has the same bound
_LARGEST = 8
_RATES = 1000, 1_000_000
# recorders into a pipe write 0x7fffff00 (arecord), 0x7ffff000 (sox) or 0xffffffff for a length that they do not know
_UNKNOWN_SIZE = 0x7FFFF000
# what is read with a damaged place is lost
_SAMPLES_AT_ONCE = 4096
# containers may be cut at the next key frame, or count the encoder's delay
_LENGTH_TOLERANCE_S = 1.0
# timestamps jitter, and know of the encoder's delay
_GAP_TOLERANCE_S = 0.1
# a broken timestamp may be years ahead
_MOST_FILLED_S = 3600.0


class AudioError(ValueError):
    """A sound cannot be used; the message names it and says why."""


class _Damaged(Exception):
    """Raised behind the last block of a sound that is not all there; says why."""


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

    wav, flac, ogg and opus are read by libsndfile, everything else (mp3, m4a, aac, video) by PyAV where installed; mp3
    by libsndfile where it is not.

    Args:
        source: a file, or an open binary file; a pipe will do for what can be read from the front to the back.
        sample_rate: of the blocks.
        channel: which one, from 0; None: the mean of all.
        start_s: where to begin.
        duration_s: how much of what follows.
        block_s: about how long blocks are.
        warn: called with a line about each oddity: damage, where what could be read is used; silence; clipping.
            None: damage is an error, oddities are not looked for.

    Yields:
        (S,), float32.

    Raises:
        AudioError: missing, not audio or empty; holds samples that are not numbers; lacks the channel; is damaged, and
            there is no ``warn``.
    """
    name = str(source) if isinstance(source, str | Path) else _name_of(source)
    blocks = _limited(_tolerant(_readable(_open(source, name, start_s), name), name, warn), duration_s)
    mono = _gathered(_one_channel(blocks, name, channel, warn), block_s)
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
    _refuse_absent(path)
    try:
        with soundfile.SoundFile(path) as file:
            missing = _missing_of_wav(path, file)
            if missing:
                raise AudioError(f"{path}: {missing}.")
            num_samples, rate = _known_length(file), file.samplerate
    except _UNREADABLE as err:
        blocks = _tolerant(_av_blocks(path, str(path), str(err)), str(path), None)
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
    except _UNREADABLE:
        if not _has_av():
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


def _refuse_absent(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, not a sound file.")
        if not path.is_file():
            raise AudioError(f"{path}: no such file.")
    except OSError as err:
        raise _unreadable(path, err) from err


def _unreadable(name: str | Path, err: OSError) -> AudioError:
    return AudioError(f"{name}: cannot be read ({err.strerror or err}).")


def _readable(blocks: Iterable[Block], name: str) -> Iterator[Block]:
    """The blocks; what the file system says against them (permissions, a network disk) is an AudioError."""
    try:
        yield from blocks
    except OSError as err:
        raise _unreadable(name, err) from err


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
    except _Damaged as damage:
        if warn is None or not seconds:
            raise AudioError(f"{name}: {damage}.") from damage
        warn(f"{name}: {damage}; what could be read is used, {seconds:.2f} s.")


def _skipping(blocks: Iterable[Block], start_s: float) -> Iterator[Block]:
    """What lies behind the start."""
    seconds = 0.0
    for samples, rate in blocks:
        first = max(0, round((start_s - seconds) * rate))
        seconds += len(samples) / rate
        if first < len(samples):
            yield samples[first:], rate


def _limited(blocks: Iterable[Block], duration_s: float) -> Iterator[Block]:
    """What lies before the end; no more blocks are read behind it."""
    left_s = duration_s
    for samples, rate in blocks:
        if len(samples) >= left_s * rate:
            yield samples[: round(left_s * rate)], rate
            return
        left_s -= len(samples) / rate
        yield samples, rate


def _one_channel(
    blocks: Iterable[Block], name: str, channel: int | None, warn: Callable[[str], None] | None
) -> Iterator[Block]:
    """(S, C) -> (S,): one channel, or the mean of all."""
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


def _open(source: str | Path | BinaryIO, name: str, start_s: float) -> Iterator[Block]:
    """Blocks (S, C) from the start on, of whatever can read the source."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_fifo():
            with path.open("rb") as pipe:
                yield from _skipping(_pipe_blocks(pipe, name), start_s)
            return
        _refuse_absent(path)
    elif not source.seekable():
        yield from _skipping(_pipe_blocks(source, name), start_s)
        return
    reason = ""
    try:
        with soundfile.SoundFile(source) as file:
            # libsndfile believes the header of an mp3, which is wrong of joined files and of recorded streams
            if file.format != "MP3" or not _has_av():
                file.seek(min(round(start_s * file.samplerate), _known_length(file)))
                yield from _soundfile_blocks(source, file)
                return
    except _UNREADABLE as err:
        reason = str(err)
    if not isinstance(source, str | Path):
        source.seek(0)
    yield from _skipping(_av_blocks(source, name, reason), start_s)


def _pipe_blocks(pipe: BinaryIO, name: str) -> Iterator[Block]:
    """Libsndfile reads wav, aiff and au from a pipe; PyAV almost everything."""
    if _has_av():
        is_readable = False
        try:
            for block in _av_blocks(pipe, name, ""):
                is_readable = True
                yield block
        except _Damaged as err:
            if is_readable:
                raise
            raise AudioError(f"{name}: cannot be read from front to back, as a pipe is; give it as a file.") from err
        return
    try:
        with soundfile.SoundFile(pipe.fileno(), closefd=False) as file:
            yield from _soundfile_blocks(pipe, file)
    except _UNREADABLE as err:
        raise AudioError(
            f"{name}: not wav, which is all that can be read from a pipe ({err}); for others: "
            "pip install 'stateless-transducer[media]'."
        ) from err


def _has_av() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def _soundfile_blocks(source: str | Path | BinaryIO, file: soundfile.SoundFile) -> Iterator[Block]:
    read = file.tell() if file.seekable() else 0
    while True:
        try:
            samples = file.read(_SAMPLES_AT_ONCE, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as err:
            raise _Damaged(f"truncated or damaged after {read / file.samplerate:.2f} s ({err})") from err
        if not len(samples):
            break
        read += len(samples)
        yield samples, file.samplerate
    missing = _missing_of_wav(source, file) if isinstance(source, str | Path) or source.seekable() else ""
    if missing:
        raise _Damaged(missing)
    # what mpg123 takes for the length of an mp3 may be an estimate
    tolerance = _LENGTH_TOLERANCE_S if file.format == "MP3" else 0
    if file.seekable() and read + tolerance * file.samplerate < file.frames:
        raise _Damaged(_shorter(read / file.samplerate, file.frames / file.samplerate))


def _shorter(seconds: float, stated: float) -> str:
    return f"truncated: its header says {stated:.2f} s, but it breaks off after {seconds:.2f} s"


def _known_length(file: soundfile.SoundFile) -> int:
    """Samples a channel; a flac that was written to a pipe does not say, nor does a wav whose recorder was killed."""
    if file.frames >= 2**40 or file.frames == 0 and file.format in ("WAV", "WAVEX") and _has_av():
        raise soundfile.SoundFileRuntimeError("its header does not tell how long it is")
    return file.frames


def _missing_of_wav(source: str | Path | BinaryIO, file: soundfile.SoundFile) -> str:
    """What the header of a plain wav says is missing: libsndfile silently reads what is there. Empty if all is."""
    if file.format not in ("WAV", "WAVEX"):
        return ""
    with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as raw:
        size_of_all = raw.seek(0, 2)
        position = 12
        while position + 8 <= size_of_all:
            raw.seek(position)
            head = raw.read(8)
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                there = size_of_all - position - 8
                if there < size < _UNKNOWN_SIZE:
                    return f"truncated: its header says {size} bytes of samples, but {there} are there"
                return ""
            position += 8 + size + size % 2
    return ""


def _av_blocks(source: str | Path | BinaryIO, name: str, reason: str) -> Iterator[Block]:
    """Blocks of what libsndfile cannot read, for the given reason; packets that cannot be decoded are left out.

    Where the timestamps leave a gap, as before sound that begins later than the pictures, there is silence.
    """
    try:
        import av
        import av.error
    except ImportError:
        raise AudioError(
            f"{name}: not a sound file that libsndfile can read ({reason}); "
            "for m4a, aac and video: pip install 'stateless-transducer[media]'."
        ) from None
    try:
        # without `file:`, what is before a colon is a protocol to FFmpeg
        file = f"file:{source}" if isinstance(source, str | Path) else source
        # of somebody's upload, too: no list in it may name files of this machine, or addresses
        options = {} if isinstance(source, str | Path) else {"protocol_whitelist": "pipe"}
        container = av.open(file, "r", metadata_errors="replace", options=options)
    except av.error.FFmpegError as err:
        where = "" if isinstance(source, str | Path) or source.seekable() else " that can be read from a pipe"
        raise AudioError(f"{name}: not a sound file{where} ({err.strerror}).") from err
    with container:
        if not container.streams.audio:
            raise AudioError(f"{name}: holds no audio.")
        stream, seconds, filled_s, faults = container.streams.audio[0], 0.0, 0.0, []
        begin_s = _begin(container)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet is not None else []
            except av.error.FFmpegError as err:
                faults.append(f"after {seconds:.2f} s ({err.strerror})")
                continue
            if packet is None:
                break
            for frame in frames:
                samples, rate = _float_samples(frame), frame.sample_rate
                gap_s = 0.0 if frame.time is None else frame.time - begin_s - seconds
                if filled_s + gap_s > _MOST_FILLED_S:
                    faults.append(f"after {seconds:.2f} s (a gap of {gap_s:.0f} s, which is left out)")
                    begin_s += gap_s
                elif gap_s > _GAP_TOLERANCE_S:
                    filled_s, seconds = filled_s + gap_s, seconds + gap_s
                    yield from _silence(gap_s, rate, samples.shape[1])
                seconds += len(samples) / rate
                yield samples, rate
        stated = _stated_length(container, source)
    if faults:
        places = "place" if len(faults) == 1 else "places"
        raise _Damaged(f"damaged in {len(faults)} {places}, first {faults[0]}, behind which times may be too early")
    if stated is not None and seconds + _LENGTH_TOLERANCE_S < stated:
        raise _Damaged(_shorter(seconds, stated))


def _begin(container) -> float:
    """Seconds on the clock of the timestamps at which the first of the streams begins."""
    import av

    return (container.start_time or 0) / av.time_base


def _silence(seconds: float, rate: int, channels: int) -> Iterator[Block]:
    left = round(seconds * rate)
    while left:
        length = min(left, _SAMPLES_AT_ONCE)
        left -= length
        yield np.zeros((length, channels), np.float32), rate


def _stated_length(container, source: str | Path | BinaryIO) -> float | None:
    """Seconds that there should be; None where what PyAV gives is an estimate, or that of another stream."""
    import av

    kinds, stream = set(container.format.name.split(",")), container.streams.audio[0]
    if "mp4" in kinds and stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - _begin(container)
    if "matroska" in kinds and len(container.streams) == 1 or "mp3" in kinds and _has_xing_header(source):
        return container.duration / av.time_base if container.duration else None
    return None


def _has_xing_header(source: str | Path | BinaryIO) -> bool:
    """Whether the first frame of an mp3 tells how many there are."""
    if not isinstance(source, str | Path):
        return False
    with Path(source).open("rb") as raw:
        head = raw.read(10)
        # a tag of ID3 comes first, its length in four times seven bits
        tag = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:]))) + 10 if head[:3] == b"ID3" else 0
        raw.seek(tag)
        frame = raw.read(256)
    return b"Xing" in frame or b"Info" in frame


def _float_samples(frame) -> np.ndarray:
    """(S, C), float32, of a frame of PyAV."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return ((samples - half if samples.dtype.kind == "u" else samples) / half).astype(np.float32)
