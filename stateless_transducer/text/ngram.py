"""N-gram language models over a model's tokens: what follows what, and how likely.

Letters: V vocabulary, M n-grams.

The n-grams are a trie in one sorted array: the place of an n-gram follows from the place of its beginning and its last
token, so ten million of them take 240 MB, about 1.5 GB while they are read, and no dictionary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stateless_transducer.text.arpa import END, START, NgramLevel, read_levels
from stateless_transducer.text.tokens import TokenTable

_UNIT_NAMES = {"char": "characters", "word": "words", "bpe": "pieces of words"}
NEVER = -20.0
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

    def log_probs_of(self, tokens: Sequence[int]) -> np.ndarray:
        """(U + 1,), natural: of a sentence's U tokens and its end, each behind those before it."""
        context, scores = self.start, []
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


def read_arpa(path: Path, token_table: TokenTable) -> Ngrams:
    """An ARPA file (or .gz) whose words are the model's tokens; n-grams with other words are left out.

    Raises:
        ValueError: it cannot be read, is no ARPA file, or knows fewer than half of the tokens.
    """
    V = len(token_table)
    ids = {**token_table.ids, START: V, END: V + 1, "<UNK>": token_table.unknown_id}
    try:
        found = ngrams_of(read_levels(path, ids), vocab_size=V, unknown_id=token_table.unknown_id)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as err:
        raise ValueError(f"{path}: cannot be read as an ARPA file: {err}") from err
    if not found.order:
        raise ValueError(f"{path}: not an ARPA file: it has no `\\1-grams:`.")
    # blank, start and unknown are no words of a text
    num_known = int(np.searchsorted(found.keys, V))
    if 2 * num_known < V - 3:
        raise ValueError(
            f"{path}: knows only {num_known} of the model's {V} tokens; its words must be the model's tokens "
            f"({_UNIT_NAMES[token_table.unit]})."
        )
    return found


def ngrams_of(levels: Iterable[NgramLevel], *, vocab_size: int, unknown_id: int) -> Ngrams:
    """N-grams of all lengths together, of which those without their beginning are left out.

    Args:
        levels: from the shortest to the longest; as tokens, V and V + 1 stand for the sentence's beginning and end.
        vocab_size: V.
        unknown_id: the token whose probability those have that no n-gram knows.
    """
    found = _empty(vocab_size)
    for order, level in enumerate(levels, start=1):
        found = _with_level(found, order, level)
    # those behind nothing
    known = found.keys[: np.searchsorted(found.keys, vocab_size + 2)]
    own = found.log_probs[1 : len(known) + 1]
    unknown = own[known == unknown_id]
    unigrams = np.full(vocab_size + 2, unknown[0] if len(unknown) else NEVER, np.float32)
    unigrams[known] = own
    return replace(found, unigrams=unigrams)


def _empty(V: int) -> Ngrams:
    """Only the empty n-gram."""
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
    """N-grams of the next length added, but for those without their beginning."""
    parents = np.zeros(len(level.tokens), np.int64)
    for column in level.tokens[:, :-1].T:
        parents = _children(ngrams, parents, column)
    there = parents >= 0
    keys, chosen = np.unique(parents[there] * (ngrams.vocab_size + 2) + level.tokens[there, -1], return_index=True)
    log_probs, backoffs = (own[there][chosen].astype(np.float32) for own in (level.log_probs, level.backoffs))
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
    """Numbers of the n-grams that contexts and tokens make; -1 where there is none, or no such context."""
    keys = contexts * (ngrams.vocab_size + 2) + tokens
    places = np.searchsorted(ngrams.keys, keys)
    is_there = np.append(ngrams.keys, -1)[places] == keys
    return np.where(is_there & (contexts >= 0), places + 1, -1)


def _suffixes(ngrams: Ngrams, keys: np.ndarray) -> np.ndarray:
    """Of n-grams one token longer than all these: the token goes on from an ever shorter end of what is before it."""
    parents, tokens = np.divmod(keys, ngrams.vocab_size + 2)
    contexts, found = ngrams.suffixes[parents], np.zeros(len(keys), np.int64)
    left = np.arange(len(keys))
    while len(left):
        children = _children(ngrams, contexts[left], tokens[left])
        found[left] = np.maximum(children, 0)
        left = left[(children < 0) & (contexts[left] > 0)]
        contexts[left] = ngrams.suffixes[contexts[left]]
    return found
