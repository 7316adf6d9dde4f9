"""Graves' beam search for a CPU: each utterance's hypotheses in Python; see `beam_search`.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam, W integers of a scorer's state.

Each utterance walks at its own pace and says what it must know of the model next; in every round all questions of all
utterances are answered in one call. For a batch of one this takes a quarter to a half of the time that arrays do.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stateless_transducer.decoding.arrays import (
    Array,
    like,
    log_sum_exp,
    namespace,
    to_numpy,
)
from stateless_transducer.decoding.fusion import Scorer, best_symbols
from stateless_transducer.decoding.hypothesis import MAX_EXPANSIONS, Hypothesis
from stateless_transducer.decoding.options import LogitOptions
from stateless_transducer.decoding.protocols import TransducerSteps


def search_by_walks(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    beam_size: int,
    options: LogitOptions,
    scorer: Scorer | None,
) -> list[list[Hypothesis]]:
    """Hypotheses of each utterance, in no order; arguments as for `beam_search`."""
    N, T, D = encoder_out.shape
    oracle = _Oracle(model, encoder_out.reshape(N * T, D), beam_size, options, scorer)
    states = np.zeros((N, 0), np.int64)
    if scorer is not None:
        states = to_numpy(scorer.start(like(np.arange(N), encoder_out)))
    start = (model.blank_id,) * model.context_size
    walks = [
        _walk(_Node(None, 0, start, 0, 0, 0.0, tuple(state)), num_frames, model.blank_id, beam_size)
        for state, num_frames in zip(states.tolist(), to_numpy(encoder_out_lens).tolist(), strict=True)
    ]
    found: list[_Open] = [[] for _ in walks]
    answers: dict[int, list[_Expansion] | None] = dict.fromkeys(range(N))
    while answers:
        asked: dict[int, list[_Question]] = {}
        for n, given in answers.items():
            try:
                asked[n] = walks[n].send(given)
            except StopIteration as end:
                found[n] = end.value
        together = iter(oracle.answer([(n * T, question) for n, own in asked.items() for question in own]))
        answers = {n: [next(together) for _ in own] for n, own in asked.items()}
    if scorer is not None:
        found = [_finished(own, scorer, encoder_out) for own in found]
    return [[_hypothesis(node, score) for score, node in own] for own in found]


class _Question(NamedTuple):
    """What comes behind this context on this frame?"""

    context: tuple[int, ...]
    state: tuple[int, ...]
    t: int


class _Expansion(NamedTuple):
    """The answer."""

    blank: float
    """Log-probability of a blank."""
    symbols: list[tuple[int, float, float, tuple[int, ...]]]
    """The best symbols: what each adds in all, its own log-probability, and the scorer's state behind it."""


