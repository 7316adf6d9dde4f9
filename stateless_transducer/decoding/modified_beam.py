"""Modified beam search: one symbol a frame at most, equal hypotheses merged; all utterances at once, in arrays.

Letters: N utterances, T encoder frames, D joiner width, V vocabulary, K hypotheses a beam, C tokens of context,
W integers of a scorer's state, R utterances that are still running, B continuations of a hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stateless_transducer.decoding.arrays import (
    Array,
    device_of,
    is_on_host,
    log_sum_exp,
    namespace,
    to_numpy,
    top,
    without_gradients,
)
from stateless_transducer.decoding.fusion import Scorer, best_symbols
from stateless_transducer.decoding.hypothesis import LOST, Hypothesis, extended_hash, rank
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.options import PLAIN, LogitOptions, Schedule, check_beam_size
from stateless_transducer.decoding.protocols import TransducerSteps


@without_gradients
def modified_beam_search(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    *,
    beam_size: int = 4,
    length_norm: float = 1.0,
    options: LogitOptions = PLAIN,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """The likeliest token sequences per token among the ``beam_size`` that survive each frame.

    On each frame, every hypothesis is continued by a blank or one symbol; the best ``beam_size`` continuations stay,
    and those that say the same are merged, their probabilities summed. At the end they are ranked, see `rank`.

    Besides the model's own work, memory is that of K hypotheses' contexts and of three numbers a frame and hypothesis:
    nothing is copied as hypotheses grow. On a GPU nothing waits for the device from the first frame to the last.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        beam_size: K.
        length_norm: see `rank`.
        options: adjustments of the logits.
        scorer: what else counts: hotwords, a language model.

    Returns:
        For each utterance its hypotheses, 1 to K, best first; their score is the log-probability of all their paths
        that the beam kept, and what the scorer added. An empty one with score NaN for an utterance for which the
        model gives no numbers.

    Raises:
        ValueError: types, shapes, lens or ``beam_size`` cannot be.
    """
    check_beam_size(beam_size)
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    schedule = Schedule.of(encoder_out_lens)
    beam = _Beam.start(model, encoder_out, len(schedule.running), beam_size, 0 if scorer is None else scorer.state_size)
    if scorer is not None:
        beam.states[:] = scorer.start(schedule.order)[:, None]
    for t, running in enumerate(schedule.running):
        rows = beam.distinct_rows(running)
        logits = model.join(encoder_out[schedule.order[rows.utterances], t], model.predict(rows.contexts))
        logits = options.adjust(logits, model.blank_id)
        normalizer = log_sum_exp(logits)[:, None]
        # a beam's best continuations are among the best of each of its hypotheses
        symbols, more, own = best_symbols(logits, normalizer, min(beam_size, logits.shape[1]), rows.states, scorer)
        index = rows.of_hypothesis
        beam.advance(t, more[index], symbols[index], own[index], scorer)
    if scorer is not None:
        beam.log_probs += scorer.finish(beam.states.reshape(-1, scorer.state_size)).reshape(beam.log_probs.shape)
    return schedule.unsort(beam.finish(schedule.lens, schedule.running, length_norm))


class _Rows(NamedTuple):
    """Questions to the model, Q of them, and which of the answers is for which hypothesis."""

    utterances: Array
    """(Q,)."""
    contexts: Array
    """(Q, C)."""
    states: Array
    """(Q, W), of the scorer."""
    of_hypothesis: Array
    """(R, K), 0..Q-1."""


@dataclass
class _Beam:
    """K hypotheses of each utterance as arrays; a dead one has log-probability -inf."""

    blank_id: int
    log_probs: Array
    """(N, K), of each hypothesis less `offset`; small numbers lose fewer digits."""
    offset: Array
    """(N,), float64."""
    contexts: Array
    """(N, K, C), int64."""
    hashes: Array
    """(N, K), int64: of the whole token sequence, to know equal ones."""
    num_tokens: Array
    """(N, K), int64."""
    states: Array
    """(N, K, W), int64: of the scorer."""
    parents: Array
    """(T, N, K), int32: which hypothesis each came from."""
    symbols: Array
    """(T, N, K), int32: what it said, blank or token."""
    symbol_log_probs: Array
    """(T, N, K)."""
    every_row: Array
    """(N, 1): 0..N-1."""
    every_place: Array
    """(K,): 0..K-1."""

    @classmethod
    def start(cls, model: TransducerSteps, encoder_out: Array, T: int, K: int, W: int) -> _Beam:
        xp, device, N = namespace(encoder_out), device_of(encoder_out), len(encoder_out)
        log_probs = xp.full((N, K), -xp.inf, dtype=xp.float32, device=device)
        log_probs[:, 0] = 0
        return cls(
            blank_id=model.blank_id,
            log_probs=log_probs,
            offset=xp.zeros(N, dtype=xp.float64, device=device),
            contexts=xp.full((N, K, model.context_size), model.blank_id, dtype=xp.int64, device=device),
            hashes=xp.zeros((N, K), dtype=xp.int64, device=device),
            num_tokens=xp.zeros((N, K), dtype=xp.int64, device=device),
            states=xp.zeros((N, K, W), dtype=xp.int64, device=device),
            parents=xp.zeros((T, N, K), dtype=xp.int32, device=device),
            symbols=xp.full((T, N, K), model.blank_id, dtype=xp.int32, device=device),
            symbol_log_probs=xp.zeros((T, N, K), dtype=xp.float32, device=device),
            every_row=xp.arange(N, device=device)[:, None],
            every_place=xp.arange(K, device=device),
        )

    def distinct_rows(self, R: int) -> _Rows:
        """What the model must be asked for the first R utterances.

        Hypotheses with the same context get the same answer: on a CPU, where the joiner takes most of the time, each is
        asked for once, and dead hypotheses not at all. On a GPU, finding them would have to wait for the device.
        """
        xp, K = namespace(self.contexts), self.every_place.shape[0]
        contexts, states = self.contexts[:R], self.states[:R]
        flat = self.every_row[:R] * K + self.every_place
        every_context, every_state = contexts.reshape(R * K, -1), states.reshape(R * K, states.shape[2])
        if not is_on_host(contexts):
            utterances = (self.every_row[:R] + 0 * self.every_place).reshape(-1)
            return _Rows(utterances, every_context, every_state, flat)
        is_same = xp.all(contexts[:, :, None] == contexts[:, None], axis=-1)
        if states.shape[2]:
            is_same &= xp.all(states[:, :, None] == states[:, None], axis=-1)
        # a dead hypothesis asks as the first of its beam, which is always alive
        is_alive = self.log_probs[:R] > -xp.inf
        asks_as = xp.where(is_alive, _first(is_same & is_alive[:, None], self.every_place), 0) + self.every_row[:R] * K
        is_asked = (asks_as == flat).reshape(-1)
        asked = xp.nonzero(is_asked)[0]
        number = is_asked.cumsum(0) - 1
        return _Rows(asked // K, every_context[asked], every_state[asked], number[asks_as])

    def advance(self, t: int, more: Array, symbols: Array, own: Array, scorer: Scorer | None) -> None:
        """One frame on for the first R utterances.

        Args:
            t: frame.
            more: (R, K, B), what the best continuations of each hypothesis add.
            symbols: (R, K, B), their symbols.
            own: (R, K, B), their log-probabilities in the model alone.
            scorer: advances the states.
        """
        xp, (R, K, B) = namespace(more), more.shape
        rows = self.every_row[:R]
        best, where = top((self.log_probs[:R, :, None] + more).reshape(R, K * B), K)
        parent, symbol = where // B, symbols.reshape(R, K * B)[rows, where]
        self.parents[t, :R], self.symbols[t, :R] = parent, symbol
        self.symbol_log_probs[t, :R] = own.reshape(R, K * B)[rows, where]

        says = symbol != self.blank_id
        hashes, num_tokens = self.hashes[rows, parent], self.num_tokens[rows, parent] + says
        hashes = xp.where(says, extended_hash(hashes, symbol), hashes)
        contexts = self.contexts[rows, parent]
        shifted = xp.concat([contexts[:, :, 1:], symbol[:, :, None]], axis=2)
        self.contexts[:R] = xp.where(says[:, :, None], shifted, contexts)
        if scorer is not None:
            self.states[:R] = _advanced(scorer, self.states[rows, parent], symbol, says)

        best = _merge(best, hashes, num_tokens, self.every_place)
        largest = xp.max(best, axis=1, keepdims=True)
        self.offset[:R] += largest[:, 0]
        # where the model gives no numbers, nothing is left
        with np.errstate(invalid="ignore"):
            self.log_probs[:R] = best - largest
        self.hashes[:R], self.num_tokens[:R] = hashes, num_tokens

    def finish(self, lens: np.ndarray, running: list[int], length_norm: float) -> list[list[Hypothesis]]:
        """Ranked hypotheses of each utterance, read back along the parents."""
        totals = to_numpy(self.log_probs).astype(np.float64) + to_numpy(self.offset)[:, None]
        num_live = np.isfinite(totals).sum(1)
        order = np.argsort(-rank(totals, to_numpy(self.num_tokens), self.contexts.shape[2], length_norm), kind="stable")
        parents, symbols, log_probs = (to_numpy(a) for a in (self.parents, self.symbols, self.symbol_log_probs))
        # in place: column k of an utterance becomes what its k-th best hypothesis said
        at, rows = order.copy(), np.arange(len(order))[:, None]
        for t in range(len(running) - 1, -1, -1):
            own, R = at[: running[t]], running[t]
            symbols[t, :R], log_probs[t, :R] = symbols[t, rows[:R], own], log_probs[t, rows[:R], own]
            at[:R] = parents[t, rows[:R], own]
        results = []
        for n, num_frames in enumerate(lens.tolist()):
            said = symbols[:num_frames, n] != self.blank_id
            results.append(
                [
                    _hypothesis(said[:, k].nonzero()[0], symbols[:, n, k], log_probs[:, n, k], totals[n, order[n, k]])
                    for k in range(num_live[n])
                ]
                or [LOST]
            )
        return results


def _first(is_same: Array, every_place: Array) -> Array:
    """(R, K, K) -> (R, K): the first place that is the same as each; K where none is."""
    xp = namespace(is_same)
    return xp.min(xp.where(is_same, every_place, every_place.shape[0]), axis=2)


def _advanced(scorer: Scorer, states: Array, symbol: Array, says: Array) -> Array:
    """States (R, K, W) behind the symbols (R, K) of the hypotheses that say one."""
    xp = namespace(states)
    if is_on_host(states):
        speaking = xp.nonzero(says)
        if len(speaking[0]):
            states[speaking] = scorer.advance(states[speaking], symbol[speaking])
        return states
    after = scorer.advance(states.reshape(-1, states.shape[2]), symbol.reshape(-1)).reshape(states.shape)
    return xp.where(says[:, :, None], after, states)


def _merge(log_probs: Array, hashes: Array, num_tokens: Array, every_place: Array) -> Array:
    """(R, K) -> (R, K): equal hypotheses give their probability to the first of them, and die.

    The first is the likeliest, and so tells the times.
    """
    xp = namespace(log_probs)
    is_same = (hashes[:, :, None] == hashes[:, None]) & (num_tokens[:, :, None] == num_tokens[:, None])
    is_same &= (log_probs > -xp.inf)[:, None]
    first = _first(is_same, every_place)  # K for a dead one
    if is_on_host(first) and bool(xp.all(first >= every_place)):
        return log_probs
    return log_sum_exp(xp.where(first[:, None] == every_place[:, None], log_probs[:, None], -xp.inf))


def _hypothesis(frames: np.ndarray, symbols: np.ndarray, log_probs: np.ndarray, score: float) -> Hypothesis:
    return Hypothesis(
        tuple(symbols[frames].tolist()), tuple(frames.tolist()), tuple(log_probs[frames].tolist()), float(score)
    )
