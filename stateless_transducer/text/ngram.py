"""N-gram language models over a model's tokens.

Letters: V vocabulary, M n-grams.

The n-grams are a trie in one sorted array, without a dictionary: the key of an n-gram is made of the number of its
prefix and its last token. Ten million n-grams take 240 MB, and about 1.5 GB while they are read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stateless_transducer.files import file_problem
from stateless_transducer.text.arpa import END, START, NgramLevel, read_levels
from stateless_transducer.text.tokens import TokenTable

_UNIT_NAMES = {"char": "characters", "word": "words", "bpe": "pieces of words", "bbpe": "pieces of bytes"}
NEVER = -20.0
"""Natural log-probability of tokens that are not in the language model, if it has no <unk>."""


@dataclass(frozen=True)
class Ngrams:
    """N-grams with natural log-probabilities. Number 0 is the empty n-gram; the rest are in the order of `keys`."""

    order: int
    """Longest n-gram, in tokens."""
    vocab_size: int
    """V; as tokens, V and V + 1 are the beginning and the end of a sentence."""
    keys: np.ndarray
    """(M,), int64, sorted: number of the n-gram without its last token * (V + 2) + last token."""
    log_probs: np.ndarray
    """(M + 1,), float32: log-probability of the last token after the tokens before it."""
    backoffs: np.ndarray
    """(M + 1,), float32: added if no n-gram extends this one by the next token."""
    suffixes: np.ndarray
    """(M + 1,), int64: number of the longest proper suffix that is an n-gram."""
    lengths: np.ndarray
    """(M + 1,), int8: number of tokens."""
    unigrams: np.ndarray
    """(V + 2,), float32: log-probability of each token without context, unknown tokens included."""

    @property
    def start(self) -> int:
        """Number of the context at the beginning of a sentence."""
        return self._child(0, self.vocab_size)

    def advance(self, context: int, token: int) -> int:
        """Return the number of the longest context after a token."""
        while True:
            child = self._child(context, token)
            if child or not context:
                break
            context = int(self.suffixes[context])
        return int(self.suffixes[child]) if self.lengths[child] == self.order else child

    def row(self, context: int) -> np.ndarray:
        """Return the log-probability of each token in a context: (V + 2,), float32."""
        chain: list[int] = []
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

    def log_probs_of(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the natural log-probabilities of a sentence's U tokens and of its end: (U + 1,)."""
        context = self.start
        scores: list[float] = []
        for token in (*tokens, self.vocab_size + 1):
            scores.append(self._log_prob(context, token))
            context = self.advance(context, token)
        return np.array(scores)

    def _log_prob(self, context: int, token: int) -> float:
        backoff = 0.0
        while context:
            child = self._child(context, token)
            if child:
                return backoff + float(self.log_probs[child])
            backoff += float(self.backoffs[context])
            context = int(self.suffixes[context])
        return backoff + float(self.unigrams[token])

    def _child(self, context: int, token: int) -> int:
        key = context * (self.vocab_size + 2) + token
        place = int(np.searchsorted(self.keys, key))
        return place + 1 if place < len(self.keys) and self.keys[place] == key else 0


def read_arpa(path: str | Path, token_table: TokenTable) -> Ngrams:
    """Read an ARPA file (or .gz) whose words are the model's tokens; n-grams with other words are skipped.

    Raises:
        ValueError: the file cannot be read, is truncated or no ARPA file, or has fewer than half of the tokens.

    Example:
        >>> tokens = load_checkpoint("model.pt").token_table
        >>> ngrams = read_arpa("lm.arpa", tokens)
        >>> ngrams.log_probs_of(tokens.encode("今天")).shape  # two tokens and the end
        (3,)
    """
    path, V = Path(path), len(token_table)
    if problem := file_problem(path, may_be_pipe=True):
        raise ValueError(f"{path}: {problem}.")
    ids = {**token_table.ids, START: V, END: V + 1, "<UNK>": token_table.unknown_id}
    try:
        ngrams = ngrams_of(read_levels(path, ids), vocab_size=V, unknown_id=token_table.unknown_id)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as err:
        raise ValueError(f"{path}: cannot be read as an ARPA file: {err}") from err
    if not ngrams.order:
        raise ValueError(f"{path}: not an ARPA file: it has no `\\1-grams:`.")
    # blank, start and unknown are not part of a text
    num_known = int(np.searchsorted(ngrams.keys, V))
    if 2 * num_known < V - 3:
        raise ValueError(
            f"{path}: knows only {num_known} of the model's {V} tokens; its words must be the model's tokens "
            f"({_UNIT_NAMES[token_table.unit]})."
        )
    return ngrams


