"""Scorers that add to the model's scores in a beam search: their protocol, hotwords, and sums of scorers.

Letters: N utterances, V vocabulary, S states of the automaton, M distinct tokens of all phrases, R hypotheses,
W integers of a scorer's state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from stateless_transducer.decoding.arrays import Array, device_of, gather, like, namespace, top
from stateless_transducer.text.hotwords import HotwordPhrase


class Scorer(Protocol):
    """Scores that a search adds to the log-probabilities of tokens, depending on the tokens before them.

    Arguments and results are arrays of the search's kind: NumPy, or torch on the search's device.

    Example:
        >>> class TokenBonus:  # favors long hypotheses
        ...     state_size = 1
        ...
        ...     def start(self, utterances):
        ...         return np.zeros((len(utterances), 1), np.int64)
        ...
        ...     def scores(self, states):
        ...         return np.tile(np.array([0, 0.5, 0.5], np.float32), (len(states), 1))  # blank and two tokens
        ...
        ...     def advance(self, states, tokens):
        ...         return states
        ...
        ...     def finish(self, states):
        ...         return np.zeros(len(states), np.float32)
        >>> scorer: Scorer = TokenBonus()
        >>> scorer.scores(scorer.start(np.array([0])))
        array([[0. , 0.5, 0.5]], dtype=float32)
    """

    state_size: int
    """W: number of integers in a state."""

    def start(self, utterances: Array) -> Array:
        """Return the states before the first token of utterances of the batch: (R,) to (R, W), int64."""
        ...

    def scores(self, states: Array) -> Array:
        """Return the score of each next token: (R, W) to (R, V). The blank's is 0."""
        ...

    def advance(self, states: Array, tokens: Array) -> Array:
        """Return the states after one more token: (R, W) and (R,) to (R, W)."""
        ...

    def finish(self, states: Array) -> Array:
        """Return the score of the utterance's end: (R, W) to (R,)."""
        ...


def best_symbols(
    logits: Array, normalizer: Array, count: int, states: Array, scorer: Scorer | None
) -> tuple[Array, Array, Array]:
    """Return the symbols, blank included, with the highest scores for each hypothesis, best first.

    Args:
        logits: (R, V).
        normalizer: (R, 1), the log of their summed exponentials.
        count: number of symbols, at most V.
        states: (R, W), of the scorer.
        scorer: hotwords or language models.

    Returns:
        Symbols, their total scores, and their log-probabilities in the model alone; (R, count) each.
    """
    if scorer is None:
        values, symbols = top(logits, count)
        log_probs = values - normalizer
        return symbols, log_probs, log_probs
    values, symbols = top(logits + scorer.scores(states), count)
    return symbols, values - normalizer, gather(logits, symbols) - normalizer


