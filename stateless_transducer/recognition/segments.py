"""Long sound to pieces of the length that a model takes: speech is detected, long silence skipped.

Letters: S samples, I frames of `FRAME_S` seconds.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from stateless_transducer.audio import resample
from stateless_transducer.recognition.config import SegmentConfig, Vad
from stateless_transducer.text.hotwords import HotwordPhrase

_LOG = logging.getLogger(__name__)

FRAME_S = 0.032
"""Length of a frame of silero-vad; pieces are whole frames."""
_FRAMES_AT_ONCE = 64
# probability of speech at which a piece begins, and below which a silence does: low, since silero-vad is unsure in
# noise, and recognizing some noise costs less than a lost word
_ONSET, _OFFSET = 0.1, 0.03
# frames: padding around speech; silence that ends a piece, at least two paddings
_PADDING, _LONG_SILENCE = 6, 20
# frames over which loudness is averaged to find the quietest place
_QUIET = 5
# energy: dB above the noise; bounds in dB of full scale between which the threshold stays; frames that the noise is
# known from, and the share of them that is at most noise
_ABOVE_NOISE, _LOWEST, _HIGHEST, _MEMORY, _NOISE_PERCENT = 6.0, -75.0, -35.0, 1000, 10

_SILERO_FILE = "silero_vad_16k_sequence.onnx"
_SILERO_SAMPLES, _SILERO_CONTEXT = 512, 64


Phrases = tuple[HotwordPhrase, ...]


@dataclass(frozen=True)
class Piece:
    """Part of a sound."""

    start: int
    """Samples before it."""
    samples: np.ndarray
    """(S,)."""
    phrases: Phrases = ()
    """Hotwords of the piece, in addition to those of all sounds."""


class VoiceActivity(Protocol):
    """Detects speech."""

    def listen(self) -> Callable[[np.ndarray], np.ndarray]:
        """Start a detector for a new sound: from its next frames, (I, S), to their probabilities of speech, (I,)."""
        ...


def make_voice_activity(name: Vad) -> VoiceActivity:
    """The detector of that name.

    Raises:
        ValueError: silero-vad is requested by name and not installed.
    """
    if name == "none":
        return Everything()
    if name == "energy":
        return Energy()
    lacking = _lacking_for_silero()
    if not lacking:
        return Silero()
    if name == "silero":
        raise ValueError(f"`vad=silero`: {lacking}: pip install 'stateless-transducer[vad]'.")
    return Energy(f"{lacking}, so long sound is cut by loudness; better: pip install 'stateless-transducer[vad]'.")


def cut(blocks: Iterable[np.ndarray], sample_rate: int, config: SegmentConfig, voice: VoiceActivity) -> Iterator[Piece]:
    """The pieces of a sound that contain speech, in order, without overlap.

    A sound of at most ``max_segment_s`` is one piece, whole, or none if all its samples are 0. Of a longer one, a piece
    is speech with short silences in it and some silence around it; speech without end is cut at the quietest place of
    the later half.

    Args:
        blocks: the sound, (S,) each, of any lengths; the pieces do not depend on them.
        sample_rate: of the sound.
        config: how long pieces may be.
        voice: Detector of speech.
    """
    blocks, buffered, length = iter(blocks), [], 0
    for block in blocks:
        buffered.append(block)
        length += len(block)
        if length > config.max_segment_s * sample_rate:
            stream = PieceStream(sample_rate, config.max_segment_s, voice)
            for samples in itertools.chain(buffered, blocks):
                yield from stream.accept(samples)
            yield from stream.finish()
            return
    # models emit tokens for digital silence
    if any(block.any() for block in buffered):
        yield Piece(0, np.concatenate(buffered))


class PieceStream:
    """The pieces of a sound that is received in parts.

    Args:
        sample_rate: of the sound.
        max_segment_s: how long pieces may be.
        voice: Detector of speech.
        frames_at_once: Frames per run of the detector: fewer cost more time, and report the end of a piece earlier.
    """

    def __init__(
        self, sample_rate: int, max_segment_s: float, voice: VoiceActivity, frames_at_once: int = _FRAMES_AT_ONCE
    ) -> None:
        self._frame = round(FRAME_S * sample_rate)
        self._size = self._frame * frames_at_once
        self._cutter, self._hear = _Cutter(int(max_segment_s * sample_rate / self._frame)), voice.listen()
        self._unheard = np.zeros(0, np.float32)
        # the samples that may still be needed, and how many came before them
        self._kept, self._first = np.zeros(0, np.float32), 0

    def accept(self, samples: np.ndarray) -> Iterator[Piece]:
        """Take the next samples (S,), any number of them; yield the pieces that end within them."""
        self._unheard = np.concatenate([self._unheard, samples])
        while len(self._unheard) >= self._size:
            chunk, self._unheard = self._unheard[: self._size], self._unheard[self._size :]
            yield from self._listen(chunk)

    def finish(self) -> Iterator[Piece]:
        """End the sound; yield the last pieces."""
        if len(self._unheard):
            yield from self._listen(self._unheard)
        for region in self._cutter.finish():
            yield self._piece(*region)

    @property
    def unfinished(self) -> Piece | None:
        """The current piece so far; None: no speech."""
        start = self._cutter.open_since
        return None if start is None else self._piece(start)

    def _listen(self, chunk: np.ndarray) -> Iterator[Piece]:
        frame = self._frame
        self._kept = np.concatenate([self._kept, chunk])
        # the last frame of the sound is filled up with silence
        frames = np.pad(chunk, (0, -len(chunk) % frame)).reshape(-1, frame)
        for region in self._cutter.regions(self._hear(frames), loudness(frames)):
            yield self._piece(*region)
        unneeded = min(self._cutter.needed * frame - self._first, len(self._kept))
        self._kept, self._first = self._kept[unneeded:], self._first + unneeded

    def _piece(self, start: int, end: int | None = None) -> Piece:
        """From one frame to another, or to the last sample."""
        frame, first = self._frame, self._first
        stop = None if end is None else end * frame - first
        return Piece(start * frame, self._kept[start * frame - first : stop])


def loudness(frames: np.ndarray) -> np.ndarray:
    """Loudness of each frame without direct current, in dB of full scale; -100 is silence. (I, S) -> (I,)."""
    return 10 * np.log10(frames.var(axis=1, dtype=np.float64) + 1e-10)


class _Cutter:
    """Begins and ends of pieces, in frames, from a stream of probabilities of speech and loudness."""

    def __init__(self, max_frames: int) -> None:
        self._max_frames = max_frames
        self._now = 0  # frames heard
        self._done = 0  # where the last piece ended
        self._open: int | None = None  # where the present piece begins
        self._spoken = 0  # frame after the last one of speech
        self._loudness: list[float] = []  # since the present piece began

    @property
    def open_since(self) -> int | None:
        """First frame of the current piece; None: no piece is open."""
        return self._open

    @property
    def needed(self) -> int:
        """The first frame that may be part of a piece to come."""
        return max(self._done, self._now - _PADDING) if self._open is None else self._open

    def regions(self, speech: np.ndarray, loudness: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pieces that have ended within the next frames; both (I,)."""
        for probability, level in zip(speech.tolist(), loudness.tolist(), strict=True):
            self._now += 1
            self._hear(probability >= (_ONSET if self._open is None else _OFFSET), level)
            if self._open is not None and self._now - self._spoken >= _LONG_SILENCE:
                yield self._close(self._spoken + _PADDING)
            elif self._open is not None and self._now - self._open >= self._max_frames:
                yield self._close(self._quietest(self._open))

    def finish(self) -> Iterator[tuple[int, int]]:
        """The piece that was open when the sound ended."""
        if self._open is not None:
            yield self._close(min(self._spoken + _PADDING, self._now))

    def _hear(self, is_speech: bool, level: float) -> None:
        if is_speech and self._open is None:
            self._open = max(self._done, self._now - 1 - _PADDING)
            # what lies before is silence: no place to cut
            self._loudness = [0.0] * (self._now - 1 - self._open)
        if is_speech:
            self._spoken = self._now
        if self._open is not None:
            self._loudness.append(level)

    def _close(self, end: int) -> tuple[int, int]:
        """End the current piece; if speech follows the end, the next one begins there."""
        assert self._open is not None
        region, self._done = (self._open, end), end
        self._loudness = self._loudness[end - self._open :]
        self._open = end if self._spoken > end else None
        return region

    def _quietest(self, start: int) -> int:
        """The quietest place of the later half."""
        later = np.array(self._loudness[self._max_frames // 2 :])
        width = min(_QUIET, len(later))
        smooth = np.convolve(later, np.ones(width) / width, mode="valid")
        return start + self._max_frames // 2 + int(smooth.argmin()) + (width + 1) // 2


class Everything:
    """All sound counts as speech."""

    def listen(self) -> Callable[[np.ndarray], np.ndarray]:
        """See `VoiceActivity`."""
        return lambda frames: np.ones(len(frames))


class Energy:
    """Speech is louder than the noise, which is estimated from the quietest frames of the last half minute."""

    def __init__(self, regret: str = "") -> None:
        """``regret``: Warning to log once, where this replaces a better detector."""
        self._regret = regret

    def listen(self) -> Callable[[np.ndarray], np.ndarray]:
        """See `VoiceActivity`."""
        if self._regret:
            _LOG.warning(self._regret)
            self._regret = ""
        recent = np.zeros(0)

        def hear(frames: np.ndarray) -> np.ndarray:
            nonlocal recent
            level = loudness(frames)
            recent = np.concatenate([recent, level])[-_MEMORY:]
            threshold = np.percentile(recent, _NOISE_PERCENT) + _ABOVE_NOISE
            return (level > np.clip(threshold, _LOWEST, _HIGHEST)).astype(np.float64)

        return hear


class Silero:
    """The model silero-vad, as the ONNX file that takes many frames at once."""

    def listen(self) -> Callable[[np.ndarray], np.ndarray]:
        """See `VoiceActivity`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # it is small: more threads only wait for one another
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(_silero_path()), options, providers=["CPUExecutionProvider"])
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        context = np.zeros((1, _SILERO_CONTEXT), np.float32)

        def hear(frames: np.ndarray) -> np.ndarray:
            nonlocal hidden, cell, context
            at_16_khz = resample(frames.reshape(-1), frames.shape[1], _SILERO_SAMPLES).reshape(-1, _SILERO_SAMPLES)
            # each frame comes with the end of the one before
            ends = np.concatenate([context, at_16_khz[:, -_SILERO_CONTEXT:]])
            context = ends[-1:]
            inputs = {"input": np.concatenate([ends[:-1], at_16_khz], axis=1), "h": hidden, "c": cell}
            speech, hidden, cell = session.run(["speech_probs", "hn", "cn"], inputs)
            return np.asarray(speech).reshape(-1)

        return hear


def _silero_path() -> Path:
    """Path of the model in its package, which is not imported, since it would import torch."""
    spec = find_spec("silero_vad")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / _SILERO_FILE


def _lacking_for_silero() -> str:
    """Reason why silero-vad cannot be used; empty: none."""
    for module, package in (("silero_vad", "silero-vad"), ("onnxruntime", "onnxruntime")):
        if find_spec(module) is None:
            return f"{package} is not installed"
    return "" if _silero_path().is_file() else "silero-vad is too old (6.2.3 is the first to hold the model)"
