"""What every corpus reader gives: utterances, and what is wrong with the rest."""

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
    "too short",
    "too long",
    "too much text",
    "beyond the audio",
    "bad row",
]

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Utterance:
    """One sentence: where its sound is and what is said."""

    id: str
    path: Path
    text: str
    speaker: str
    split: str
    start_s: float = 0.0
    """Where it begins in the file."""
    duration_s: float = math.inf
    """How long it is; infinite: to the end of the file."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a corpus."""

    kind: ProblemKind
    id: str
    detail: str


def describe_problems(problems: Sequence[Problem], examples: int = 3) -> str:
    """A line a kind: how many, and the first few of them; an empty string if there are none."""
    lines = []
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        first = [p for p in problems if p.kind == kind][:examples]
        named = "; ".join(f"{p.id}: {p.detail}" if p.detail else p.id for p in first)
        lines.append(f"{count:6d}  {kind} ({named}{'; ...' if count > examples else ''})")
    return "\n".join(lines)


def problem_rows(problems: Iterable[Problem]) -> str:
    """All of them as tab-separated lines: kind, id, detail."""
    return "".join("\t".join(" ".join(cell.split()) for cell in (p.kind, p.id, p.detail)) + "\n" for p in problems)
