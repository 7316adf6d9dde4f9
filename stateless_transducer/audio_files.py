"""Blocks of samples from a sound file or a pipe: wav and flac by libsndfile, other formats by PyAV.

Letters: S samples, C channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

Block = tuple[np.ndarray, int]
"""Samples in [-1, 1], float32, and their rate."""
Warn = Callable[[str], None] | None
"""Called with a line about each oddity."""

# a headerless .raw is a TypeError to soundfile
_UNREADABLE = (soundfile.SoundFileError, TypeError)
# libsndfile reads these, too, but neither all of joined files nor does it report truncation; it keeps formats that
# FFmpeg takes for others (HTK, Matlab, ...)
_LEFT_TO_AV = frozenset(("MP3", "OGG", "AIFF", "AU", "CAF", "NIST", "W64"))
# libsndfile's length of a flac that was written to a pipe is larger
_MAX_SAMPLES = 2**40
# recorders into a pipe write 0x7fffff00 (arecord), 0x7ffff000 (sox) or 0xffffffff for an unknown size
_UNKNOWN_SIZE = 0x7FFFF000
# a read that meets damage loses all of its samples
_SAMPLES_PER_READ = 4096
# stated lengths may count the encoder's delay; those of videos may be longer than their sound
_LENGTH_TOLERANCE_S, _VIDEO_LENGTH_TOLERANCE_S = 0.25, 1.0
# timestamps jitter, and count the encoder's delay
_GAP_TOLERANCE_S = 0.1
# a broken timestamp may be years ahead
_MAX_FILLED_S = 3600.0
_MAX_OGG_PAGE = 65307
# uploads are read, too: no playlist may name files of this machine, or addresses
_AV_OPTIONS = {"protocol_whitelist": "pipe"}


class AudioError(ValueError):
    """A sound cannot be used; the message names it and says why.

    Example:
        >>> try:
        ...     read_audio("missing.wav", 16000)
        ... except AudioError as err:
        ...     print(err)
        missing.wav: no such file.
    """


class Damaged(Exception):
    """Raised after the last readable block of an incomplete sound; says what is wrong."""


def open_blocks(source: str | Path | BinaryIO, name: str, start_s: float, warn: Warn) -> Iterator[Block]:
    """Yield the blocks (S, C) of a sound from the start on.

    Raises:
        AudioError: the source is not audio.
        Damaged: the sound is truncated or damaged; raised after its last block.
        OSError: the file system refuses the file.
    """
    with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as file:
        if file.seekable():
            try:
                with soundfile.SoundFile(_encoded(source)) as sound:
                    if _is_read_by_libsndfile(sound):
                        sound.seek(min(round(start_s * sound.samplerate), sound.frames))
                        yield from _libsndfile_blocks(sound, file)
                        return
            except _UNREADABLE:
                pass
            file.seek(0)
        yield from _skip(_av_blocks(file, name, warn), start_s)


def wav_or_flac_length(path: Path) -> tuple[int, int] | None:
    """Return samples per channel and sample rate by the header; None for other formats and truncated files."""
    try:
        # of a regular file without a size (in /proc), reading may wait forever
        if not path.is_file() or not path.stat().st_size:
            return None
        with soundfile.SoundFile(_encoded(path)) as sound, path.open("rb") as file:
            if not _is_read_by_libsndfile(sound) or _missing_of_wav(file, file.seek(0, io.SEEK_END)):
                return None
            # an error if a flac is truncated
            sound.seek(max(0, sound.frames - 1))
            return sound.frames, sound.samplerate
    except (*_UNREADABLE, OSError):
        return None


def _encoded(source: str | Path | BinaryIO) -> Any:
    """Return a path as bytes: soundfile encodes names itself, and refuses those that are not UTF-8."""
    return os.fsencode(source) if isinstance(source, str | Path) else source


def _is_read_by_libsndfile(sound: soundfile.SoundFile) -> bool:
    if not sound.frames and sound.format in ("WAV", "WAVEX", "RF64"):
        # a killed recorder has not written the length
        return False
    return sound.format not in _LEFT_TO_AV and sound.frames < _MAX_SAMPLES


def _libsndfile_blocks(sound: soundfile.SoundFile, file: BinaryIO) -> Iterator[Block]:
    num_read = sound.tell()
    while True:
        try:
            samples = sound.read(_SAMPLES_PER_READ, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as err:
            raise Damaged(f"truncated or damaged after {num_read / sound.samplerate:.2f} s ({err})") from err
        if not len(samples):
            break
        num_read += len(samples)
        yield samples, sound.samplerate
    if missing := _missing_of_wav(file, file.seek(0, io.SEEK_END)):
        raise Damaged(missing)
    if num_read < sound.frames:
        raise Damaged(_shorter(num_read / sound.samplerate, sound.frames / sound.samplerate))


def _missing_of_wav(file: BinaryIO, num_bytes: int) -> str:
    """Compare the size of a wav's samples with the one that its header states; empty if they agree.

    Args:
        file: the sound, or at least its header.
        num_bytes: size of the sound.
    """
    file.seek(0)
    kind, position, size_of_rf64 = file.read(4), 12, None
    byte_order = "big" if kind == b"RIFX" else "little"
    while kind in (b"RIFF", b"RIFX", b"RF64"):
        file.seek(position)
        chunk = file.read(24)
        size, position = int.from_bytes(chunk[4:8], byte_order), position + 8
        if len(chunk) < 8:
            break
        if chunk[:4] == b"ds64":
            size_of_rf64 = int.from_bytes(chunk[16:24], "little")
        if chunk[:4] == b"data":
            stated, present = size if size_of_rf64 is None else size_of_rf64, num_bytes - position
            if present < stated and (size < _UNKNOWN_SIZE or size_of_rf64 is not None):
                return f"truncated: its header says {stated} bytes of samples, but {present} are there"
            break
        position += size + size % 2
    return ""


def _shorter(seconds: float, stated_s: float) -> str:
    return f"truncated: its header says {stated_s:.2f} s, but it breaks off after {seconds:.2f} s"


def _skip(blocks: Iterable[Block], start_s: float) -> Iterator[Block]:
    """Drop the samples before the start."""
    seconds = 0.0
    for samples, rate in blocks:
        first = max(0, round((start_s - seconds) * rate))
        seconds += len(samples) / rate
        if first < len(samples):
            yield samples[first:], rate


class _Source:
    """A binary file as PyAV reads it; remembers both ends of what was read."""

    def __init__(self, file: BinaryIO, name: str, size_share: float = 1.0) -> None:
        """A file whose size seems to be a share of the true one; 0: unknown."""
        self.name = name
        self.head, self.tail, self.num_bytes = b"", b"", 0
        self.seekable, self.tell = file.seekable, file.tell
        self._file, self._size_share = file, size_share

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.head = self.head or data
        self.tail = (self.tail + data)[-_MAX_OGG_PAGE:]
        self.num_bytes += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = self._file.seek(offset, whence)
        return position if whence != io.SEEK_END else round(position * self._size_share) if self._size_share else -1

    def duration_by_size(self, share: float) -> int | None:
        """Return the container's duration if the file had a share of its size; 0: an unknown size."""
        self._file.seek(0)
        source = _Source(self._file, self.name, share)
        with open_container(source, options=_AV_OPTIONS) as container:
            return container.duration


