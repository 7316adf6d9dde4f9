"""What is in a sound file or a pipe, block by block, by whatever can read it: libsndfile, or PyAV.

Letters: S samples, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

Block = tuple[np.ndarray, int]
"""Samples in [-1, 1], float32, and their rate."""

# a headerless .raw is a TypeError to soundfile
UNREADABLE = (soundfile.SoundFileError, TypeError)
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


class Damaged(Exception):
    """Raised behind the last block of a sound that is not all there; says why."""


def open_blocks(
    source: str | Path | BinaryIO, name: str, start_s: float, warn: Callable[[str], None] | None = None
) -> Iterator[Block]:
    """Blocks (S, C) from the start on, of whatever can read the source."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_fifo():
            with path.open("rb") as pipe:
                yield from _skipping(_pipe_blocks(pipe, name, warn), start_s)
            return
        refuse_absent(path)
    elif not source.seekable():
        yield from _skipping(_pipe_blocks(source, name, warn), start_s)
        return
    reason = ""
    try:
        with soundfile.SoundFile(source) as file:
            # libsndfile believes the header of an mp3, which is wrong of joined files and of recorded streams
            if file.format != "MP3" or not has_av():
                file.seek(min(round(start_s * file.samplerate), known_length(source, file)))
                yield from _soundfile_blocks(source, file)
                return
    except UNREADABLE as err:
        reason = str(err)
    if not isinstance(source, str | Path):
        source.seek(0)
    yield from _skipping(av_blocks(source, name, reason, warn), start_s)


def _pipe_blocks(pipe: BinaryIO, name: str, warn: Callable[[str], None] | None) -> Iterator[Block]:
    """Libsndfile reads wav, aiff and au from a pipe; PyAV almost everything."""
    if has_av():
        is_readable = False
        try:
            for block in av_blocks(pipe, name, "", warn):
                is_readable = True
                yield block
        except Damaged as err:
            if is_readable:
                raise
            raise AudioError(f"{name}: cannot be read from front to back, as a pipe is; give it as a file.") from err
        return
    try:
        with soundfile.SoundFile(pipe.fileno(), closefd=False) as file:
            yield from _soundfile_blocks(pipe, file)
    except UNREADABLE as err:
        raise AudioError(
            f"{name}: not wav, which is all that can be read from a pipe ({err}); for others: "
            "pip install 'stateless-transducer[media]'."
        ) from err


def has_av() -> bool:
    """Whether PyAV is installed."""
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
            raise Damaged(f"truncated or damaged after {read / file.samplerate:.2f} s ({err})") from err
        if not len(samples):
            break
        read += len(samples)
        yield samples, file.samplerate
    missing = unread(source, file) if isinstance(source, str | Path) or source.seekable() else ""
    if missing:
        raise Damaged(missing)
    # what mpg123 takes for the length of an mp3 may be an estimate
    tolerance = _LENGTH_TOLERANCE_S if file.format == "MP3" else 0
    if file.seekable() and read + tolerance * file.samplerate < file.frames:
        raise Damaged(_shorter(read / file.samplerate, file.frames / file.samplerate))


def _shorter(seconds: float, stated: float) -> str:
    return f"truncated: its header says {stated:.2f} s, but it breaks off after {seconds:.2f} s"


def known_length(source: str | Path | BinaryIO, file: soundfile.SoundFile) -> int:
    """Samples a channel.

    Raises:
        SoundFileRuntimeError: PyAV can tell, and libsndfile cannot: a flac that was written to a pipe does not say, nor
            does a wav whose recorder was killed; of ogg streams one after the other it knows the first.
    """
    if file.frames >= 2**40 or file.frames == 0 and file.format in ("WAV", "WAVEX") and has_av():
        raise soundfile.SoundFileRuntimeError("its header does not tell how long it is")
    if file.format == "OGG" and has_av() and _is_chained(source):
        raise soundfile.SoundFileRuntimeError("it holds several streams one after the other")
    return file.frames


