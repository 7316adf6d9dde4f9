"""What may be added to the model's scores in a beam: hotwords here, a language model of one's own by the protocol.

Letters: N utterances, V vocabulary, S states of the automaton, M distinct tokens of all phrases, R hypotheses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from stateless_transducer.text.hotwords import HotwordPhrase


class Scorer(Protocol):
    """Adds to the log-probability of each token, by what a hypothesis has said so far. States are integers."""

    def start(self, utterances: Tensor) -> Tensor:
        """State before the first token, of each of these utterances of the batch; (R,) -> (R,), int64."""
        ...

    def scores(self, states: Tensor) -> Tensor:
        """What saying each token adds: (R,) -> (R, V). The blank says nothing, and adds 0."""
        ...

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States after these tokens: (R,) and (R,) -> (R,)."""
        ...

    def finish(self, states: Tensor) -> Tensor:
        """What the end of the utterance adds: (R,) -> (R,)."""
        ...


class Hotwords:
    """Phrases that are wanted: an automaton of Aho and Corasick (1975) over tokens.

    A hypothesis that has said part of a phrase is ahead by the same part of the phrase's score, and falls back when it
    goes on otherwise or ends. So all that remains at the end is the score of each full match, wherever it stands, and
    matches may overlap.
    """

    def __init__(
        self,
        phrases: Sequence[Sequence[HotwordPhrase]],
        *,
        vocab_size: int,
        blank_id: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the automaton.

        Args:
            phrases: one list for each utterance of the batch, or a single one for all.
            vocab_size: V.
            blank_id: id of the blank.
            device: where the search runs.

        Raises:
            ValueError: there is no list, or a phrase is empty, holds a blank or an id outside the vocabulary.
        """
        if not phrases:
            raise ValueError("`phrases` must hold a list for each utterance, or one for all.")
        nodes: list[_Node] = []
        roots = [_grow(nodes, own, vocab_size, blank_id) for own in phrases]
        tokens = sorted({token for node in nodes for token in node.children})
        column = {token: place for place, token in enumerate(tokens, start=1)}
        # column 0 stands for all tokens that are in no phrase: they lead back to the root
        goto = torch.zeros(len(nodes), len(tokens) + 1, dtype=torch.int64)
        for root in roots:
            _link(nodes, root, goto, column)
        potential = torch.tensor([node.potential for node in nodes])
        matched = torch.tensor([node.matched for node in nodes])
        columns = torch.zeros(vocab_size, dtype=torch.int64)
        columns[tokens] = torch.arange(1, len(tokens) + 1)
        self._blank_id = blank_id
        self._roots = torch.tensor(roots, device=device)
        self._goto, self._columns = goto.to(device), columns.to(device)  # (S, M+1), (V,)
        self._gain = ((potential + matched)[goto] - potential[:, None]).to(device)  # (S, M+1)
        self._potential = potential.to(device)

    def start(self, utterances: Tensor) -> Tensor:
        """See `Scorer`."""
        return self._roots[utterances] if len(self._roots) > 1 else self._roots.expand(len(utterances))

    def scores(self, states: Tensor) -> Tensor:
        """See `Scorer`."""
        scores = self._gain[states].index_select(1, self._columns)
        scores[:, self._blank_id] = 0
        return scores

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """See `Scorer`."""
        return self._goto[states, self._columns[tokens]]

    def finish(self, states: Tensor) -> Tensor:
        """See `Scorer`."""
        return -self._potential[states]


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


def _link(nodes: list[_Node], root: int, goto: Tensor, column: dict[int, int]) -> None:
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
