#!/usr/bin/env python3
"""Hiss and hum to mix into training, where there is no MUSAN: noise of many colors, with resonances, steady or not.

    ./make_noise.py FOLDER

Writes FOLDER/{noise,music,speech}/x/*.wav, 15 of 10 seconds each, the same each time: a corpus for
``transducer prepare musan``. What is in speech/ swells and fades, and is no speech. At 8 kHz, as the
recordings of the digits: noise above 4 kHz would drown nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import numpy as np
    import soundfile
except ModuleNotFoundError as err:
    sys.exit(
        f"{Path(__file__).name}: error: {err}. Activate the environment in which stateless-transducer is installed."
    )

RATE, SECONDS, COUNT = 8000, 10, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rng = np.random.default_rng(0)
    for kind in ("noise", "music", "speech"):
        (folder / kind / "x").mkdir(parents=True, exist_ok=True)
        for number in range(COUNT):
            wave = colored_noise(rng, RATE * SECONDS)
            if kind == "speech":
                wave *= swell(rng)
            wave *= 0.3 / np.abs(wave).max()
            soundfile.write(folder / kind / "x" / f"{kind}-{number:03d}.wav", wave, RATE)
    print(f"{folder}: {3 * COUNT} pieces of noise")


def colored_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size,) at ``RATE``: power falls as frequency to some power from 0 (white) to 2 (brown), with resonances."""
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    slope = rng.uniform(0, 2)
    spectrum = rng.standard_normal(len(hertz)) + 1j * rng.standard_normal(len(hertz))
    spectrum /= np.maximum(hertz, 50) ** (slope / 2)
    for _ in range(rng.integers(0, 4)):
        center = rng.uniform(80, 3000)
        spectrum *= 1 + rng.uniform(0, 8) * np.exp(-(((hertz - center) / rng.uniform(50, 400)) ** 2))
    return np.fft.irfft(spectrum, size)


def swell(rng: np.random.Generator) -> np.ndarray:
    """A new loudness every half a second, and straight lines between."""
    places = np.arange(0, SECONDS + 0.5, 0.5)
    return np.interp(np.arange(RATE * SECONDS) / RATE, places, rng.uniform(0.05, 1, len(places)))


if __name__ == "__main__":
    main()