@dataclass
class _Progress:
    """Position in a container, and the damage so far; times are relative to its begin."""

    begin_s: float
    """Begin of the container on the clock of its timestamps."""
    seconds: float = 0.0
    """Sound so far, filled gaps included."""
    filled_s: float = 0.0
    """Gaps that were filled with silence."""
    dropped_s: float = 0.0
    """Gaps that were too long to fill."""
    is_unfilled: bool = False
    """Whether undecodable sound has not been replaced by silence yet."""
    video_s: float = 0.0
    """End of the other streams."""
    faults: list[str] = field(default_factory=list)
    incomplete: dict[int, float] = field(default_factory=dict)
    """Stream -> seconds at which a packet of it is incomplete; of streams without sound the last one counts."""

    def add_fault(self, reason: str) -> None:
        self.faults.append(f"after {self.seconds:.2f} s ({reason})")

    def gap_before(self, frame) -> float:
        """Seconds of silence to put before a frame, by its timestamp."""
        gap_s = 0.0 if frame.time is None else frame.time - self.begin_s - self.dropped_s - self.seconds
        if self.filled_s + gap_s > _MAX_FILLED_S:
            self.add_fault(f"a gap of {gap_s:.0f} s, which is left out")
            self.dropped_s += gap_s
        elif gap_s > _GAP_TOLERANCE_S:
            self.filled_s, self.seconds, self.is_unfilled = self.filled_s + gap_s, self.seconds + gap_s, False
            return gap_s
        return 0.0


def open_container(source: Any, **options: Any) -> Any:
    """Open a file with PyAV, also if its tags are not UTF-8.

    Args:
        source: name or file object, see ``av.open``.
        **options: further arguments of ``av.open``.

    Returns:
        The input container.

    Raises:
        av.error.FFmpegError: the file is not a sound or video file.
    """
    import av

    # PyAV 19 keeps such bytes by itself, and does not take the argument
    if int(av.__version__.split(".")[0]) < 19:
        options["metadata_errors"] = "replace"
    return av.open(source, "r", **options)


