"""Speech synthesis with espeak-ng, from the library in the wheel ``espeakng-loader`` (extra ``demo``)."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: speech goes to the callback alone
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_UTF8 = 1  # espeakCHARS_UTF8
_POSITION_CHARACTER = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """Settings of a voice: variant, pitch (0..99), range of the pitch (0..99), rate in words per minute."""

    variant: str
    pitch: int
    pitch_range: int
    rate: int


class Espeak:
    """The synthesizer; the library has one state per process."""

    def __init__(self, language: str = "cmn") -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise ValueError("Synthetic speech needs espeak-ng: pip install 'stateless-transducer[demo]'.") from None
        self._language = language
        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._data = Path(espeakng_loader.get_data_path())
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(self._data).encode(), 0)
        if self.sample_rate <= 0:
            raise ValueError(f"espeak-ng did not start with the data in {self._data}.")
        # by default, the clock seeds the breath of some voices
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._collect)  # a reference, since the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)

    def variants(self) -> dict[str, str]:
        """Return the voice variants of the library and their gender, "M" or "F"."""
        folder = self._data / "voices" / "!v"
        return {path.name: _gender(path.read_text(encoding="utf-8")) for path in sorted(folder.iterdir())}

    def _collect(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """Synthesize a text: samples (S,), int16, at `sample_rate`.

        Raises:
            ValueError: the library lacks the voice or cannot speak the text.
        """
        name = f"{self._language}+{voice.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {name!r}.")
        settings = {_RATE: voice.rate, _VOLUME: 100, _PITCH: voice.pitch, _RANGE: voice.pitch_range}
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks = []
        data = text.encode()
        status = self._library.espeak_Synth(
            data, ctypes.c_size_t(len(data) + 1), 0, _POSITION_CHARACTER, 0, _UTF8, None, None
        )
        self._library.espeak_Synchronize()
        if status != 0 or not self._chunks:
            raise ValueError(f"espeak-ng could not speak {text!r}.")
        return np.concatenate(self._chunks)


def _gender(variant_file: str) -> str:
    words = re.search(r"^gender\s+(\w+)", variant_file, re.MULTILINE)
    return "F" if words and words[1] == "female" else "M"
