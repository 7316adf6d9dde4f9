"""Augmentation of training features: silence, vocal tract length, level, timbre, noise, SpecAugment.

All random numbers follow from the seed, the epoch and the utterance's id. They do not depend on which process loads an
utterance or on the rest of its batch, and a resumed run repeats them.

Letters: T_in feature frames, F mel bins.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from stateless_transducer.data.config import DataConfig, SpecAugmentConfig
from stateless_transducer.data.manifests import noise_cuts_path, read_manifest
from stateless_transducer.data.spec_augment import warp_and_mask
from stateless_transducer.data.stored_features import load_features
from stateless_transducer.features import SILENCE_VALUE, FbankConfig

_NOISE_PROBABILITY = 0.5
_SNR_DB = (10.0, 20.0)
_QUIET_SHARE, _LEAST_QUIET = 0.1, 5
"""Share of an utterance's frames that count as its silence, and the least number of them."""
_DIGITAL_SHARE = 0.25
"""Share of utterances that get digital silence."""
# a configuration checks its bounds: too slow for each utterance
_FRONT_END = FbankConfig()


class Augment:
    """Augments utterances, the same utterance in the same way throughout an epoch and differently in the next.

    Args:
        seed: seed of the run.
        noise: cuts of noise with stored features, to choose from; if empty, no noise is mixed in.
        spec_augment: configuration of SpecAugment, or None for no SpecAugment.
        vtlp_range: largest stretch of the frequency axis, as a share.
        gain_range_db: largest change of the level.
        equalizer_range_db: largest change of the level at one frequency, smooth over frequency.
        silence_frames: largest number of silent frames added at either end.
        silence_from_epoch: first epoch with added silence.
    """

    def __init__(
        self,
        seed: int,
        *,
        noise: Sequence[Cut] = (),
        spec_augment: SpecAugmentConfig | None = None,
        vtlp_range: float = 0.0,
        gain_range_db: float = 0.0,
        equalizer_range_db: float = 0.0,
        silence_frames: int = 0,
        silence_from_epoch: int = 0,
    ) -> None:
        self._seed, self._noise, self._vtlp_range = seed, noise, vtlp_range
        self._gain_range_db, self._equalizer_range_db = gain_range_db, equalizer_range_db
        self._silence_frames, self._silence_from_epoch = silence_frames, silence_from_epoch
        self._spec_augment = spec_augment

    def __call__(self, features: Tensor, id_: str, epoch: int) -> Tensor:
        """Augment features (T_in, F); added silence increases T_in."""
        key = f"{self._seed} {epoch} {id_}"
        if self._silence_frames and epoch >= self._silence_from_epoch:
            features = _with_silence(features, self._silence_frames, random.Random(f"silence {key}"))
        if self._vtlp_range:
            factor = 1 + random.Random(f"vtlp {key}").uniform(-self._vtlp_range, self._vtlp_range)
            features = torch.from_numpy(stretched(features.numpy(), factor))
        if self._gain_range_db or self._equalizer_range_db:
            draw = random.Random(f"gain {key}")
            gain = draw.uniform(-1, 1) * self._gain_range_db
            decibels = gain + self._equalizer_range_db * _smooth_curve(features.shape[1], draw)
            features = _with_gain(features, torch.from_numpy(decibels.astype(np.float32)))
        if self._noise:
            features = torch.from_numpy(_with_noise(features.numpy(), self._noise, random.Random(f"noise {key}")))
        if self._spec_augment is not None:
            features = warp_and_mask(features, self._spec_augment, _generator(f"spec_augment {key}"))
        return features


def training_augment(config: DataConfig, seed: int, frame_shift_s: float) -> Augment | None:
    """Return the augmentation of a configuration, or None if it has none; noise that is not prepared is omitted."""
    path, noise = noise_cuts_path(config.manifest_dir), []
    if config.enable_musan and path.exists():
        noise = list(read_manifest(path))
    ranges = (config.vtlp_range, config.gain_range_db, config.equalizer_range_db, config.silence_s)
    if not (noise or config.enable_spec_aug or any(ranges)):
        return None
    return Augment(
        seed,
        noise=noise,
        spec_augment=config.spec_augment if config.enable_spec_aug else None,
        vtlp_range=config.vtlp_range,
        gain_range_db=config.gain_range_db,
        equalizer_range_db=config.equalizer_range_db,
        silence_frames=round(config.silence_s / frame_shift_s),
        silence_from_epoch=config.lengthen_from_epoch,
    )


