"""N-gram language models over a model's tokens, read from ARPA files as SRILM, KenLM and kaldilm's tools write them.

Letters: V vocabulary, M n-grams.

The n-grams are a trie in one sorted array: the place of an n-gram follows from the place of its beginning and its last
token, so ten million of them take 240 MB and no dictionary.
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stateless_transducer.text.tokens import TokenTable

_UNIT_NAMES = {"char": "characters", "word": "words", "bpe": "pieces of words"}
_NEVER = -20.0
"""Natural log-probability of tokens that the language model does not know, if it has no <unk>."""


@dataclass(frozen=True)
class Ngrams:
    """N-grams with natural log-probabilities; number 0 is the empty one, the others follow in the order of `keys`."""

    order: int
    """Longest n-gram, in tokens."""
    vocab_size: int
    """V; as tokens, V and V + 1 stand for the sentence's beginning and end."""
    keys: np.ndarray
    """(M,), int64, sorted: number of the n-gram without its last token * (V + 2) + last token."""
    log_probs: np.ndarray
    """(M + 1,), float32: of the last token behind those before it."""
    backoffs: np.ndarray
    """(M + 1,), float32: added where the n-gram does not go on with a token."""
    suffixes: np.ndarray
    """(M + 1,), int64: number of the n-gram without its first token, or of the longest end of it that there is."""
    lengths: np.ndarray
    """(M + 1,), int8."""
    unigrams: np.ndarray
    """(V + 2,), float32: log-probability of each token behind nothing, unknown ones included."""

    @property
    def start(self) -> int:
        """Number of the context at the beginning of a sentence."""
        return self._child(0, self.vocab_size)

    def advance(self, context: int, token: int) -> int:
        """Number of the longest context that a token leads to."""
        while True:
            child = self._child(context, token)
            if child or not context:
                break
            context = int(self.suffixes[context])
        return int(self.suffixes[child]) if self.lengths[child] == self.order else child

    def row(self, context: int) -> np.ndarray:
        """(V + 2,), float32: log-probability of each token in a context."""
        chain = []
        while context:
            chain.append(context)
            context = int(self.suffixes[context])
        row = self.unigrams.copy()
        for number in reversed(chain):
            row += self.backoffs[number]
            base = number * (self.vocab_size + 2)
            first, last = np.searchsorted(self.keys, (base, base + self.vocab_size + 2))
            row[self.keys[first:last] - base] = self.log_probs[first + 1 : last + 1]
        return row

    def _child(self, context: int, token: int) -> int:
        key = context * (self.vocab_size + 2) + token
        place = int(np.searchsorted(self.keys, key))
        return place + 1 if place < len(self.keys) and self.keys[place] == key else 0


def read_arpa(path: Path, token_table: TokenTable) -> Ngrams:
    """An ARPA file (or .gz) whose words are the model's tokens; n-grams with other words are left out.

    Raises:
        ValueError: it cannot be read, is no ARPA file, or knows fewer than half of the tokens.
    """
    V = len(token_table)
    ids = {**token_table.ids, "<s>": V, "</s>": V + 1, "<UNK>": token_table.unknown_id}
    numbers: dict[tuple[int, ...], int] = {(): 0}
    levels: list[list[tuple[int, int, float, float, tuple[int, ...]]]] = []
    try:
        for order, words, log_prob, backoff in _lines(path):
            while len(levels) < order:
                if levels:
                    _number(levels[-1], numbers)
                levels.append([])
            tokens = tuple(ids.get(word, -1) for word in words)
            parent = numbers.get(tokens[:-1])
            if parent is not None and tokens[-1] >= 0:
                levels[-1].append((parent, tokens[-1], log_prob, backoff, tokens))
    except (OSError, UnicodeDecodeError, EOFError) as err:
        raise ValueError(f"{path}: cannot be read as an ARPA file: {err}") from err
    if not levels:
        raise ValueError(f"{path}: not an ARPA file: it has no `\\1-grams:`.")
    _number(levels[-1], numbers)
    found = _assemble(levels, numbers, V, token_table)
    # blank, start and unknown are no words of a text
    num_known = len({tokens[0] for *_, tokens in levels[0] if tokens[0] < V})
    if 2 * num_known < V - 3:
        raise ValueError(
            f"{path}: knows only {num_known} of the model's {V} tokens; its words must be the model's tokens "
            f"({_UNIT_NAMES[token_table.unit]})."
        )
    return found


def _number(level: list[tuple[int, int, float, float, tuple[int, ...]]], numbers: dict[tuple[int, ...], int]) -> None:
    """Sort the n-grams of one length by key and give them the next numbers."""
    level.sort()
    first = len(numbers)
    numbers.update((row[4], first + i) for i, row in enumerate(level))


def _assemble(levels, numbers: dict[tuple[int, ...], int], V: int, token_table: TokenTable) -> Ngrams:
    rows = [row for level in levels for row in level]
    suffixes = np.zeros(len(rows) + 1, np.int64)
    for i, (*_, tokens) in enumerate(rows, start=1):
        shorter = tokens[1:]
        while shorter not in numbers:
            shorter = shorter[1:]
        suffixes[i] = numbers[shorter]
    unigram_of = {token: log_prob for _, token, log_prob, _, _ in levels[0]}
    unigrams = np.full(V + 2, unigram_of.get(token_table.unknown_id, _NEVER), np.float32)
    unigrams[list(unigram_of)] = list(unigram_of.values())
    return Ngrams(
        order=len(levels),
        vocab_size=V,
        keys=np.array([parent * (V + 2) + token for parent, token, *_ in rows], np.int64),
        log_probs=np.array([0.0, *(row[2] for row in rows)], np.float32),
        backoffs=np.array([0.0, *(row[3] for row in rows)], np.float32),
        suffixes=suffixes,
        lengths=np.array([0, *(len(row[4]) for row in rows)], np.int8),
        unigrams=unigrams,
    )


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
            if not scores or len(fields) not in (order + 1, order + 2):
                raise ValueError(f"{path}:{number}: not an n-gram of order {order}: {line.strip()!r}.")
            # SRILM writes -99 for what never happens, as <s> behind anything
            log_prob, backoff = (score * math.log(10) for score in scores)
            yield order, fields[1 : order + 1], log_prob, backoff
