"""Forms in which a caller may pass a sound, read as one channel of samples at the model's rate.

Letters: S samples, C channels.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, cast

import numpy as np

from stateless_transducer.audio import check_rate, one_channel, resample, stream_audio

if TYPE_CHECKING:
    import torch

Samples: TypeAlias = "np.ndarray | torch.Tensor"
"""(S,), or (S, C) or (C, S) with at most 8 channels: floats in [-1, 1], int16, int32 or uint8."""

Sound: TypeAlias = (
    "str | Path | BinaryIO | bytes | Stretch | Samples | tuple[Samples, int] | tuple[int, Samples] | Mapping[str, Any]"
)
"""A file name, an open binary file (also a pipe), the bytes of a file, part of a file, or samples.

Samples come alone, in a tuple with their rate, or as ``{"array": samples, "sampling_rate": rate}`` (``"raw"`` in place
of ``"array"`` will do).

Example:
    >>> recognizer, samples = Recognizer.from_pretrained("model.pt"), read_audio("a.wav", 48000)
    >>> sounds: list[Sound] = ["a.wav", (samples, 48000), {"array": samples, "sampling_rate": 48000}]
    >>> [transcript.text for transcript in recognizer.transcribe(sounds)]
    ['今天很好', '今天很好', '今天很好']
