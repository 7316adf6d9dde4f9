"""AISHELL-1 (OpenSLR 33, arXiv 1709.05522) as its archive unpacks."""

from __future__ import annotations

from pathlib import Path

from stateless_transducer.data.corpora.id_lines import read_id_lines
from stateless_transducer.data.corpora.utterance import SPLITS, Problem, Utterance


def read_aishell(corpus_dir: Path) -> tuple[list[Utterance], list[Problem]]:
    """Read the utterances of ``corpus_dir/data_aishell``, sorted by split and id, and the problems.

    Raises:
        ValueError: the folder is not AISHELL's, or has no utterance.
    """
    transcript = corpus_dir / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    wav_dir = corpus_dir / "data_aishell" / "wav"
    if not corpus_dir.is_dir():
        raise ValueError(f"`corpus_dir` {corpus_dir}: no such folder.")
    for path in (transcript, wav_dir):
        if not path.exists():
            raise ValueError(
                f"`corpus_dir` {corpus_dir} is not AISHELL's: {path.relative_to(corpus_dir)} is missing. "
                "Pass the folder that holds data_aishell/."
            )
    texts, problems = read_id_lines(transcript)
    utterances = []
    for split in SPLITS:
        for path in sorted((wav_dir / split).glob("*/*.wav")):
            if path.stem not in texts:
                problems.append(Problem("audio without text", path.stem, str(path)))
                continue
            text = texts.pop(path.stem)
            utterances.append(Utterance(path.stem, path, text, path.parent.name, split))
    problems += [Problem("text without audio", id_, text) for id_, text in texts.items()]
    if not utterances:
        raise ValueError(
            f"`corpus_dir` {corpus_dir}: no utterance has both audio and text. Expected wav files like "
            "data_aishell/wav/train/S0002/BAC009S0002W0122.wav; the speakers' archives in wav/ must be unpacked."
        )
    return utterances, problems
