"""Graves' beam search for a CPU, with each utterance's hypotheses as Python objects; see `beam_search`.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam, W integers of a scorer's state.

Each utterance is a generator on a frame of its own, which yields its next queries of the model. In every round, the
queries of all utterances are answered in one call.
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
    """Return the unordered hypotheses of each utterance. See `beam_search` for the arguments."""
    N, T, D = encoder_out.shape
    evaluator = _Evaluator(model, encoder_out.reshape(N * T, D), beam_size, options, scorer)
    states = np.zeros((N, 0), np.int64)
    if scorer is not None:
        states = to_numpy(scorer.start(like(np.arange(N), encoder_out)))
    start = (model.blank_id,) * model.context_size
    walks = [
        _walk(_Node(None, 0, start, 0, 0, 0.0, tuple(state)), num_frames, model.blank_id, beam_size)
        for state, num_frames in zip(states.tolist(), to_numpy(encoder_out_lens).tolist(), strict=True)
    ]
    beams: list[_Beam] = [[] for _ in walks]
    # a generator's first input must be None
    answers: dict[int, list[_Expansion] | None] = dict.fromkeys(range(N))
    while answers:
        queries: dict[int, list[_Query]] = {}
        for n, expansions in answers.items():
            try:
                queries[n] = walks[n].send(expansions)
            except StopIteration as end:
                beams[n] = end.value
        batch = [(n * T, query) for n, utterance_queries in queries.items() for query in utterance_queries]
        all_expansions = evaluator.expand(batch)
        answers, start = {}, 0
        for n, utterance_queries in queries.items():
            answers[n] = all_expansions[start : start + len(utterance_queries)]
            start += len(utterance_queries)
    if scorer is not None:
        beams = [_with_final_scores(beam, scorer, encoder_out) for beam in beams]
    return [[_hypothesis(node, score) for score, node in beam] for beam in beams]


class _Query(NamedTuple):
    """A context and a scorer's state on a frame, whose continuations the search needs."""

    context: tuple[int, ...]
    state: tuple[int, ...]
    t: int


class _Expansion(NamedTuple):
    """Continuations of a query."""

    blank: float
    """Log-probability of a blank."""
    symbols: list[tuple[int, float, float, tuple[int, ...]]]
    """The best symbols: id, total score, log-probability in the model alone, and the scorer's state after it."""


@dataclass(frozen=True)
class _Evaluator:
    """Model and scorer, evaluated on many queries at once."""

    model: TransducerSteps
    frames: Array
    """(N * T, D)."""
    beam_size: int
    options: LogitOptions
    scorer: Scorer | None

    def expand(self, queries: list[tuple[int, _Query]]) -> list[_Expansion]:
        """Expand queries, each given with the row of its utterance's first frame in `frames`."""
        if not queries:
            return []
        rows = like(np.array([first + query.t for first, query in queries]), self.frames)
        contexts = like(np.array([query.context for _, query in queries]), self.frames)
        logits = self.model.join(self.frames[rows], self.model.predict(contexts))
        logits = self.options.adjust(logits, self.model.blank_id)
        normalizer = log_sum_exp(logits)[:, None]
        num_best = min(self.beam_size + 1, logits.shape[1])
        states = like(np.array([query.state for _, query in queries]), self.frames)
        symbols, scores, log_probs = best_symbols(logits, normalizer, num_best, states, self.scorer)
        after = np.zeros((*symbols.shape, 0), np.int64)
        if self.scorer is not None:
            repeated = namespace(states).repeat(states, num_best, axis=0)
            after = to_numpy(self.scorer.advance(repeated, symbols.reshape(-1))).reshape(*symbols.shape, -1)
        blanks = to_numpy(logits[:, self.model.blank_id] - normalizer[:, 0]).tolist()
        columns = [to_numpy(array).tolist() for array in (symbols, scores, log_probs, after)]
        return [
            _Expansion(
                blank,
                [(symbol, score, log_prob, tuple(state)) for symbol, score, log_prob, state in zip(*row, strict=True)],
            )
            for blank, *row in zip(blanks, *columns, strict=True)
        ]


