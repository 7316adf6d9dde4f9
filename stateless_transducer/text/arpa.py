"""ARPA files: n-gram language models in the format of SRILM, KenLM and kaldilm."""

from __future__ import annotations

import gzip
import io
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from stateless_transducer.files import replacing

START, END = "<s>", "</s>"

_NEVER = -99.0
"""Common logarithm that stands for probability 0, for example of `START` after any word."""

_COUNT = re.compile(r"ngram\s+(?P<order>\d+)\s*=\s*(?P<ngrams>\d+)")


@dataclass(frozen=True)
class NgramLevel:
    """M n-grams of one length n."""

    tokens: np.ndarray
    """(M, n), integers."""
    log_probs: np.ndarray
    """(M,), natural log-probability of the last token after the others; -inf for probability 0."""
    backoffs: np.ndarray
    """(M,), natural log of the weight of the shorter context."""


def read_levels(path: Path, ids: Mapping[str, int]) -> Iterator[NgramLevel]:
    """Read the n-grams of a file (or .gz), from the shortest to the longest.

    Args:
        path: the file.
        ids: word -> id; n-grams with words that are not in it are skipped.

    Raises:
        ValueError: a line is no n-gram, a length is missing, or the file is truncated: ``\\end\\`` is missing, or the
            numbers of n-grams differ from those stated.
        OSError, EOFError, zlib.error: the file is damaged.
    """
    for order, lines in groupby(_lines(path), key=itemgetter(0)):
        # a number in an array takes a tenth of the memory that it takes in a list
        tokens, scores = array("i"), array("f")
        for _, words, log_prob, backoff in lines:
            known = [ids[word] for word in words if word in ids]
            if len(known) == order:
                tokens.extend(known)
                scores.extend((log_prob, backoff))
        log_probs, backoffs = np.asarray(scores).reshape(-1, 2).T
        yield NgramLevel(np.asarray(tokens).reshape(-1, order), log_probs, backoffs)


def _lines(path: Path) -> Iterator[tuple[int, list[str], float, float]]:
    """(Order, words, natural log-probability, natural log of the back-off weight) of each n-gram."""
    # order -> number of n-grams
    stated: dict[int, int] = {}
    found: dict[int, int] = {}
    order, is_ended = 0, False
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        assert isinstance(file, io.TextIOBase)
        for number, line in enumerate(file, start=1):
            if line.startswith("\\end\\"):
                is_ended = True
                break
            if not line.strip() or line.startswith("\\data\\"):
                continue
            if line.startswith("\\"):
                order = _next_order(line, order, f"{path}:{number}")
                found[order] = 0
            elif order:
                found[order] += 1
                yield order, *_ngram(line, order, f"{path}:{number}")
            elif count := _COUNT.fullmatch(line.strip()):
                stated[int(count["order"])] = int(count["ngrams"])
            # anything else before the first order is a comment
    if found or stated:
        _check_counts(path, stated, found, is_ended)


def _next_order(line: str, order: int, place: str) -> int:
    """Read the head of the n-grams of the next order, ``\\2-grams:``."""
    if line.split()[0] != f"\\{order + 1}-grams:":
        raise ValueError(f"{place}: `\\{order + 1}-grams:` should come here, but is {line.strip()!r}.")
    return order + 1


def _ngram(line: str, order: int, place: str) -> tuple[list[str], float, float]:
    """Words, natural log-probability and natural log of the back-off weight in a line."""
    fields = line.split()
    try:
        scores = [float(fields[0]), float(fields[order + 1]) if len(fields) == order + 2 else 0.0]
    except (ValueError, IndexError):
        scores = []
    # -inf means what -99 does
    scores = [max(score, _NEVER) for score in scores]
    if not scores or not all(map(math.isfinite, scores)) or len(fields) not in (order + 1, order + 2):
        raise ValueError(f"{place}: not an n-gram of order {order}: {line.strip()!r}.")
    log_prob, backoff = (score * math.log(10) for score in scores)
    return fields[1 : order + 1], log_prob, backoff


def _check_counts(path: Path, stated: Mapping[int, int], found: Mapping[int, int], is_ended: bool) -> None:
    """Refuse a file without its end, or with other numbers of n-grams than its head states (it may state none)."""
    unlike = [n for n in sorted(stated.keys() | found.keys()) if stated.get(n, 0) != found.get(n, 0)] if stated else []
    if is_ended and not unlike:
        return
    counts = "; ".join(f"{stated.get(n, 0)} {n}-grams stated, {found.get(n, 0)} found" for n in unlike)
    problems = [*([] if is_ended else ["`\\end\\` is missing"]), *([counts] if counts else [])]
    raise ValueError(f"{path}: truncated or damaged ARPA file: {'; '.join(problems)}. Copy or build it again.")


def write_arpa(path: Path, levels: Sequence[NgramLevel], words: Sequence[str]) -> None:
    """Write a file (or .gz) atomically.

    Args:
        path: the file; its folder is created if it does not exist.
        levels: from the shortest n-grams to the longest.
        words: word of each id, `START` and `END` included.
    """
    names = np.array(words, object)
    with replacing(path) as temporary:
        gz = path.suffix == ".gz"
        opened = gzip.open(temporary, "wt", encoding="utf-8") if gz else temporary.open("w", encoding="utf-8")
        with opened as file:
            assert isinstance(file, io.TextIOBase)
            file.write("\\data\\\n" + "".join(f"ngram {n}={len(level.tokens)}\n" for n, level in enumerate(levels, 1)))
            for n, level in enumerate(levels, start=1):
                file.write(f"\n\\{n}-grams:\n")
                for gram, log_prob, backoff in zip(
                    names[level.tokens].tolist(),
                    np.maximum(level.log_probs / math.log(10), _NEVER).tolist(),
                    (level.backoffs / math.log(10)).tolist(),
                    strict=True,
                ):
                    line = f"{log_prob:.7g}\t{' '.join(gram)}"
                    file.write(f"{line}\t{backoff:.7g}\n" if n < len(levels) else f"{line}\n")
            file.write("\n\\end\\\n")