def ngrams_of(levels: Iterable[NgramLevel], *, vocab_size: int, unknown_id: int) -> Ngrams:
    """Combine n-grams of all lengths; those whose prefix is missing are skipped.

    Args:
        levels: from the shortest to the longest; as tokens, V and V + 1 are the beginning and the end of a sentence.
        vocab_size: V.
        unknown_id: token whose probability is used for tokens that are in no n-gram.
    """
    ngrams = _empty(vocab_size)
    for order, level in enumerate(levels, start=1):
        ngrams = _with_level(ngrams, order, level)
    # the keys of unigrams are their tokens
    tokens = ngrams.keys[: np.searchsorted(ngrams.keys, vocab_size + 2)]
    log_probs = ngrams.log_probs[1 : len(tokens) + 1]
    unknown = log_probs[tokens == unknown_id]
    unigrams = np.full(vocab_size + 2, unknown[0] if len(unknown) else NEVER, np.float32)
    unigrams[tokens] = log_probs
    return replace(ngrams, unigrams=unigrams)


def _empty(V: int) -> Ngrams:
    """Return the empty n-gram alone."""
    nothing = np.zeros(1, np.float32)
    return Ngrams(
        order=0,
        vocab_size=V,
        keys=np.zeros(0, np.int64),
        log_probs=nothing,
        backoffs=nothing,
        suffixes=np.zeros(1, np.int64),
        lengths=np.zeros(1, np.int8),
        unigrams=np.full(V + 2, NEVER, np.float32),
    )


def _with_level(ngrams: Ngrams, order: int, level: NgramLevel) -> Ngrams:
    """Add the n-grams of the next length whose prefix exists."""
    parents = np.zeros(len(level.tokens), np.int64)
    for column in level.tokens[:, :-1].T:
        parents = _children(ngrams, parents, column)
    has_prefix = parents >= 0
    keys = parents[has_prefix] * (ngrams.vocab_size + 2) + level.tokens[has_prefix, -1]
    keys, rows = np.unique(keys, return_index=True)
    log_probs = level.log_probs[has_prefix][rows].astype(np.float32)
    backoffs = level.backoffs[has_prefix][rows].astype(np.float32)
    return Ngrams(
        order=order,
        vocab_size=ngrams.vocab_size,
        keys=np.concatenate([ngrams.keys, keys]),
        log_probs=np.concatenate([ngrams.log_probs, log_probs]),
        backoffs=np.concatenate([ngrams.backoffs, backoffs]),
        suffixes=np.concatenate([ngrams.suffixes, _suffixes(ngrams, keys)]),
        lengths=np.concatenate([ngrams.lengths, np.full(len(keys), order, np.int8)]),
        unigrams=ngrams.unigrams,
    )


def _children(ngrams: Ngrams, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the numbers of contexts extended by tokens; -1 where there is no such n-gram or context."""
    keys = contexts * (ngrams.vocab_size + 2) + tokens
    places = np.searchsorted(ngrams.keys, keys)
    exists = np.append(ngrams.keys, -1)[places] == keys
    return np.where(exists & (contexts >= 0), places + 1, -1)


def _suffixes(ngrams: Ngrams, keys: np.ndarray) -> np.ndarray:
    """Return the suffixes of n-grams with these keys, which are one token longer than `ngrams`."""
    parents, tokens = np.divmod(keys, ngrams.vocab_size + 2)
    contexts, suffixes = ngrams.suffixes[parents], np.zeros(len(keys), np.int64)
    pending = np.arange(len(keys))
    while len(pending):
        children = _children(ngrams, contexts[pending], tokens[pending])
        suffixes[pending] = np.maximum(children, 0)
        pending = pending[(children < 0) & (contexts[pending] > 0)]
        contexts[pending] = ngrams.suffixes[contexts[pending]]
    return suffixes
