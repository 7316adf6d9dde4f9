"""Truncated sound in many encodings: transcription warns, preparation refuses, and the documents list the rest."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import AV_ENCODINGS, SOUNDFILE_ENCODINGS, write_encoding

from stateless_transducer.audio import AudioError, audio_duration, read_audio, stated_duration, stream_audio

ENCODINGS = [*SOUNDFILE_ENCODINGS, *AV_ENCODINGS]
DOCS = Path(__file__).parent.parent / "docs"
NOT_NOTICED = {"ts": "ts", "live.webm": "webm", "no-xing.mp3": "mp3"}
"""Encoding whose truncation leaves no trace -> its name in the documents."""
NOT_NOTICED_IN_PIPES = {*NOT_NOTICED, "mp3"}
INDEX_AT_END = {"m4a", "mov"}
"""Encodings that cannot be opened without their end."""


class Pipe(io.RawIOBase):
    """Bytes that are read from front to back."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._content.read(size)


def _stream(source):
    warnings: list[str] = []
    return np.concatenate(list(stream_audio(source, 16000, warn=warnings.append))), warnings


def _cut(path: Path, share: float = 0.6) -> Path:
    cut = path.with_name(f"cut.{path.name}")
    content = path.read_bytes()
    cut.write_bytes(content[: round(share * len(content))])
    return cut


def test_tags_that_are_not_utf8_do_not_matter(tmp_path):
    path = write_encoding(tmp_path, "m4a", 1.0)
    content = path.read_bytes()
    assert b"Lavf" in content
    (tmp_path / "latin.m4a").write_bytes(content.replace(b"Lavf", b"L\xe1vf"))
    np.testing.assert_array_equal(_stream(tmp_path / "latin.m4a")[0], _stream(path)[0])
    assert stated_duration(tmp_path / "latin.m4a") == stated_duration(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_whole_file_is_read_without_a_warning(tmp_path, encoding):
    path = write_encoding(tmp_path, encoding, 2.0)
    samples, warnings = _stream(path)
    assert abs(len(samples) / 16000 - 2) < 0.11 and not warnings
    assert audio_duration(path)[0] == pytest.approx(len(samples) / 16000, abs=1e-3)
    np.testing.assert_array_equal(_stream(io.BytesIO(path.read_bytes()))[0], samples)
    if encoding not in {*INDEX_AT_END, "caf"}:
        assert not _stream(Pipe(path.read_bytes()))[1]


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name not in NOT_NOTICED])
def test_truncated_file_is_a_warning_or_an_error(tmp_path, encoding):
    path = _cut(write_encoding(tmp_path, encoding, 3.0))
    for source in (path, io.BytesIO(path.read_bytes())):
        if encoding in INDEX_AT_END:
            with pytest.raises(AudioError, match="not a sound file"):
                _stream(source)
        else:
            samples, warnings = _stream(source)
            assert 0.3 < len(samples) / 16000 < 2
            assert len(warnings) == 1 and "what could be read is used" in warnings[0]
    for prepare in (audio_duration, lambda path: read_audio(path, 16000)):
        with pytest.raises(AudioError, match=f"cut.a.{encoding}: (truncated|damaged|not a sound file)"):
            prepare(path)


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name not in NOT_NOTICED_IN_PIPES])
def test_truncated_pipe_is_a_warning_or_an_error(tmp_path, encoding):
    content = _cut(write_encoding(tmp_path, encoding, 3.0)).read_bytes()
    if encoding in {*INDEX_AT_END, "caf"}:
        with pytest.raises(AudioError, match="not a sound file that can be read from a pipe"):
            _stream(Pipe(content))
    else:
        samples, warnings = _stream(Pipe(content))
        assert 0.3 < len(samples) / 16000 < 2 and len(warnings) == 1


@pytest.mark.parametrize("encoding", ["index-first.mp4", "fragmented.mp4", "mkv", "avi"])
def test_truncated_video_is_a_warning_and_an_error(tmp_path, encoding):
    path = write_encoding(tmp_path, encoding, 3.0, has_video=True)
    assert not _stream(path)[1]
    warnings = _stream(_cut(path))[1]
    assert len(warnings) == 1 and "what could be read is used" in warnings[0]
    with pytest.raises(AudioError, match="truncated|damaged"):
        audio_duration(_cut(path))


@pytest.mark.parametrize("encoding", NOT_NOTICED)
def test_encoding_whose_truncation_leaves_no_trace_is_listed(tmp_path, encoding):
    samples, warnings = _stream(_cut(write_encoding(tmp_path, encoding, 2.0)))
    assert len(samples) < 1.3 * 16000 and not warnings
    for name in ("transcribe.md", "data.md"):
        (paragraph,) = (text for text in (DOCS / name).read_text().split("\n\n") if "no trace" in text)
        assert re.search(rf"\b{NOT_NOTICED[encoding]}\b", paragraph)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 0.9995])
@pytest.mark.parametrize("seconds", [0.3, 3.0, 12.0])
@pytest.mark.parametrize("encoding", ["ogg", "opus"])
def test_ogg_without_its_last_page_is_truncated(tmp_path, encoding, seconds, share):
    path = write_encoding(tmp_path, encoding, seconds)
    assert not _stream(path)[1] and not _stream(Pipe(path.read_bytes()))[1]
    with pytest.raises(AudioError):
        read_audio(_cut(path, share), 16000)
    with pytest.raises(AudioError):
        list(stream_audio(Pipe(_cut(path, share).read_bytes()), 16000))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_duration_of_truncated_flac_is_an_error(tmp_path, share):
    with pytest.raises(AudioError, match="truncated or damaged after"):
        audio_duration(_cut(write_encoding(tmp_path, "flac", 3.0), share))


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFF00, 0xFFFFFFFF])
def test_pipe_of_a_recorder_that_does_not_know_its_length_is_whole(tmp_path, size):
    content = bytearray(write_encoding(tmp_path, "wav", 1.0).read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    samples, warnings = _stream(Pipe(bytes(content)))
    assert len(samples) == 16000 and not warnings


def test_length_by_bit_rate_is_not_taken_for_a_stated_one(tmp_path):
    """FFmpeg estimates the length of an aac by its first frames, which are small where it is silent."""
    path = write_encoding(tmp_path, "aac", 2.0, silence_s=10.0)
    assert stated_duration(path) > 30
    assert not _stream(path)[1] and audio_duration(path)[0] == pytest.approx(12, abs=0.1)


def test_htk_stays_with_libsndfile(tmp_path):
    """FFmpeg takes it for amr."""
    soundfile.write(tmp_path / "a.htk", 0.1 * np.ones(16000), 16000, format="HTK", subtype="PCM_16")
    assert len(read_audio(tmp_path / "a.htk", 16000)) == 16000