def _with_silence(features: Tensor, most: int, draw: random.Random) -> Tensor:
    """Add up to ``most`` frames at either end: drawn from the utterance's quietest frames, or digital silence."""
    before, after = draw.randint(0, most), draw.randint(0, most)
    if draw.random() < _DIGITAL_SHARE:
        return torch.nn.functional.pad(features, (0, 0, before, after), value=SILENCE_VALUE)
    count = min(len(features), max(_LEAST_QUIET, round(_QUIET_SHARE * len(features))))
    quietest = features.mean(1).topk(count, largest=False).indices.tolist()
    drawn = draw.choices(quietest, k=before + after)
    return features[[*drawn[:before], *range(len(features)), *drawn[before:]]]


def _with_gain(features: Tensor, decibels: Tensor) -> Tensor:
    """Raise each frame by (F,) decibels; digital silence stays digital silence."""
    louder = features + decibels * (math.log(10) / 10)
    # stored features are rounded
    return torch.where(features > SILENCE_VALUE + 0.01, louder.clamp(min=SILENCE_VALUE), features)


def _smooth_curve(count: int, draw: random.Random) -> np.ndarray:
    """Return a random curve (F,) between -1 and 1: a sum of cosines with 0.5, 1 and 1.5 periods over the bins."""
    place = (np.arange(count) + 0.5) / count
    weights = [draw.uniform(-1, 1) / number for number in (1, 2, 3)]
    curve = sum(weight * np.cos(math.pi * number * place) for number, weight in enumerate(weights, start=1))
    return np.asarray(curve) / (1 + 1 / 2 + 1 / 3)


def stretched(features: np.ndarray, factor: float, config: FbankConfig = _FRONT_END) -> np.ndarray:
    """Change log mel energies to those of a vocal tract of another length: frequency f moves to ``factor * f``.

    Energies are interpolated between bins, and constant beyond the last bin (Jaitly and Hinton, "Vocal tract length
    perturbation improves speech recognition", ICML workshop 2013).

    Args:
        features: (T_in, F).
        factor: above 1 for a shorter vocal tract.
        config: configuration of the front end.
    """
    low, high = (1127 * np.log1p(hertz / 700) for hertz in (config.low_freq, config.sample_rate / 2 + config.high_freq))
    count = features.shape[1]
    centers = low + (high - low) * np.arange(1, count + 1) / (count + 1)
    # mel frequency, then fractional bin, that each bin is taken from
    origins = 1127 * np.log1p(700 * np.expm1(centers / 1127) / factor / 700)
    place = ((origins - centers[0]) / (centers[1] - centers[0])).clip(0, count - 1)
    below = place.astype(np.int64).clip(max=count - 2)
    share = (place - below).astype(np.float32)
    return features[:, below] * (1 - share) + features[:, below + 1] * share


def _with_noise(features: np.ndarray, noise: Sequence[Cut], draw: random.Random) -> np.ndarray:
    """Mix noise into log mel energies of speech, with probability 0.5.

    Pieces of noise follow one another up to the end of the utterance. Each is scaled to the drawn signal-to-noise
    ratio, by the mean energies of utterance and piece.
    """
    if draw.random() >= _NOISE_PROBABILITY:
        return features
    energies = np.exp(features)
    noise_energy = energies.mean() * 10 ** (-draw.uniform(*_SNR_DB) / 10)
    start = 0
    while start < len(energies):
        piece = np.exp(load_features(draw.choice(noise)))
        remaining = len(energies) - start
        begin = draw.randint(0, max(0, len(piece) - remaining))
        piece = piece[begin : begin + remaining]
        energies[start : start + len(piece)] += piece * (noise_energy / piece.mean())
        start += len(piece)
    return np.log(energies)


def _generator(key: str) -> np.random.Generator:
    """Return NumPy's generator seeded by a text, the same in every process."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
