"""What may be added to the model's scores in a beam: hotwords, several things at once; one's own by the protocol.

Letters: N utterances, V vocabulary, S states of the automaton, M distinct tokens of all phrases, R hypotheses,
W integers of a scorer's state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stateless_transducer.decoding.arrays import Array, gather, like, namespace, top
from stateless_transducer.text.hotwords import HotwordPhrase


class Scorer(Protocol):
    """Adds to the log-probability of each token, by what a hypothesis has said so far.

    Arrays come and go in the kind of the search's: NumPy, or torch on some device.
    """

    state_size: int
    """W: a state is so many integers."""

    def start(self, utterances: Array) -> Array:
        """State before the first token, of each of these utterances of the batch; (R,) -> (R, W), int64."""
        ...

    def scores(self, states: Array) -> Array:
        """What saying each token adds: (R, W) -> (R, V). The blank says nothing, and adds 0."""
        ...

    def advance(self, states: Array, tokens: Array) -> Array:
        """States after these tokens: (R, W) and (R,) -> (R, W)."""
        ...

    def finish(self, states: Array) -> Array:
        """What the end of the utterance adds: (R, W) -> (R,)."""
        ...


def best_symbols(
    logits: Array, normalizer: Array, count: int, states: Array, scorer: Scorer | None
) -> tuple[Array, Array, Array]:
    """The symbols that add most to each hypothesis, blank among them, best first.

    Args:
        logits: (R, V).
        normalizer: (R, 1), the log of their summed exponentials.
        count: how many; V at most.
        states: (R, W), of the scorer.
        scorer: what else counts.

    Returns:
        Symbols, what each adds in all, and its log-probability in the model alone; (R, count) each.
    """
    if scorer is None:
        values, symbols = top(logits, count)
        own = values - normalizer
        return symbols, own, own
    values, symbols = top(logits + scorer.scores(states), count)
    return symbols, values - normalizer, gather(logits, symbols) - normalizer


class SumOfScorers:
    """Several scorers at once: what they add is added, their states stand side by side."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self._scorers = tuple(scorers)
        self.state_size = sum(scorer.state_size for scorer in scorers)

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        return namespace(utterances).concat([scorer.start(utterances) for scorer in self._scorers], axis=1)

    def scores(self, states: Array) -> Array:
        """See `Scorer`."""
        return sum(scorer.scores(own) for scorer, own in zip(self._scorers, self._parts(states), strict=True))

    def advance(self, states: Array, tokens: Array) -> Array:
        """See `Scorer`."""
        parts = zip(self._scorers, self._parts(states), strict=True)
        return namespace(states).concat([scorer.advance(own, tokens) for scorer, own in parts], axis=1)

    def finish(self, states: Array) -> Array:
        """See `Scorer`."""
        return sum(scorer.finish(own) for scorer, own in zip(self._scorers, self._parts(states), strict=True))

    def _parts(self, states: Array) -> list[Array]:
        ends = np.cumsum([scorer.state_size for scorer in self._scorers]).tolist()
        return [states[:, start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class Hotwords:
    """Phrases that are wanted: an automaton of Aho and Corasick (1975) over tokens.

    A hypothesis that has said part of a phrase is ahead by the same part of the phrase's score, and falls back when it
    goes on otherwise or ends. So all that remains at the end is the score of each full match, wherever it stands, and
    matches may overlap.
    """

    state_size = 1

    def __init__(self, phrases: Sequence[Sequence[HotwordPhrase]], *, vocab_size: int, blank_id: int = 0) -> None:
        """Build the automaton.

        Args:
            phrases: one list for each utterance of the batch, or a single one for all.
            vocab_size: V.
            blank_id: id of the blank.

        Raises:
            ValueError: there is no list, or a phrase is empty, holds a blank or an id outside the vocabulary.
        """
        if not phrases:
            raise ValueError("`phrases` must hold a list for each utterance, or one for all.")
        nodes: list[_Node] = []
        lists = [tuple((tuple(tokens), score) for tokens, score in own) for own in phrases]
        # utterances that want the same share an automaton
        root_of = {own: _grow(nodes, own, vocab_size, blank_id) for own in dict.fromkeys(lists)}
        tokens = sorted({token for node in nodes for token in node.children})
        column = {token: place for place, token in enumerate(tokens, start=1)}
        # column 0 stands for all tokens that are in no phrase: they lead back to the root
        goto = np.zeros((len(nodes), len(tokens) + 1), dtype=np.int64)
        for root in root_of.values():
            _link(nodes, root, goto, column)
        potential = np.array([node.potential for node in nodes], dtype=np.float32)
        matched = np.array([node.matched for node in nodes], dtype=np.float32)
        columns = np.zeros(vocab_size, dtype=np.int64)
        columns[tokens] = np.arange(1, len(tokens) + 1)
        self._blank_id = blank_id
        self._tables = _Tables(
            roots=np.array([root_of[own] for own in lists]),
            goto=goto,
            columns=columns,
            gain=(potential + matched)[goto] - potential[:, None],
            potential=potential,
        )
        self._moved: dict[str, _Tables] = {}

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        roots = self._on(utterances).roots
        return (roots[utterances] if len(roots) > 1 else roots + 0 * utterances)[:, None]

    def scores(self, states: Array) -> Array:
        """See `Scorer`."""
        tables = self._on(states)
        scores = tables.gain[states[:, 0]][:, tables.columns]
        scores[:, self._blank_id] = 0
        return scores

    def advance(self, states: Array, tokens: Array) -> Array:
        """See `Scorer`."""
        tables = self._on(states)
        return tables.goto[states[:, 0], tables.columns[tokens]][:, None]

    def finish(self, states: Array) -> Array:
        """See `Scorer`."""
        return -self._on(states).potential[states[:, 0]]

    def _on(self, array: Array) -> _Tables:
        """The tables where the search runs; moved there once."""
        if isinstance(array, np.ndarray):
            return self._tables
        place = str(array.device)
        if place not in self._moved:
            self._moved[place] = _Tables(**{name: like(own, array) for name, own in vars(self._tables).items()})
        return self._moved[place]


@dataclass(frozen=True)
class _Tables:
    """The automaton."""

    roots: Array
    """(N,) or (1,): state that an utterance starts in."""
    goto: Array
    """(S, M+1): state behind each token, by the token's column."""
    columns: Array
    """(V,): column of each token."""
    gain: Array
    """(S, M+1): what each token adds."""
    potential: Array
    """(S,): how far ahead a hypothesis in this state is."""


@dataclass
class _Node:
    """A prefix of phrases."""

    potential: float = 0.0
    """How far ahead a hypothesis is that has just said it, since a longer phrase may follow."""
    matched: float = 0.0
    """Sum of the scores of the phrases that end here, those included that are a tail of the prefix."""
    children: dict[int, int] = field(default_factory=dict)
    """Token -> node."""


def _grow(nodes: list[_Node], phrases: Sequence[HotwordPhrase], vocab_size: int, blank_id: int) -> int:
    """Add the prefixes of an utterance's phrases; the number of their root."""
    root = len(nodes)
    nodes.append(_Node())
    for tokens, score in phrases:
        if not tokens:
            raise ValueError("A hotword must have at least one token.")
        at = root
        for depth, token in enumerate(tokens, start=1):
            if not 0 <= token < vocab_size or token == blank_id:
                raise ValueError(f"Token {token} of a hotword must be in 0..{vocab_size - 1} and not the blank.")
            if token not in nodes[at].children:
                nodes[at].children[token] = len(nodes)
                nodes.append(_Node())
            at = nodes[at].children[token]
            if depth < len(tokens):
                # where phrases share a beginning, the largest promise counts
                share = score * depth / len(tokens)
                nodes[at].potential = max(nodes[at].potential, share, key=abs)
        nodes[at].matched += score
    return root


def _link(nodes: list[_Node], root: int, goto: np.ndarray, column: dict[int, int]) -> None:
    """Fill the transitions of one automaton, in the order of depth, and add the matches of tails."""
    goto[root] = root
    for token, child in nodes[root].children.items():
        goto[root, column[token]] = child
    # the longest proper tail of each prefix that is a prefix itself
    fallback = {child: root for child in nodes[root].children.values()}
    queue = deque(fallback)
    while queue:
        at = queue.popleft()
        back = fallback[at]
        nodes[at].matched += nodes[back].matched
        goto[at] = goto[back]
        for token, child in nodes[at].children.items():
            fallback[child] = int(goto[back, column[token]])
            goto[at, column[token]] = child
            queue.append(child)
