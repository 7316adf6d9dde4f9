from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import wave

import av
import numpy as np
import pytest
import soundfile

from stateless_transducer.audio import AudioError, audio_duration, read_audio, stated_duration, stream_audio


def _tone(seconds, rate, hertz=440.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def _noise(seconds, rate):
    return (0.1 * np.random.default_rng(7).standard_normal(round(seconds * rate))).astype(np.float32)


def _encode(path, samples, rate, codec, *, layout="mono", container_options=None, video=False):
    """Write (C, S) samples with PyAV; a picture every 40 ms if wanted."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout) if samples is not None else None
        if video:
            pictures = container.add_stream("mpeg4", rate=25)
            pictures.width = pictures.height = 64
            for _ in range(25):
                container.mux(pictures.encode(av.VideoFrame(64, 64, "yuv420p")))
            container.mux(pictures.encode(None))
        if stream is not None:
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def _stream(source, rate=16000, **options):
    """What is read, and the warnings."""
    warnings: list[str] = []
    samples = np.concatenate(list(stream_audio(source, rate, warn=warnings.append, **options)))
    return samples, warnings


def _pitch(samples, rate=16000):
    spectrum = np.abs(np.fft.rfft(samples))
    return spectrum.argmax() * rate / len(samples)


# --- formats


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_read_audio_resamples_and_mixes(tmp_path, rate, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([_tone(1.0, rate), np.zeros(rate, np.float32)], axis=1), rate)
    samples = read_audio(path, 16000)
    # mp3 pads with whole frames of 1152 samples
    assert samples.dtype == np.float32 and abs(len(samples) - 16000) < 3 * 1152 * 16000 / rate
    assert abs(_pitch(samples[2000:14000]) - 440) < 2
    # the mean of a tone of amplitude 0.5 and silence; mp3 at 8 kHz is rough
    assert abs(np.abs(samples[2000:14000]).max() - 0.25) < 0.03


@pytest.mark.parametrize(
    ("name", "codec", "video"),
    [("a.m4a", "aac", False), ("a.mp4", "aac", True), ("a.mkv", "libopus", True), ("a.mov", "pcm_s16le", True)],
)
def test_read_audio_reads_what_needs_pyav(tmp_path, name, codec, video):
    path = tmp_path / name
    _encode(path, _tone(1.0, 48000)[None], 48000, codec, video=video)
    samples = read_audio(path, 16000)
    assert abs(len(samples) - 16000) < 1600 and abs(_pitch(samples[2000:14000]) - 440) < 2
    assert abs(audio_duration(path)[0] - 1.0) < 0.1 and abs(stated_duration(path) - 1.0) < 0.1


def test_24_bit_at_96_khz_with_6_channels_is_read(tmp_path):
    path = tmp_path / "studio.wav"
    channels = np.stack([_tone(0.5, 96000, 300.0 * (1 + i)) for i in range(6)], axis=1)
    soundfile.write(path, channels, 96000, subtype="PCM_24")
    assert len(read_audio(path, 16000)) == 8000
    for i in range(6):
        samples, warnings = _stream(path, channel=i)
        assert abs(_pitch(samples) - 300 * (1 + i)) < 3 and warnings == []


def test_channels_of_a_video_are_told_apart(tmp_path):
    path = tmp_path / "two.m4a"
    _encode(path, np.stack([_tone(1.0, 48000), _tone(1.0, 48000, 880.0)]), 48000, "aac", layout="stereo")
    for i in range(2):
        assert abs(_pitch(_stream(path, channel=i)[0][2000:14000]) - 440 * (1 + i)) < 2


def _join(folder, codec):
    """Two seconds and three of another pitch, one behind the other in a file."""
    suffix = "mp3" if codec == "MPEG_LAYER_III" else "ogg"
    path, part = folder / f"joined.{suffix}", folder / f"part.{suffix}"
    for seconds, pitch in ((2.0, 440.0), (3.0, 880.0)):
        soundfile.write(part, _tone(seconds, 16000, pitch), 16000, subtype=codec)
        path.write_bytes((path.read_bytes() if path.exists() else b"") + part.read_bytes())
    return path


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS", "MPEG_LAYER_III"])
def test_joined_files_are_read_to_their_end(tmp_path, codec):
    """Libsndfile knows of the first part alone."""
    path = _join(tmp_path, codec)
    samples, warnings = _stream(path)
    assert abs(len(samples) / 16000 - 5.0) < 0.2 and abs(_pitch(samples[48000:64000]) - 880) < 2 and not warnings
    # its first samples are resampled without what is before them
    np.testing.assert_allclose(_stream(path, start_s=2.5)[0][100:], samples[40100:], atol=1e-3)
    np.testing.assert_array_equal(_stream(io.BytesIO(path.read_bytes()))[0], samples)


def test_joined_ogg_is_as_long_as_all_of_it(tmp_path):
    assert abs(audio_duration(_join(tmp_path, "OPUS"))[0] - 5.0) < 0.1


# --- blocks


@pytest.mark.parametrize("block_s", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_blocks_joined_are_the_whole_bit_by_bit(tmp_path, rate, block_s):
    path = tmp_path / "noise.flac"
    soundfile.write(path, _noise(3.3, rate), rate)
    blocks = list(stream_audio(path, 16000, block_s=block_s))
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path, 16000))
    assert len(blocks) >= min(3, 3.3 / block_s)


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
def test_stretch_is_part_of_the_whole(tmp_path, suffix):
    path = tmp_path / f"noise.{suffix}"
    soundfile.write(path, _noise(3.0, 16000), 16000)
    whole = read_audio(path, 16000)
    np.testing.assert_array_equal(_stream(path, start_s=1.25, duration_s=0.5)[0], whole[20000:28000])
    np.testing.assert_array_equal(_stream(path, start_s=2.75)[0], whole[44000:])
    with pytest.raises(AudioError, match=rf"noise.{suffix}: holds no samples from 3.5 s on"):
        _stream(path, start_s=3.5)


def test_open_file_is_a_sound(tmp_path):
    soundfile.write(tmp_path / "a.flac", _noise(1.0, 16000), 16000)
    content = (tmp_path / "a.flac").read_bytes()
    np.testing.assert_array_equal(_stream(io.BytesIO(content))[0], read_audio(tmp_path / "a.flac", 16000))


READ_PIPE = """
import sys
from stateless_transducer.audio import AudioError, stream_audio
try:
    print(sum(map(len, stream_audio(sys.stdin.buffer, 16000, warn=print))))
except AudioError as err:
    print(err)
"""


@pytest.mark.parametrize(
    ("suffix", "printed"),
    [
        ("wav", "16000"),
        ("flac", "16000"),
        ("txt", "standard input: not a sound file that can be read from a pipe"),
        # its index is at its end
        ("m4a", "standard input: cannot be read from front to back, as a pipe is; give it as a file"),
    ],
)
def test_pipe_is_read_from_front_to_back(tmp_path, suffix, printed):
    path = tmp_path / f"a.{suffix}"
    if suffix == "txt":
        path.write_text("no sound " * 1000)
    elif suffix == "m4a":
        _encode(path, _noise(30.0, 16000)[None], 16000, "aac")
    else:
        soundfile.write(path, _noise(1.0, 16000), 16000)
    command = f"cat '{path}' | '{sys.executable}' -c '{READ_PIPE}'"
    output = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert re.match(printed, output), output


def test_named_pipe_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", _noise(1.0, 16000), 16000)
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(f"cat '{tmp_path}/a.wav' > '{tmp_path}/pipe'", shell=True):
        assert stated_duration(tmp_path / "pipe") is None
        assert len(read_audio(tmp_path / "pipe", 16000)) == 16000


# --- what can be wrong with a sound


def _bad_files(folder):
    soundfile.write(folder / "whole.wav", _tone(1.0, 16000), 16000, subtype="PCM_16")
    data = (folder / "whole.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(data[: len(data) // 2])
    with wave.open(str(folder / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    (folder / "text.wav").write_text("this is no sound")
    (folder / "zero-bytes.wav").touch()
    (folder / "folder.wav").mkdir()


@pytest.mark.parametrize(
    "read",
    [lambda path: read_audio(path, 16000), lambda path: list(stream_audio(path, 16000)), audio_duration],
    ids=["read", "stream", "duration"],
)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.wav", "absent.wav: no such file"),
        ("folder.wav", "folder.wav: is a folder"),
        ("truncated.wav", r"truncated.wav: truncated: its header says 32000 bytes of samples, but 15978 are there"),
        ("empty.wav", r"empty.wav: holds no samples \(0 s of audio\)"),
        ("text.wav", "text.wav: not a sound file"),
        ("zero-bytes.wav", r"zero-bytes.wav: is empty \(0 bytes\)"),
        ("/dev/zero", "/dev/zero: is a pipe or a device"),
        # reading it would wait
        ("/proc/kmsg", r"/proc/kmsg: is empty"),
    ],
)
def test_bad_file_is_named_with_what_is_wrong(tmp_path, name, message, read):
    _bad_files(tmp_path)
    with pytest.raises(AudioError, match=message):
        read(tmp_path / name)


def test_video_without_sound_is_named(tmp_path):
    _encode(tmp_path / "silent.mp4", None, 16000, "aac", video=True)
    with pytest.raises(AudioError, match="silent.mp4: holds no audio"):
        read_audio(tmp_path / "silent.mp4", 16000)


def test_absent_channel_is_named_with_those_there(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.zeros((1600, 2)), 16000)
    soundfile.write(tmp_path / "one.wav", np.zeros(1600), 16000)
    with pytest.raises(AudioError, match="two.wav: has channels 0 to 1, but channel 2 is wanted"):
        _stream(tmp_path / "two.wav", channel=2)
    with pytest.raises(AudioError, match="one.wav: has only channel 0, but channel 1 is wanted"):
        _stream(tmp_path / "one.wav", channel=1)


def test_samples_that_are_not_numbers_are_named_with_the_second(tmp_path):
    samples = _noise(3.0, 16000)
    samples[40000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="nan.wav: holds samples that are not numbers, the first after 2.50 s"):
        _stream(tmp_path / "nan.wav")


TRUNCATED = {
    "wav": "truncated: its header says 64000 bytes of samples, but 31978 are there",
    "flac": r"truncated or damaged after \d.\d\d s \(.*\)",
    "mp3": r"truncated: its header says 2.00 s, but it breaks off after [01].\d\d s",
    "mka": r"truncated: its header says 2.0\d s, but it breaks off after 0.\d\d s",
}


@pytest.mark.parametrize("suffix", TRUNCATED)
def test_truncated_file_is_used_up_to_where_it_breaks_off(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "mka":
        _encode(path, _noise(2.0, 48000)[None], 48000, "libopus")
    else:
        soundfile.write(path, _noise(2.0, 16000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    samples, warnings = _stream(path)
    assert 0.2 < len(samples) / 16000 < 1.3
    wanted = rf"a.{suffix}: {TRUNCATED[suffix]}; what could be read is used, [01].\d\d s"
    assert len(warnings) == 1 and re.search(wanted, warnings[0]), warnings
    # in the preparation of data it is an error
    with pytest.raises(AudioError, match=rf"a.{suffix}: truncated"):
        read_audio(path, 16000)


def test_damage_in_the_middle_costs_only_the_middle(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, _noise(20.0, 16000), 16000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    samples, warnings = _stream(path)
    assert len(samples) / 16000 > 17
    assert re.search(r"a.mp3: damaged in \d+ places?, first after (9|10).\d\d s", warnings[0]), warnings
    # nothing tells how long the middle was
    assert "after which times may be too early" in warnings[0]


def test_damage_that_silence_stands_for_leaves_the_times_as_they_are(tmp_path):
    with av.open(str(tmp_path / "a.mka"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(_tone(10.0, 16000)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for number, packet in enumerate([*stream.encode(frame), *stream.encode(None)]):
            if 70 <= number < 80:
                packet.update(b"\xff" * packet.size)
            container.mux(packet)
    samples, warnings = _stream(tmp_path / "a.mka")
    assert abs(len(samples) / 16000 - 10) < 0.2
    assert re.search(r"damaged in 10 places, first after 4.\d\d s \([^,]*\); what could be read", warnings[0])


def test_silence_and_clipping_are_remarked(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "loud.wav", (3 * _noise(1.0, 16000) / 0.1).clip(-1, 1), 16000)
    samples, warnings = _stream(tmp_path / "silence.wav")
    assert len(samples) == 16000 and warnings == [
        f"{tmp_path}/silence.wav: silent: its loudest sample is 0 of full scale."
    ]
    _, warnings = _stream(tmp_path / "loud.wav")
    assert re.search(r"loud.wav: clipped: 7\d.\d % of its samples are at full scale", warnings[0])


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2_000_000_000])
def test_a_rate_that_no_sound_has_is_refused(tmp_path, rate):
    """It would be resampled to gigabytes, or not be cut into blocks at all."""
    soundfile.write(tmp_path / "a.wav", np.zeros(100, np.int16), 8000)
    header = bytearray((tmp_path / "a.wav").read_bytes())
    header[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(header)
    with pytest.raises(AudioError, match=f"a.wav: its header says {rate} samples a second, not 1000 to 1000000"):
        list(stream_audio(tmp_path / "a.wav", 16000))


# --- what recorders, cameras and file systems do


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_sound_that_begins_late_or_has_a_hole_keeps_its_times(tmp_path, name):
    path = tmp_path / name
    _encode_apart(path, {2.0: _tone(1.0, 16000), 6.0: _tone(1.0, 16000)})
    samples, warnings = _stream(path)
    first, last = np.flatnonzero(np.abs(samples) > 0.2)[[0, -1]] / 16000
    # an encoder's delay of up to 2048 samples
    assert abs(first - 2) < 0.15 and abs(last - 7) < 0.15 and not warnings
    assert np.abs(samples[round(3.3 * 16000) : round(5.7 * 16000)]).max() < 0.01


def test_broken_timestamp_makes_no_hours_of_silence(tmp_path):
    path = tmp_path / "a.mkv"
    _encode_apart(path, {0.0: _tone(1.0, 16000), 90_000.0: _tone(1.0, 16000)})
    samples, warnings = _stream(path)
    assert len(samples) < 3 * 16000
    assert re.search(r"damaged in 1 place, first after 0.\d\d s \(a gap of 89999 s, which is left out\)", warnings[0])
    assert "times may be too early" in warnings[0]


def test_clock_that_begins_late_is_no_truncation(tmp_path):
    with av.open(str(tmp_path / "a.mka"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((_tone(2.0, 16000) * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = 16000, 600 * 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    samples, warnings = _stream(tmp_path / "a.mka")
    assert abs(len(samples) - 32000) < 200 and warnings == []


def test_tracks_that_are_not_heard_are_told(tmp_path):
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
        for stream, pitch in zip(streams, (440.0, 880.0), strict=True):
            whole = (_tone(1.0, 16000, pitch) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    samples, warnings = _stream(tmp_path / "two.mkv")
    assert abs(_pitch(samples[2000:14000]) - 440) < 2
    assert warnings == [f"{tmp_path}/two.mkv: holds 2 audio tracks; the first of them is taken."]


def _encode_apart(path, sounds):
    """Sounds of 16 kHz at their seconds, with pictures from 0 on."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=25)
        stream = container.add_stream("aac", rate=16000, layout="mono")
        pictures.width = pictures.height = 64
        container.mux(pictures.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(pictures.encode(None))
        written = shift_s = 0
        for start_s, samples in sounds.items():
            shift_s = start_s - written / 16000
            for place in range(0, len(samples) // 1024 * 1024, 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, place : place + 1024], format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, written
                written += 1024
                for packet in stream.encode(frame):
                    container.mux(_later(packet, shift_s))
        for packet in stream.encode(None):
            container.mux(_later(packet, shift_s))


def _later(packet, seconds):
    shift = round(seconds / packet.time_base)
    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    return packet


def test_floats_at_the_scale_of_integers_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", 32768 * _tone(1.0, 16000), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"of 1.64e\+04 times full scale; divide them, to be in \[-1, 1\]"):
        _stream(tmp_path / "a.wav")


def test_channels_that_cancel_out_are_remarked(tmp_path):
    noise = _noise(1.0, 16000)
    soundfile.write(tmp_path / "a.wav", np.stack([noise, -noise], axis=1), 16000)
    _, warnings = _stream(tmp_path / "a.wav")
    assert warnings == [
        f"{tmp_path}/a.wav: its channels cancel each other out in their mean; take one of them: `--channel 0`."
    ]
    assert not _stream(tmp_path / "a.wav", channel=0)[1]


def test_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("call-10:30.mp3", _tone(1.0, 16000), 16000)
    assert abs(len(read_audio("call-10:30.mp3", 16000)) / 16000 - 1) < 0.1
    _encode(tmp_path / "call-10:30.m4a", _tone(1.0, 16000)[None], 16000, "aac")
    assert abs(stated_duration("call-10:30.m4a") - 1) < 0.1


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x7FFFFF00, 0xFFFFFFFF])
def test_wav_of_a_recorder_that_does_not_know_its_length_is_whole(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, _tone(1.0, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path, 16000)) == 16000
    assert audio_duration(path) == (1.0, 16000)


def test_truncated_wav_is_noticed_behind_a_long_header(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, _tone(1.0, 16000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:36] + b"JUNK" + (6000).to_bytes(4, "little") + bytes(6000) + content[36:-8000])
    with pytest.raises(AudioError, match="truncated: its header says 32000 bytes of samples, but 24000 are there"):
        read_audio(path, 16000)


@pytest.mark.parametrize("read", [lambda path: read_audio(path, 16000), audio_duration])
def test_what_the_file_system_refuses_is_named(tmp_path, read):
    with pytest.raises(AudioError, match=r"aaa.wav: cannot be read \(File name too long\)"):
        read(tmp_path / ("a" * 300 + ".wav"))
