"""A synthetic Mandarin corpus in AISHELL-1's layout: sentences of `grammar`, spoken by espeak-ng in many voices.

It is reproducible from a seed. Each speaker gets a new process, since espeak-ng's noise depends on everything that the
process has synthesized before.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
from annotated_types import Ge

from stateless_transducer.audio import resample
from stateless_transducer.data.corpora.espeak import Espeak, Voice
from stateless_transducer.data.corpora.grammar import sentences
from stateless_transducer.files import write_text
from stateless_transducer.options import check_bounds
from stateless_transducer.processes import end_with_parent

SAMPLE_RATE = 16000

# variants not used: whispers, monsters and buzzes, and variants that are half as fast again as the rate set, with up to
# nine characters per second
_WEIRD = {"AnxiousAndy", "Demonic", "Marco", "Mr serious", "UniRobot", "klatt", "klatt2", "whisper", "whisperf"}
_HASTY = {"Andrea", "RicishayMax2", "RicishayMax3", "anika", "anikaRobot", "antonio", "pedro"} | {
    f"robosoft{n}" for n in ("", 2, 3, 4, 5, 7)
}


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the synthetic corpus."""

    num_train_speakers: Annotated[int, Ge(1)] = 72
    """Voices of the training set, which differ in variant, pitch and rate."""
    num_dev_speakers: Annotated[int, Ge(1)] = 4
    """Voices in the dev set."""
    num_test_speakers: Annotated[int, Ge(1)] = 6
    """Voices in the test set."""
    utterances_per_speaker: Annotated[int, Ge(1)] = 50
    """Sentences per voice; no sentence occurs twice."""
    seed: int = 20220301
    """Seed of sentences, voices and noise."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True)
class _Speaker:
    id: str
    split: str
    voice: Voice
    gender: str
    utterances: tuple[tuple[str, str], ...]  # (utterance id, sentence)
    seed: tuple[int, int]


def synthesize_corpus(
    corpus_dir: Path, config: SyntheticConfig, *, num_jobs: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write ``data_aishell`` and ``resource_aishell`` into a folder.

    Args:
        corpus_dir: created if it does not exist; results of an interrupted run are replaced.
        config: size of the corpus.
        num_jobs: number of processes.
        progress: called with (speakers done, speakers in total).
    """
    speakers = _cast(config)
    wav_dir = corpus_dir / "data_aishell" / "wav"
    shutil.rmtree(wav_dir, ignore_errors=True)
    tasks = [(speaker, wav_dir / speaker.split / speaker.id) for speaker in speakers]
    with _context().Pool(num_jobs, end_with_parent, maxtasksperchild=1) as pool:
        for done, _ in enumerate(pool.imap_unordered(_speak, tasks, chunksize=1), 1):
            if progress is not None:
                progress(done, len(speakers))
    _write_texts(corpus_dir, config, speakers)


def _context() -> BaseContext:
    """Return a way to start a process per speaker: what a process has spoken before changes espeak-ng's speech."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports take longer than a speaker's sentences
    return context


def is_complete(corpus_dir: Path, config: SyntheticConfig) -> bool:
    """Report whether a folder holds the complete corpus of a configuration."""
    path = corpus_dir / "data_aishell" / "synthetic.json"
    try:
        return json.loads(path.read_bytes()) == asdict(config)
    except (FileNotFoundError, ValueError):
        return False


def _cast(config: SyntheticConfig) -> list[_Speaker]:
    """Draw voices and sentences; no variant and no sentence is in two splits."""
    random = np.random.default_rng(config.seed)
    genders = {name: sex for name, sex in Espeak().variants().items() if name not in _WEIRD | _HASTY}
    variants = [str(name) for name in random.permutation(list(genders))]
    num_speakers = {
        "test": config.num_test_speakers,
        "dev": config.num_dev_speakers,
        "train": config.num_train_speakers,
    }
    num_held_out = config.num_test_speakers + config.num_dev_speakers
    if num_held_out >= len(variants):
        raise ValueError(
            f"Test and dev need {num_held_out} voices, but there are {len(variants)}, and the training set needs some "
            "of them. Lower `num_test_speakers` or `num_dev_speakers`."
        )
    pool = sentences(random, sum(num_speakers.values()) * config.utterances_per_speaker)
    number, speakers = 2, []
    for split, count in num_speakers.items():
        # the training set gets all other variants, repeatedly with other pitches and rates if it needs more
        split_variants = variants if split == "train" else [variants.pop() for _ in range(count)]
        for i in range(count):
            variant, id_ = split_variants[i % len(split_variants)], f"S{number:04d}"
            texts = [pool.pop() for _ in range(config.utterances_per_speaker)]
            speakers.append(
                _Speaker(
                    id=id_,
                    split=split,
                    voice=_draw_voice(random, variant),
                    gender=genders[variant],
                    utterances=tuple((f"BAC009{id_}W{121 + k:04d}", text) for k, text in enumerate(texts)),
                    seed=(config.seed, number),
                )
            )
            number += 1
    return speakers


def _draw_voice(random: np.random.Generator, variant: str) -> Voice:
    pitch, pitch_range, rate = random.integers([30, 40, 210], [71, 61, 281])
    return Voice(variant, int(pitch), int(pitch_range), int(rate))


def _speak(task: tuple[_Speaker, Path]) -> None:
    """Write the utterances of a speaker into a folder, each with its own level and background noise."""
    speaker, folder = task
    folder.mkdir(parents=True, exist_ok=True)
    espeak, random = Espeak(), np.random.default_rng(speaker.seed)
    for id_, text in speaker.utterances:
        raw = espeak.say(text.replace(" ", ""), speaker.voice).astype(np.float32) / 32768
        samples = resample(raw, espeak.sample_rate, SAMPLE_RATE)
        level = 10 ** (random.uniform(-15, -3) / 20)
        noise = level * 10 ** (random.uniform(-50, -30) / 20)
        samples = samples * level / max(np.abs(samples).max(), 1e-3) + random.normal(0, noise, len(samples))
        soundfile.write(folder / f"{id_}.wav", samples.clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")


def _write_texts(corpus_dir: Path, config: SyntheticConfig, speakers: list[_Speaker]) -> None:
    lines = sorted(f"{id_} {text}\n" for speaker in speakers for id_, text in speaker.utterances)
    write_text(corpus_dir / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt", "".join(lines))
    words = sorted({word for speaker in speakers for _, text in speaker.utterances for word in text.split()})
    resource_dir = corpus_dir / "resource_aishell"
    write_text(resource_dir / "lexicon.txt", "".join(f"{word} {_pronunciation(word)}\n" for word in words))
    write_text(resource_dir / "speaker.info", "".join(f"{s.id[1:]} {s.gender}\n" for s in sorted(speakers, key=_id)))
    # written last: marks the corpus as complete
    write_text(corpus_dir / "data_aishell" / "synthetic.json", json.dumps(asdict(config), indent=2) + "\n")


def _id(speaker: _Speaker) -> str:
    return speaker.id


def _pronunciation(word: str) -> str:
    """Return initials and toned finals, as in AISHELL's lexicon."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise ValueError("The lexicon needs pypinyin: pip install 'stateless-transducer[demo]'.") from None
    initials = pinyin(word, style=Style.INITIALS, strict=False)
    finals = pinyin(word, style=Style.FINALS_TONE3, strict=False, neutral_tone_with_five=True)
    return " ".join(part for pair in zip(initials, finals, strict=True) for (part,) in pair if part)