class SumOfScorers:
    """Sum of several scorers; a state holds their states side by side.

    Example:
        >>> tokens = load_checkpoint("model.pt").token_table
        >>> hotwords = Hotwords([spell_hotwords([("今天", 2.0)], tokens)], vocab_size=len(tokens))
        >>> ngrams = NgramScorer(read_arpa("lm.arpa", tokens), scale=0.3)
        >>> SumOfScorers([hotwords, ngrams]).state_size
        2
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        self._scorers = tuple(scorers)
        self.state_size: int = sum(scorer.state_size for scorer in scorers)

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        return namespace(utterances).concat([scorer.start(utterances) for scorer in self._scorers], axis=1)

    def scores(self, states: Array) -> Array:
        """See `Scorer`."""
        return sum(scorer.scores(part) for scorer, part in zip(self._scorers, self._parts(states), strict=True))

    def advance(self, states: Array, tokens: Array) -> Array:
        """See `Scorer`."""
        parts = zip(self._scorers, self._parts(states), strict=True)
        return namespace(states).concat([scorer.advance(part, tokens) for scorer, part in parts], axis=1)

    def finish(self, states: Array) -> Array:
        """See `Scorer`."""
        return sum(scorer.finish(part) for scorer, part in zip(self._scorers, self._parts(states), strict=True))

    def _parts(self, states: Array) -> list[Array]:
        ends = np.cumsum([scorer.state_size for scorer in self._scorers]).tolist()
        return [states[:, start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class ScorersOfStreams:
    """Scorers of the streams of a batch, each with its own or none.

    A state begins with the number of its stream; the state of the stream's scorer follows.
    """

    def __init__(self, scorers: Sequence[Scorer | None], *, vocab_size: int, unknown_id: int | None = None) -> None:
        """Join N scorers, of which several may be the same object.

        Args:
            scorers: N, None for a stream without a scorer.
            vocab_size: V.
            unknown_id: token that the search counts as a blank, so that its score is 0; None: no token.
        """
        distinct = list({id(scorer): scorer for scorer in scorers}.values())
        numbers = {id(scorer): number for number, scorer in enumerate(distinct)}
        self._distinct, self._vocab_size, self._unknown_id = distinct, vocab_size, unknown_id
        self._scorer_of_stream = np.array([numbers[id(scorer)] for scorer in scorers], np.int64)
        self._sizes = [0 if scorer is None else scorer.state_size for scorer in scorers]
        self.state_size: int = 1 + max(self._sizes)

    def join(self, states: Sequence[Array]) -> Array:
        """Join the states of the streams, (1, K, own W) each, to those of the batch, (N, K, W)."""
        xp, (_, K, _) = namespace(states[0]), states[0].shape
        joined = xp.zeros((len(states), K, self.state_size), dtype=xp.int64, device=device_of(states[0]))
        for number, part in enumerate(states):
            joined[number, :, 0] = number
            joined[number, :, 1 : 1 + part.shape[2]] = like(part[0], joined)
        return joined

    def split(self, states: Array) -> list[Array]:
        """Return the states of each stream, (1, K, own W); the inverse of `join`."""
        return [states[number : number + 1, :, 1 : 1 + size] for number, size in enumerate(self._sizes)]

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        xp, rows = namespace(utterances), utterances.shape[0]
        states = xp.zeros((rows, self.state_size), dtype=xp.int64, device=device_of(utterances))
        states[:, 0] = utterances
        for scorer, places, _ in self._parts(states):
            states[places, 1 : 1 + scorer.state_size] = scorer.start(xp.zeros_like(utterances[places]))
        return states

    def scores(self, states: Array) -> Array:
        """See `Scorer`."""
        xp, shape = namespace(states), (states.shape[0], self._vocab_size)
        scores = xp.zeros(shape, dtype=xp.float32, device=device_of(states))
        for scorer, places, part in self._parts(states):
            scores[places] = scorer.scores(part)
        if self._unknown_id is not None:
            scores[:, self._unknown_id] = 0
        return scores

    def advance(self, states: Array, tokens: Array) -> Array:
        """See `Scorer`."""
        advanced = namespace(states).asarray(states, copy=True)
        for scorer, places, part in self._parts(states):
            advanced[places, 1 : 1 + scorer.state_size] = scorer.advance(part, tokens[places])
        return advanced

    def finish(self, states: Array) -> Array:
        """See `Scorer`."""
        xp = namespace(states)
        scores = xp.zeros(states.shape[0], dtype=xp.float32, device=device_of(states))
        for scorer, places, part in self._parts(states):
            scores[places] = scorer.finish(part)
        return scores

    def _parts(self, states: Array) -> Iterator[tuple[Scorer, Array, Array]]:
        """Yield each scorer with the places of its rows and their states."""
        of_row = like(self._scorer_of_stream, states)[states[:, 0]]
        for number, scorer in enumerate(self._distinct):
            (places,) = namespace(states).nonzero(of_row == number)
            if scorer is not None and places.shape[0]:
                yield scorer, places, states[places][:, 1 : 1 + scorer.state_size]


class Hotwords:
    """Phrases to boost: an automaton of Aho and Corasick (1975) over tokens.

    A hypothesis that ends with part of a phrase is ahead by the same part of the phrase's score, and loses it when it
    continues differently or ends. The final score is the sum of the scores of all full matches, which may overlap.

    Example:
        >>> hotwords = Hotwords([[((3, 4), 2.0)]], vocab_size=6)  # tokens 3 and 4, score 2
        >>> start = hotwords.start(np.array([0]))
        >>> hotwords.scores(start)
        array([[0., 0., 0., 1., 0., 0.]], dtype=float32)
        >>> hotwords.scores(hotwords.advance(start, np.array([3])))
        array([[ 0., -1., -1.,  0.,  1., -1.]], dtype=float32)
    """

    state_size = 1

    def __init__(self, phrases: Sequence[Sequence[HotwordPhrase]], *, vocab_size: int, blank_id: int = 0) -> None:
        """Build the automaton.

        Args:
            phrases: one list per utterance of the batch, or a single list for all.
            vocab_size: V.
            blank_id: id of the blank.

        Raises:
            ValueError: there is no list, or a phrase is empty or holds the blank or an id outside the vocabulary.
        """
        if not phrases:
            raise ValueError("`phrases` must hold a list for each utterance, or one for all.")
        nodes: list[_Node] = []
        lists = [tuple((tuple(tokens), score) for tokens, score in utterance) for utterance in phrases]
        # utterances with equal lists share an automaton
        root_of = {phrase_list: _grow(nodes, phrase_list, vocab_size, blank_id) for phrase_list in dict.fromkeys(lists)}
        tokens = sorted({token for node in nodes for token in node.children})
        column = {token: place for place, token in enumerate(tokens, start=1)}
        # column 0 stands for all tokens in no phrase, which lead back to the root
        goto = np.zeros((len(nodes), len(tokens) + 1), dtype=np.int64)
        for root in root_of.values():
            _link(nodes, root, goto, column)
        potential = np.array([node.potential for node in nodes], dtype=np.float32)
        matched = np.array([node.matched for node in nodes], dtype=np.float32)
        columns = np.zeros(vocab_size, dtype=np.int64)
        columns[tokens] = np.arange(1, len(tokens) + 1)
        self._blank_id = blank_id
        self._tables = _Tables(
            roots=np.array([root_of[phrase_list] for phrase_list in lists]),
            goto=goto,
            columns=columns,
            gain=(potential + matched)[goto] - potential[:, None],
            potential=potential,
        )
        self._moved: dict[str, _Tables] = {}

    def start(self, utterances: Array) -> Array:
        """See `Scorer`."""
        roots = self._on(utterances).roots
        if len(roots) == 1:
            roots = namespace(roots).broadcast_to(roots, utterances.shape)
        else:
            roots = roots[utterances]
        return roots[:, None]

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
        """Return the tables on the device of an array; each device gets one copy."""
        if isinstance(array, np.ndarray):
            return self._tables
        place = str(array.device)
        if place not in self._moved:
            self._moved[place] = _Tables(**{name: like(table, array) for name, table in vars(self._tables).items()})
        return self._moved[place]


@dataclass(frozen=True)
class _Tables:
    """The automaton."""

    roots: Array
    """(N,) or (1,): start state of each utterance."""
    goto: Array
    """(S, M+1): state after each token, by the token's column."""
    columns: Array
    """(V,): column of each token."""
    gain: Array
    """(S, M+1): score of each token."""
    potential: Array
    """(S,): score that a hypothesis in this state has in advance."""


@dataclass
class _Node:
    """A prefix of phrases."""

    potential: float = 0.0
    """Score that a hypothesis ending with the prefix has in advance, for the phrase that may follow."""
    matched: float = 0.0
    """Sum of the scores of the phrases that end here, including those that are a tail of the prefix."""
    children: dict[int, int] = field(default_factory=dict[int, int])
    """Number of the next node by token."""


def _grow(nodes: list[_Node], phrases: Sequence[HotwordPhrase], vocab_size: int, blank_id: int) -> int:
    """Add the prefixes of an utterance's phrases, and return the number of their root."""
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
                # where phrases share a prefix, the largest share counts
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