@dataclass(frozen=True)
class _Oracle:
    """Model and scorer; answers many questions at once."""

    model: TransducerSteps
    frames: Array
    """(N * T, D)."""
    beam_size: int
    options: LogitOptions
    scorer: Scorer | None

    def answer(self, questions: list[tuple[int, _Question]]) -> list[_Expansion]:
        """Each question comes with the row of its utterance's first frame."""
        if not questions:
            return []
        rows = like(np.array([first + question.t for first, question in questions]), self.frames)
        contexts = like(np.array([question.context for _, question in questions]), self.frames)
        logits = self.model.join(self.frames[rows], self.model.predict(contexts))
        logits = self.options.adjust(logits, self.model.blank_id)
        normalizer = log_sum_exp(logits)[:, None]
        num_best = min(self.beam_size + 1, logits.shape[1])
        states = like(np.array([question.state for _, question in questions]), self.frames)
        symbols, more, own = best_symbols(logits, normalizer, num_best, states, self.scorer)
        after = np.zeros((*symbols.shape, 0), np.int64)
        if self.scorer is not None:
            every = namespace(states).repeat(states, num_best, axis=0)
            after = to_numpy(self.scorer.advance(every, symbols.reshape(-1))).reshape(*symbols.shape, -1)
        blanks = to_numpy(logits[:, self.model.blank_id] - normalizer[:, 0]).tolist()
        columns = (to_numpy(each).tolist() for each in (symbols, more, own))
        return [
            _Expansion(blank, [(*said, tuple(state)) for *said, state in zip(*row, strict=True)])
            for blank, *row in zip(blanks, *columns, after.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class _Node:
    """The last token of a hypothesis and the way back: nothing is copied as hypotheses grow."""

    parent: _Node | None
    key: int
    """Hash of the whole token sequence."""
    context: tuple[int, ...]
    num_tokens: int
    t: int
    log_prob: float
    state: tuple[int, ...]
    """Of the scorer."""

    def say(self, token: int, t: int, log_prob: float, state: tuple[int, ...]) -> _Node:
        context, key = (*self.context[1:], token), hash((self.key, self.num_tokens, token))
        return _Node(self, key, context, self.num_tokens + 1, t, log_prob, state)


_Open = list[tuple[float, _Node]]
"""Hypotheses with their log-probabilities."""


def _walk(
    root: _Node, num_frames: int, blank_id: int, beam_size: int
) -> Generator[list[_Question], list[_Expansion] | None, _Open]:
    """One utterance: yields questions, is sent their answers, returns what is open behind the last frame."""
    open_ = {root.key: (0.0, root)}
    for t in range(num_frames):
        known: dict[_Question, _Expansion] = {}
        # nearly all that survived the frame before will be expanded: ask about them at once
        wanted = list({_Question(node.context, node.state, t): None for _, node in open_.values()})
        done: dict[int, tuple[float, _Node]] = {}
        better: list[int] = []
        for _ in range(MAX_EXPANSIONS * beam_size):
            log_prob, node = open_.pop(max(open_, key=lambda key: open_[key][0]))
            question = _Question(node.context, node.state, t)
            if question not in known:
                wanted = wanted or [question]
                known.update(zip(wanted, (yield wanted) or (), strict=True))
                wanted = []
            blank, symbols = known[question]
            _add(done, node, log_prob + blank)
            for symbol, total, own, state in symbols:
                if symbol != blank_id:
                    _add(open_, node.say(symbol, t, own, state), log_prob + total)
            threshold = max((log_prob for log_prob, _ in open_.values()), default=-math.inf)
            better = [key for key, (log_prob, _) in done.items() if log_prob > threshold]
            if len(better) >= beam_size or not open_:
                break
        kept = better if len(better) >= beam_size else list(done)
        kept.sort(key=lambda key: -done[key][0])
        open_ = {key: done[key] for key in kept[:beam_size]}
    return list(open_.values())


def _add(hypotheses: dict[int, tuple[float, _Node]], node: _Node, log_prob: float) -> None:
    """Add a hypothesis, or its probability to an equal one."""
    other = hypotheses.get(node.key)
    if other is not None:
        high, low = max(other[0], log_prob), min(other[0], log_prob)
        log_prob = high + math.log1p(math.exp(low - high)) if low > -math.inf else high
        node = other[1]
    hypotheses[node.key] = (log_prob, node)


def _finished(hypotheses: _Open, scorer: Scorer, frames: Array) -> _Open:
    """With what the scorer adds at the end."""
    more = to_numpy(scorer.finish(like(np.array([node.state for _, node in hypotheses]), frames))).tolist()
    return [(log_prob + own, node) for (log_prob, node), own in zip(hypotheses, more, strict=True)]


def _hypothesis(node: _Node, score: float) -> Hypothesis:
    said = []
    while node.parent is not None:
        said.append((node.context[-1], node.t, node.log_prob))
        node = node.parent
    tokens, frames, log_probs = zip(*reversed(said), strict=True) if said else ((), (), ())
    return Hypothesis(tokens, frames, log_probs, score)
