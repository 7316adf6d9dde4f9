"""Results of corpus readers: utterances, and problems of those that cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ProblemKind = Literal[
    "audio without text",
    "text without audio",
    "missing audio",
    "unreadable audio",
    "duplicate id",
    "empty text",
    "silent audio",
    "too short",
    "too long",
    "too much text",
    "beyond the audio",
    "bad row",
]

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Utterance:
    """An utterance: place of its sound, and its transcript."""

    id: str
    path: Path
    text: str
    speaker: str
    split: str
    start_s: float = 0.0
    """Second at which it begins in the file."""
    duration_s: float = math.inf
    """Duration in seconds; infinite means to the end of the file."""


@dataclass(frozen=True)
class Problem:
    """A problem of a corpus, for example a missing file."""

    kind: ProblemKind
    id: str
    detail: str


def describe_problems(problems: Sequence[Problem], examples: int = 3) -> str:
    """Return a line per kind of problem, with its number and the first examples; empty without problems."""
    lines = []
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        first = [p for p in problems if p.kind == kind][:examples]
        named = "; ".join(f"{p.id}: {p.detail}" if p.detail else p.id for p in first)
        lines.append(f"{count:6d}  {kind} ({named}{'; ...' if count > examples else ''})")
    return "\n".join(lines)


def problem_rows(problems: Iterable[Problem]) -> str:
    """Return the problems as tab-separated lines: kind, id, detail."""
    return "".join("\t".join(" ".join(cell.split()) for cell in (p.kind, p.id, p.detail)) + "\n" for p in problems)
