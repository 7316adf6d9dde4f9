"""Sound files or waves -> text, with a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from stateless_transducer.audio import AudioError, read_audio
from stateless_transducer.checkpoint import Checkpoint, load_checkpoint
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.search import make_scorer, search
from stateless_transducer.features import PADDING_VALUE, fbank
from stateless_transducer.ops.masks import SUBSAMPLING

MAX_SECONDS = 300.0
"""Longest audio transcribed in one piece: attention takes memory with the square of it."""


@dataclass(frozen=True)
class Transcript:
    """What was said."""

    text: str
    tokens: tuple[str, ...]
    """The pieces of the text."""
    times: tuple[float, ...]
    """Seconds from the start at which each token was emitted."""
    log_probs: tuple[float, ...]
    """Log-probability of each token."""
    duration: float
    """Seconds of audio."""


class Recognizer:
    """A model that transcribes; safe to call from several threads, since it never changes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: SearchConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        hotwords: Sequence[str] = (),
    ) -> None:
        """A recogniser of the checkpoint's model.

        Args:
            checkpoint: model, front end and tokens.
            config: which search; greedy search by default.
            device: where to compute.
            hotwords: wanted phrases, besides those of the configuration's file; they need a search with a beam.

        Raises:
            ValueError: the model's tokens cannot spell a hotword, or the search has no beam.
        """
        self._config = config or SearchConfig()
        self._fbank_config, self.token_table = checkpoint.fbank_config, checkpoint.token_table
        self._device = torch.device(device)
        self._model = checkpoint.model().to(self._device)
        if hotwords and self._config.decoding_method == "greedy_search":
            raise ValueError('Hotwords need a beam: SearchConfig(decoding_method="modified_beam_search").')
        self._scorer = make_scorer(self._config, self.token_table, self._device, hotwords)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        config: SearchConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        hotwords: Sequence[str] = (),
    ) -> Recognizer:
        """Read a checkpoint of this project; the arguments are those of the constructor.

        Raises:
            ValueError: it cannot be read.
        """
        return cls(load_checkpoint(Path(path)), config, device=device, hotwords=hotwords)

    @property
    def sample_rate(self) -> int:
        """At which waves must come."""
        return self._fbank_config.sample_rate

    def transcribe(
        self, sounds: Iterable[str | Path | np.ndarray], *, batch_seconds: float = 100.0
    ) -> list[Transcript]:
        """Transcripts in the order of the sounds.

        Args:
            sounds: names of sound files of any rate, or waves (S,), float in [-1, 1], at `sample_rate`.
            batch_seconds: audio worked on at once, padding counted.

        Raises:
            AudioError: a file cannot be read.
        """
        waves = (s if isinstance(s, np.ndarray) else self.read(s) for s in sounds)
        return [transcript for batch in self._batches(waves, batch_seconds) for transcript in self._transcribe(batch)]

    def read(self, path: str | Path) -> np.ndarray:
        """A sound file as a wave at `sample_rate`, (S,).

        Raises:
            AudioError: it cannot be read, or is longer than `MAX_SECONDS`.
        """
        wave = read_audio(path, self.sample_rate)
        if len(wave) > MAX_SECONDS * self.sample_rate:
            seconds = len(wave) / self.sample_rate
            raise AudioError(f"{path}: {seconds:.0f} s of audio, but {MAX_SECONDS:.0f} s are the most; cut it first.")
        return wave

    def features(self, wave: np.ndarray) -> np.ndarray:
        """What the model sees of a wave: (S,) -> (T_in, F)."""
        return fbank(wave, self._fbank_config)

    def _batches(self, waves: Iterable[np.ndarray], batch_seconds: float) -> Iterator[list[np.ndarray]]:
        batch: list[np.ndarray] = []
        for wave in waves:
            longest = max(len(wave), *(len(other) for other in batch)) if batch else len(wave)
            if batch and longest * (len(batch) + 1) > batch_seconds * self.sample_rate:
                yield batch
                batch = []
            batch.append(wave)
        if batch:
            yield batch

    def _transcribe(self, waves: Sequence[np.ndarray]) -> list[Transcript]:
        features = [torch.from_numpy(self.features(wave)) for wave in waves]
        padded = pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE)
        lens = torch.tensor([len(each) for each in features])
        hypotheses = search(self._model, padded.to(self._device), lens.to(self._device), self._config, self._scorer)
        durations = (len(wave) / self.sample_rate for wave in waves)
        return [
            self._transcript(hypothesis, duration) for hypothesis, duration in zip(hypotheses, durations, strict=True)
        ]

    def _transcript(self, hypothesis: Hypothesis, duration: float) -> Transcript:
        seconds_a_frame = SUBSAMPLING * self._fbank_config.frame_shift_ms / 1000
        return Transcript(
            text=self.token_table.decode(hypothesis.tokens),
            tokens=tuple(self.token_table.symbols[token] for token in hypothesis.tokens),
            times=tuple(round(frame * seconds_a_frame, 3) for frame in hypothesis.frames),
            log_probs=hypothesis.log_probs,
            duration=duration,
        )