def unread(source: str | Path | BinaryIO, file: soundfile.SoundFile) -> str:
    """What libsndfile silently does not read: what the header of a plain wav says and is not there, and all but the
    first of ogg streams one after the other. Empty if it reads all.
    """
    if file.format == "OGG" and _is_chained(source):
        return (
            "holds several streams one after the other, of which only the first can be read; "
            "for all of them: pip install 'stateless-transducer[media]'"
        )
    return _missing_of_wav(source) if file.format in ("WAV", "WAVEX") else ""


def _missing_of_wav(source: str | Path | BinaryIO) -> str:
    with _opened(source) as raw:
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


def _is_chained(source: str | Path | BinaryIO) -> bool:
    """Whether in an ogg file a stream begins behind another, as in joined files and recordings of web radio."""
    with _opened(source) as raw:
        # libsndfile may be reading it
        place, position, are_begun = raw.tell(), 0, False
        try:
            while True:
                raw.seek(position)
                head = raw.read(27)
                if len(head) < 27 or head[:4] != b"OggS":
                    return False
                begins = bool(head[5] & 2)
                if begins and are_begun:
                    return True
                # streams side by side all begin before any goes on
                are_begun = not begins
                position += len(head) + head[26] + sum(raw.read(head[26]))
        finally:
            raw.seek(place)


def _opened(source: str | Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source)


def av_blocks(
    source: str | Path | BinaryIO, name: str, reason: str, warn: Callable[[str], None] | None = None
) -> Iterator[Block]:
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
        if warn is not None and (count := len(container.streams.audio)) > 1:
            warn(f"{name}: holds {count} audio tracks; the first of them is taken.")
        stream, seconds, filled_s, faults = container.streams.audio[0], 0.0, 0.0, []
        # where the timestamps show how much is lost, silence stands for it
        begin_s, left_out_s, is_unfilled = _begin(container), 0.0, False
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                frames = packet.decode() if packet is not None else []
            except av.error.FFmpegError as err:
                faults.append(f"after {seconds:.2f} s ({err.strerror})")
                is_unfilled = True
                continue
            if packet is None:
                break
            for frame in frames:
                samples, rate = _float_samples(frame), frame.sample_rate
                gap_s = 0.0 if frame.time is None else frame.time - begin_s - left_out_s - seconds
                if filled_s + gap_s > _MOST_FILLED_S:
                    faults.append(f"after {seconds:.2f} s (a gap of {gap_s:.0f} s, which is left out)")
                    left_out_s += gap_s
                elif gap_s > _GAP_TOLERANCE_S:
                    filled_s, seconds, is_unfilled = filled_s + gap_s, seconds + gap_s, False
                    yield from _silence(gap_s, rate, samples.shape[1])
                seconds += len(samples) / rate
                yield samples, rate
        stated = _stated_length(container, source)
    if faults:
        places = "place" if len(faults) == 1 else "places"
        times = ", behind which times may be too early" if is_unfilled or left_out_s else ""
        raise Damaged(f"damaged in {len(faults)} {places}, first {faults[0]}{times}")
    if stated is not None and seconds + _LENGTH_TOLERANCE_S < stated:
        raise Damaged(_shorter(seconds, stated))


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
        begin_s = _begin(container) if "matroska" in kinds else 0.0
        return container.duration / av.time_base - begin_s if container.duration else None
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


def _skipping(blocks: Iterable[Block], start_s: float) -> Iterator[Block]:
    """What lies behind the start."""
    seconds = 0.0
    for samples, rate in blocks:
        first = max(0, round((start_s - seconds) * rate))
        seconds += len(samples) / rate
        if first < len(samples):
            yield samples[first:], rate


def refuse_absent(path: Path) -> None:
    """An AudioError for what is no file."""
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, not a sound file.")
        if not path.is_file():
            raise AudioError(f"{path}: no such file.")
    except OSError as err:
        raise unreadable(path, err) from err


def unreadable(name: str | Path, err: OSError) -> AudioError:
    """What the file system says against a file."""
    return AudioError(f"{name}: cannot be read ({err.strerror or err}).")