"""

# of integer samples: offset and full scale
_SCALES = {"int16": (0, 2.0**15), "int32": (0, 2.0**31), "uint8": (128, 2.0**7)}
_MOST_CHANNELS = 8
# samples per channel, at least, for the shorter axis of an array to be that of the channels
_LONGER = 100
_ARRAY_KEYS = ("array", "raw")


@dataclass(frozen=True)
class Stretch:
    """Part of a sound file.

    Example:
        >>> recognizer = Recognizer.from_pretrained("model.pt")
        >>> recognizer.transcribe(Stretch("a.wav", start_s=0.5, duration_s=0.8)).duration
        0.8
    """

    path: str | Path
    start_s: float = 0.0
    duration_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < math.inf:
            raise ValueError(f"`start_s` must be at least 0 s and finite, but is {self.start_s:g}.")
        if not self.duration_s > 0:
            raise ValueError(f"`duration_s` must be above 0 s, but is {self.duration_s:g}.")


def is_one_sound(sounds: Sound | Iterable[Sound]) -> TypeGuard[Sound]:
    """Whether this is one sound, rather than several.

    Raises:
        ValueError: An array that may hold several waves or several channels.
    """
    if isinstance(sounds, str | Path | Stretch | bytes | bytearray | memoryview | Mapping) or hasattr(sounds, "read"):
        return True
    if isinstance(sounds, tuple):
        return _pair(sounds) is not None
    if not _is_samples(sounds):
        return False
    if isinstance(sounds, np.ndarray) and sounds.dtype.kind in "OSU":
        # names, or waves of different lengths
        return False
    if sounds.ndim == 2 and min(sounds.shape) != 1:
        shape = tuple(sounds.shape)
        raise ValueError(
            f"`sounds` is an array of shape {shape}. Pass list(array) for {shape[0]} waves, or (array, sample_rate) "
            "for one sound with several channels."
        )
    return True


def read_sound(
    sound: Sound,
    model_rate: int,
    *,
    sample_rate: int | None = None,
    channel: int | None = None,
    warn: Callable[[str], None],
) -> Iterable[np.ndarray]:
    """The sound as one channel at the model's rate, in blocks.

    Args:
        sound: See `Sound`.
        model_rate: Rate of the blocks.
        sample_rate: Rate of samples that come without one; None: the model's. Files state their own.
        channel: Channel to use, from 0; None: the mean of all.
        warn: Called with a line about each oddity.

    Returns:
        Blocks, (S,), float32.

    Raises:
        AudioError: The sound cannot be read.
        ValueError: The object is not a sound.
    """
    if isinstance(sound, Stretch):
        start_s, duration_s = sound.start_s, sound.duration_s
        return stream_audio(sound.path, model_rate, channel=channel, start_s=start_s, duration_s=duration_s, warn=warn)
    if isinstance(sound, bytes | bytearray | memoryview):
        return stream_audio(io.BytesIO(sound), model_rate, channel=channel, warn=warn)
    if isinstance(sound, str | Path) or hasattr(sound, "read"):
        return stream_audio(sound, model_rate, channel=channel, warn=warn)  # pyright: ignore[reportArgumentType]
    name, samples, stated_rate = _with_rate(sound, model_rate if sample_rate is None else sample_rate)
    rate = check_rate(stated_rate)
    wave = _as_floats(_as_array(samples))
    # a wave without an axis of channels has none to choose from
    chosen = channel if wave.ndim == 2 else None
    blocks = one_channel([(_channels_last(wave), rate)], name, chosen, warn)
    return (resample(block, rate, model_rate) for block, _ in blocks)


class CountedBlocks:
    """Blocks of a sound, counted while they are read."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks = blocks
        self.num_samples: int = 0
        """Samples read so far."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.num_samples += len(block)
            yield block


def _with_rate(sound: object, default_rate: int) -> tuple[str, object, float]:
    """Name, samples and rate."""
    if isinstance(sound, Mapping):
        sound = cast("Mapping[str, Any]", sound)
        keys = [key for key in _ARRAY_KEYS if key in sound]
        if len(keys) != 1 or not _is_rate(sound.get("sampling_rate")):
            raise ValueError(
                'A sound in a dictionary must have "array" (or "raw") and "sampling_rate", a number, but has '
                f"{', '.join(map(repr, sound)) or 'nothing'}."
            )
        return str(sound.get("path") or "wave"), sound[keys[0]], sound["sampling_rate"]
    samples, rate = _pair(sound) or (sound, default_rate)
    return "wave", samples, rate


def _pair(sound: object) -> tuple[object, float] | None:
    """Samples and rate of a pair in either order; None for another object."""
    if not isinstance(sound, tuple) or len(cast("tuple[Any, ...]", sound)) != 2:
        return None
    first, second = cast("tuple[Any, Any]", sound)
    if _is_rate(first) == _is_rate(second):
        return None
    return (second, first) if _is_rate(first) else (first, second)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_samples(value: object) -> TypeGuard[Samples]:
    return isinstance(value, np.ndarray) or _is_tensor(value)


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a torch tensor; without torch in the process, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _as_array(samples: object) -> np.ndarray:
    if isinstance(samples, np.ndarray):
        return cast(np.ndarray, samples)
    if not _is_tensor(samples):
        raise ValueError(
            "A sound must be a file name, an open binary file, the bytes of a file, a Stretch, a NumPy array or torch "
            'tensor of samples, (samples, rate), or {"array": samples, "sampling_rate": rate}, but is a '
            f"{type(samples).__name__}."
        )
    samples = samples.detach().cpu()
    # NumPy has no bfloat16
    return (samples.float() if samples.is_floating_point() else samples).numpy()


def _as_floats(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.name not in _SCALES:
        raise ValueError(
            f"Samples must be floats in [-1, 1], {', '.join(_SCALES)}, but are {array.dtype.name}: their full scale "
            "is unknown. Convert them first."
        )
    offset, full_scale = _SCALES[array.dtype.name]
    return (array.astype(np.float32) - np.float32(offset)) / np.float32(full_scale)


def _channels_last(wave: np.ndarray) -> np.ndarray:
    """(S,), (S, C) or (C, S) -> (S, C)."""
    if wave.ndim == 1:
        return wave[:, None]
    if wave.ndim == 2 and wave.size:
        num_channels, num_samples = sorted(wave.shape)
        if num_channels == 1 or (num_channels <= _MOST_CHANNELS and num_samples >= _LONGER * num_channels):
            return wave if wave.shape[0] == num_samples else wave.T
    if wave.ndim == 2 and not wave.size:
        return wave.reshape(0, 1)
    raise ValueError(
        f"Samples must be (S,), or (S, C) or (C, S) with at most {_MOST_CHANNELS} channels C, but have the shape "
        f"{wave.shape}. Pass one wave of it, or a list of waves."
    )
