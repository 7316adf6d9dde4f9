"""ARPA files: n-gram language models as SRILM, KenLM and kaldilm's tools write and read them."""

from __future__ import annotations

import gzip
import io
import math
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
"""Common logarithm that stands for no probability at all, as that of `START` behind anything."""


@dataclass(frozen=True)
class NgramLevel:
    """M n-grams of one length n."""

    tokens: np.ndarray
    """(M, n), integers."""
    log_probs: np.ndarray
    """(M,), natural: of the last token behind the others; -inf for what is never said."""
    backoffs: np.ndarray
    """(M,), natural logs: of the share that is left to the shorter context."""


def read_levels(path: Path, ids: Mapping[str, int]) -> Iterator[NgramLevel]:
    """The n-grams of a file (or .gz), from the shortest to the longest.

    Args:
        path: the file.
        ids: of words; n-grams with others are left out.

    Raises:
        ValueError: a line is no n-gram, or a length is missing.
        OSError, EOFError, zlib.error: the file is damaged.
    """
    for order, lines in groupby(_lines(path), key=itemgetter(0)):
        # not lists of lists: a number in them takes ten times as much memory
        tokens, scores = array("i"), array("f")
        for _, words, *its_scores in lines:
            known = [ids[word] for word in words if word in ids]
            if len(known) == order:
                tokens.extend(known)
                scores.extend(its_scores)
        log_probs, backoffs = np.asarray(scores).reshape(-1, 2).T
        yield NgramLevel(np.asarray(tokens).reshape(-1, order), log_probs, backoffs)


def _lines(path: Path) -> Iterator[tuple[int, list[str], float, float]]:
    """(Order, words, natural log-probability, natural log of the back-off weight) of each n-gram."""
    order = 0
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        assert isinstance(file, io.TextIOBase)
        for number, line in enumerate(file, start=1):
            fields = line.split()
            if not fields or line.startswith(("\\data\\", "ngram ")):
                continue
            if line.startswith("\\end\\"):
                return
            if line.startswith("\\"):
                head = fields[0].removeprefix("\\").removesuffix("-grams:")
                if not head.isdecimal() or int(head) != order + 1:
                    raise ValueError(
                        f"{path}:{number}: `\\{order + 1}-grams:` should come here, but is {line.strip()!r}."
                    )
                order += 1
                continue
            if not order:
                # what stands before the head is a comment
                continue
            try:
                scores = [float(fields[0]), float(fields[order + 1]) if len(fields) == order + 2 else 0.0]
            except (ValueError, IndexError):
                scores = []
            # -inf means what -99 does
            scores = [max(score, _NEVER) for score in scores]
            if not scores or not all(map(math.isfinite, scores)) or len(fields) not in (order + 1, order + 2):
                raise ValueError(f"{path}:{number}: not an n-gram of order {order}: {line.strip()!r}.")
            log_prob, backoff = (score * math.log(10) for score in scores)
            yield order, fields[1 : order + 1], log_prob, backoff


def write_arpa(path: Path, levels: Sequence[NgramLevel], words: Sequence[str]) -> None:
    """Write a file (or .gz), all or nothing.

    Args:
        path: its folder is made if need be.
        levels: from the shortest n-grams to the longest.
        words: by id; `START` and `END` are two of them.
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
