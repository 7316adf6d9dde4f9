"""Shallow fusion: language models as scorers of a beam search.

Letters: V vocabulary, R hypotheses.

A token's score is ``scale * log p(token | tokens before it)``, and an utterance's end has the score of the
sentence end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stateless_transducer.decoding.arrays import Array, like, to_numpy
from stateless_transducer.text.ngram import NEVER, Ngrams

_CACHED_BYTES = 64 << 20
"""Size of the cache of score rows, since hypotheses return to the same contexts."""


class NgramScorer:
    """Scores of an n-gram language model. Its tables are on the host, so a search on a GPU waits at every step.

    Example:
        >>> tokens = load_checkpoint("model.pt").token_table
        >>> scorer = NgramScorer(read_arpa("lm.arpa", tokens), scale=0.3)
        >>> scorer.scores(scorer.start(np.array([0]))).shape  # one utterance, each token
        (1, 9)
    """

    state_size = 1

    def __init__(self, ngrams: Ngrams, *, scale: float, blank_id: int = 0) -> None:
        self._ngrams, self._scale, self._blank_id = ngrams, scale, blank_id
        self._rows: OrderedDict[int, np.ndarray] = OrderedDict()
        self._most = max(16, _CACHED_BYTES // (4 * ngrams.vocab_size))

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        return like(np.full((len(utterances), 1), self._ngrams.start, np.int64), utterances)

    def scores(self, states: Array) -> Array:
        """See `Scorer`."""
        rows = np.stack([self._row(number) for number in to_numpy(states)[:, 0].tolist()])
        return like(rows[:, :-2], states)

    def advance(self, states: Array, tokens: Array) -> Array:
        """See `Scorer`."""
        pairs = zip(to_numpy(states)[:, 0].tolist(), to_numpy(tokens).tolist(), strict=True)
        return like(np.array([[self._ngrams.advance(*pair)] for pair in pairs], np.int64), states)

    def finish(self, states: Array) -> Array:
        """See `Scorer`."""
        ends = [self._row(number)[-1] for number in to_numpy(states)[:, 0].tolist()]
        return like(np.array(ends, np.float32), states)

    def _row(self, number: int) -> np.ndarray:
        """Return the scaled scores after a context, (V + 2,), with 0 for the blank."""
        row = self._rows.pop(number, None)
        if row is None:
            row = self._scale * self._ngrams.row(number)
            if self._scale < 0:
                # with a negative scale, impossible tokens would score best
                row[row >= self._scale * NEVER] = 0
            row[self._blank_id] = 0
            if len(self._rows) >= self._most:
                self._rows.popitem(last=False)
        self._rows[number] = row
        return row


class LanguageModel(Protocol):
    """Network that `NeuralScorer` evaluates.

    Example:
        >>> class Uniform:
        ...     def start(self):
        ...         return np.log(np.full(4, 0.25)), None
        ...
        ...     def step(self, tokens, states):
        ...         return np.log(np.full((len(tokens), 4), 0.25)), states
        >>> model: LanguageModel = Uniform()
        >>> log_probs, state = model.start()  # blank, two tokens and the end
        >>> log_probs.shape
        (4,)
    """

    def start(self) -> tuple[np.ndarray, Any]:
        """Return log-probabilities of the first token, (V + 1,), the last for the end, and the network's state."""
        ...

    def step(self, tokens: np.ndarray, states: Sequence[Any]) -> tuple[np.ndarray, Sequence[Any]]:
        """Advance R states by one token each, (R,): log-probabilities (R, V + 1) and new states."""
        ...


class NeuralScorer:
    """Scores of a neural language model over the model's tokens, evaluated once per token of a hypothesis.

    It holds the histories of one search at a time: create one per thread.

    Example:
        >>> class Uniform:  # see `LanguageModel`
        ...     def start(self):
        ...         return np.log(np.full(4, 0.25)), None
        ...
        ...     def step(self, tokens, states):
        ...         return np.log(np.full((len(tokens), 4), 0.25)), states
        >>> scorer = NeuralScorer(Uniform(), scale=0.3)
        >>> scorer.scores(scorer.start(np.array([0]))).round(2)  # 0.3 * log 0.25; the blank has no score
        array([[ 0.  , -0.42, -0.42]], dtype=float32)
    """

    state_size = 1

    def __init__(self, model: LanguageModel, *, scale: float, blank_id: int = 0) -> None:
        self._model, self._scale, self._blank_id = model, scale, blank_id
        self._start = self._scaled(*model.start())
        self._forget()

    def _forget(self) -> None:
        # each history's parent and last token, its number by these, and a cache of its scores and network state
        self._origins: list[tuple[int, int]] = [(0, 0)]
        self._numbers: dict[tuple[int, int], int] = {}
        self._kept: OrderedDict[int, tuple[np.ndarray, Any]] = OrderedDict({0: self._start})

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        self._forget()
        return like(np.zeros((len(utterances), 1), np.int64), utterances)

    def scores(self, states: Array) -> Array:
        """See `Scorer`."""
        return like(np.stack([row[:-1] for row in self._rows(states)]), states)

    def advance(self, states: Array, tokens: Array) -> Array:
        """See `Scorer`."""
        after: list[list[int]] = []
        for pair in zip(to_numpy(states)[:, 0].tolist(), to_numpy(tokens).tolist(), strict=True):
            if pair not in self._numbers:
                self._numbers[pair] = len(self._origins)
                self._origins.append(pair)
            after.append([self._numbers[pair]])
        return like(np.array(after, np.int64), states)

    def finish(self, states: Array) -> Array:
        """See `Scorer`."""
        return like(np.array([row[-1] for row in self._rows(states)], np.float32), states)

    def _rows(self, states: Array) -> list[np.ndarray]:
        """Return the scores after each history, (V + 1,); new histories are evaluated in one call."""
        numbers = to_numpy(states)[:, 0].tolist()
        self._evaluate({number for number in numbers if number not in self._kept})
        rows: list[np.ndarray] = []
        for number in numbers:
            self._kept.move_to_end(number)
            rows.append(self._kept[number][0])
        most = max(4 * len(rows), _CACHED_BYTES // rows[0].nbytes if rows else 0)
        while len(self._kept) > most:
            # an evicted history is evaluated again from its parent
            self._kept.popitem(last=False)
        return rows

    def _evaluate(self, wanted: set[int]) -> None:
        if not wanted:
            return
        origins = [self._origins[number] for number in wanted]
        if 0 in wanted:
            self._kept[0] = self._start
            return self._evaluate(wanted - {0})
        self._evaluate({parent for parent, _ in origins if parent not in self._kept})
        tokens = np.array([token for _, token in origins], np.int64)
        log_probs, states = self._model.step(tokens, [self._kept[parent][1] for parent, _ in origins])
        self._kept.update(zip(wanted, map(self._scaled, log_probs, states), strict=True))
        return None

    def _scaled(self, log_probs: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        row = np.asarray(self._scale * log_probs, np.float32)
        row[self._blank_id] = 0
        return row, state