@dataclass(frozen=True)
class _Node:
    """Last token of a hypothesis, linked to the tokens before it, so that nothing is copied as hypotheses grow."""

    parent: _Node | None
    key: int
    """Hash of the whole token sequence."""
    context: tuple[int, ...]
    num_tokens: int
    t: int
    log_prob: float
    state: tuple[int, ...]
    """State of the scorer."""

    def extended(self, token: int, t: int, log_prob: float, state: tuple[int, ...]) -> _Node:
        context, key = (*self.context[1:], token), hash((self.key, self.num_tokens, token))
        return _Node(self, key, context, self.num_tokens + 1, t, log_prob, state)


_Beam = list[tuple[float, _Node]]
"""Hypotheses with their log-probabilities."""


def _walk(
    root: _Node, num_frames: int, blank_id: int, beam_size: int
) -> Generator[list[_Query], list[_Expansion] | None, _Beam]:
    """Search one utterance: yield queries, receive their expansions, return the hypotheses after the last frame."""
    open_ = {root.key: (0.0, root)}
    for t in range(num_frames):
        expansions: dict[_Query, _Expansion] = {}
        # nearly all survivors of the previous frame will be expanded: query them at once, equal queries once
        queries = list(dict.fromkeys(_Query(node.context, node.state, t) for _, node in open_.values()))
        done: dict[int, tuple[float, _Node]] = {}
        likelier: list[int] = []
        for _ in range(MAX_EXPANSIONS * beam_size):
            log_prob, node = open_.pop(max(open_, key=lambda key: open_[key][0]))
            query = _Query(node.context, node.state, t)
            if query not in expansions:
                if not queries:
                    queries = [query]
                answers = yield queries
                assert answers is not None
                expansions.update(zip(queries, answers, strict=True))
                queries = []
            blank, symbols = expansions[query]
            _add(done, node, log_prob + blank)
            for symbol, score, symbol_log_prob, state in symbols:
                if symbol != blank_id:
                    _add(open_, node.extended(symbol, t, symbol_log_prob, state), log_prob + score)
            threshold = max((log_prob for log_prob, _ in open_.values()), default=-math.inf)
            likelier = [key for key, (log_prob, _) in done.items() if log_prob > threshold]
            if len(likelier) >= beam_size or not open_:
                break
        survivors = likelier if len(likelier) >= beam_size else list(done)
        survivors.sort(key=lambda key: -done[key][0])
        open_ = {key: done[key] for key in survivors[:beam_size]}
    return list(open_.values())


def _add(hypotheses: dict[int, tuple[float, _Node]], node: _Node, log_prob: float) -> None:
    """Add a hypothesis, or merge its probability into an equal one."""
    equal = hypotheses.get(node.key)
    if equal is not None:
        high, low = max(equal[0], log_prob), min(equal[0], log_prob)
        log_prob = high + math.log1p(math.exp(low - high)) if low > -math.inf else high
        node = equal[1]
    hypotheses[node.key] = (log_prob, node)


def _with_final_scores(hypotheses: _Beam, scorer: Scorer, frames: Array) -> _Beam:
    """Add the scorer's scores at the end of the utterance."""
    scores = to_numpy(scorer.finish(like(np.array([node.state for _, node in hypotheses]), frames))).tolist()
    return [(log_prob + score, node) for (log_prob, node), score in zip(hypotheses, scores, strict=True)]


def _hypothesis(node: _Node, score: float) -> Hypothesis:
    """Read a hypothesis back along its nodes."""
    nodes: list[_Node] = []
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    nodes.reverse()
    return Hypothesis(
        tokens=tuple(node.context[-1] for node in nodes),
        frames=tuple(node.t for node in nodes),
        log_probs=tuple(node.log_prob for node in nodes),
        score=score,
    )