def _av_blocks(file: BinaryIO, name: str, warn: Warn) -> Iterator[Block]:
    """Yield what PyAV decodes; undecodable packets are skipped, and gaps between timestamps become silence."""
    import av
    import av.error

    source = _Source(file, name)
    try:
        container = open_container(source, options=_AV_OPTIONS)
    except av.error.FFmpegError as err:
        origin = "" if file.seekable() else " that can be read from a pipe"
        raise AudioError(f"{name}: not a sound file{origin} ({err.strerror}).") from err
    with container:
        if not container.streams.audio:
            raise AudioError(f"{name}: holds no audio.")
        if warn is not None and (count := len(container.streams.audio)) > 1:
            warn(f"{name}: holds {count} audio tracks; the first of them is taken.")
        progress = _Progress((container.start_time or 0) / av.time_base)
        for frame in _frames(container, progress):
            samples, rate = _float_samples(frame), frame.sample_rate
            yield from _silence(progress.gap_before(frame), rate, samples.shape[1])
            progress.seconds += len(samples) / rate
            yield samples, rate
        damage = _damage(container, source, progress)
    if damage and not progress.seconds and not file.seekable():
        raise AudioError(f"{name}: cannot be read from front to back, as a pipe is; give it as a file.")
    if damage:
        raise Damaged(damage)


def _frames(container, progress: _Progress) -> Iterator:
    """Yield the frames of the first audio stream, and record the damage."""
    import av.error

    index, packets = container.streams.audio[0].index, container.demux()
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            if packet.is_corrupt:
                progress.incomplete.setdefault(packet.stream_index, progress.seconds)
            elif packet.stream_index != index and packet.size:
                progress.incomplete.pop(packet.stream_index, None)
            if packet.stream_index != index and packet.pts is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base) - progress.begin_s
                progress.video_s = max(progress.video_s, end_s)
            frames = packet.decode() if packet.stream_index == index else []
        except av.error.FFmpegError as err:
            progress.add_fault(err.strerror or str(err))
            progress.is_unfilled = True
            continue
        for frame in frames:
            if frame.is_corrupt:
                progress.add_fault("an incomplete frame")
            yield frame


def _damage(container, source: _Source, progress: _Progress) -> str:
    """Describe the damage of a container that was read to its end; empty if there is none."""
    kinds = container.format.name.split(",")
    shorter = _shorter_than_stated(container, source, progress)
    if progress.faults:
        places = "place" if len(progress.faults) == 1 else "places"
        times = ", after which times may be too early" if progress.is_unfilled or progress.dropped_s else ""
        return f"damaged in {len(progress.faults)} {places}, first {progress.faults[0]}{times}"
    if shorter:
        return shorter
    if "wav" in kinds:
        # to FFmpeg, a wav of unknown size is truncated
        return _missing_of_wav(io.BytesIO(source.head), source.num_bytes)
    if "ogg" in kinds and not _ends_ogg(source.tail):
        return (
            f"truncated: its last Ogg page, after {progress.seconds:.2f} s, does not end the stream (if the recording "
            "is complete, mark its end: ffmpeg -i old.ogg -c copy new.ogg)"
        )
    if progress.incomplete:
        return f"truncated or damaged: after {min(progress.incomplete.values()):.2f} s, a packet is incomplete"
    return ""


def _shorter_than_stated(container, source: _Source, progress: _Progress) -> str:
    """Compare what was read with the length that the header states; empty if nothing is missing."""
    import av

    kinds, stream, duration = container.format.name.split(","), container.streams.audio[0], container.duration
    if "avi" in kinds and source.seekable():
        # FFmpeg scales the stated one by the share of the file that is present
        duration = source.duration_by_size(0)
    if "mp4" in kinds and stream.duration:
        # its streams may follow one another
        stated_s = float((stream.duration + (stream.start_time or 0)) * stream.time_base) - progress.begin_s
        reached_s = progress.seconds
    else:
        # one length for all streams; in matroska it counts from 0 on the clock
        stated_s = (duration or 0) / av.time_base - (progress.begin_s if "matroska" in kinds else 0)
        reached_s = max(progress.seconds, progress.video_s)
    tolerance_s = _LENGTH_TOLERANCE_S if len(container.streams) == 1 else _VIDEO_LENGTH_TOLERANCE_S
    if reached_s + tolerance_s >= stated_s:
        return ""
    # a length that changes with the size of the file is FFmpeg's estimate
    is_estimate = "avi" not in kinds and source.seekable() and source.duration_by_size(0.5) != duration
    return "" if is_estimate else _shorter(progress.seconds, stated_s)


def _ends_ogg(tail: bytes) -> bool:
    """Whether the last Ogg page is complete and marked as the end of a stream."""
    page = tail[tail.rfind(b"OggS") :]
    # 27 bytes, with flags and the number of segments; the sizes of the segments; the segments
    return len(page) > 27 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _silence(seconds: float, rate: int, channels: int) -> Iterator[Block]:
    remaining = round(seconds * rate)
    while remaining:
        length = min(remaining, _SAMPLES_PER_READ)
        remaining -= length
        yield np.zeros((length, channels), np.float32), rate


def _float_samples(frame) -> np.ndarray:
    """Convert a frame of PyAV to (S, C), float32."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(frame.samples, -1)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return ((samples - half if samples.dtype.kind == "u" else samples) / half).astype(np.float32)
