"""Graves' beam search in arrays, for devices where waiting is expensive; `beam_walks` is the search for a CPU.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam, C tokens of context, W integers of a
scorer's state, R utterances still running, P places for hypotheses, S continuations of a hypothesis,
F = 6 + C + W numbers of a hypothesis.

Each utterance is on a frame of its own. In a round, each expands one hypothesis. A frame takes at least K rounds, so
the host checks for finished utterances only after K rounds per remaining frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stateless_transducer.decoding.arrays import (
    Array,
    device_of,
    gather,
    like,
    log_sum_exp,
    namespace,
    to_numpy,
    top,
)
from stateless_transducer.decoding.fusion import Scorer, best_symbols
from stateless_transducer.decoding.hypothesis import MAX_EXPANSIONS, Hypothesis, extended_hash
from stateless_transducer.decoding.options import LogitOptions
from stateless_transducer.decoding.protocols import TransducerSteps

PLACES = 16
"""Places for open hypotheses, and for those done with a frame, in multiples of K; the least likely ones beyond them are
dropped. With 4 and K = 2, the search missed some of icefall's golden hypotheses; with 8 it found all."""

# columns of a hypothesis's numbers, before its context and the scorer's state
_HASH, _NUM_TOKENS, _RECORD, _PARENT, _SYMBOL, _FRAME, _CONTEXT = range(7)
_ROOT, _NEW = -1, -2
"""Record numbers of a hypothesis without tokens, and of one that has not been expanded yet."""


def search_in_arrays(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    beam_size: int,
    options: LogitOptions,
    scorer: Scorer | None,
) -> list[list[Hypothesis]]:
    """Return the unordered hypotheses of each utterance. See `beam_search` for the arguments."""
    search = _Search.start(model, encoder_out, encoder_out_lens, beam_size, options, scorer)
    while frames_left := search.retire():
        search.expand(frames_left * beam_size)
    return search.finish()


@dataclass
class _Hypotheses:
    """P hypotheses of each of R utterances, the most likely first."""

    log_probs: Array
    """(R, P), float64; -inf for an empty place."""
    numbers: Array
    """(R, P, F), int64."""
    symbol_log_probs: Array
    """(R, P), float32: log-probability of the last symbol."""

    def rows(self, rows: Array) -> _Hypotheses:
        """Select utterances."""
        return _Hypotheses(self.log_probs[rows], self.numbers[rows], self.symbol_log_probs[rows])

    def places(self, places: slice) -> _Hypotheses:
        """Select places."""
        return _Hypotheses(self.log_probs[:, places], self.numbers[:, places], self.symbol_log_probs[:, places])

    def merged(self, new: _Hypotheses, num_places: int) -> _Hypotheses:
        """Add hypotheses that differ from one another; one equal to a hypothesis here adds its probability to it."""
        xp = namespace(self.log_probs)
        left, right = self.numbers[:, :, None], new.numbers[:, None]
        is_same = (left[..., _HASH] == right[..., _HASH]) & (left[..., _NUM_TOKENS] == right[..., _NUM_TOKENS])
        is_same &= (self.log_probs > -xp.inf)[:, :, None]
        added = xp.max(xp.where(is_same, new.log_probs[:, None], -xp.inf), axis=2)
        unmerged = xp.where(xp.any(is_same, axis=1), -xp.inf, new.log_probs)
        log_probs = xp.concat([xp.logaddexp(self.log_probs, added), unmerged], axis=1)
        log_probs, places = top(log_probs, num_places)
        numbers = xp.concat([self.numbers, new.numbers], axis=1)
        symbol_log_probs = xp.concat([self.symbol_log_probs, new.symbol_log_probs], axis=1)
        return _Hypotheses(log_probs, gather(numbers, places), gather(symbol_log_probs, places))


def _where(condition: Array, first: _Hypotheses, second: _Hypotheses) -> _Hypotheses:
    """Select the first hypotheses for the utterances where the condition, (R,), is true, and the second elsewhere."""
    xp = namespace(condition)
    return _Hypotheses(
        xp.where(condition[:, None], first.log_probs, second.log_probs),
        xp.where(condition[:, None, None], first.numbers, second.numbers),
        xp.where(condition[:, None], first.symbol_log_probs, second.symbol_log_probs),
    )


@dataclass
class _Search:
    """State of the search over the running utterances."""

    model: TransducerSteps
    frames: Array
    """(N * T, D)."""
    options: LogitOptions
    scorer: Scorer | None
    size: int
    """K."""
    utterances: Array
    """(R,)."""
    first_frames: Array
    """(R,): row of each utterance's first frame in `frames`."""
    lens: Array
    """(R,)."""
    t: Array
    """(R,): current frame; the utterance's length once it has ended."""
    num_expanded: Array
    """(R,): expansions on the current frame."""
    open: _Hypotheses
    done: _Hypotheses
    survivors: list[tuple[np.ndarray, np.ndarray]]
    """Log-probabilities (K,) and numbers (K, F) of each finished utterance."""
    num_rounds: int = 0
    records: list[Array] = field(default_factory=list)
    """Records of the expanded hypotheses, (rounds, N, 3), int32: parent's record, symbol, frame."""
    record_log_probs: list[Array] = field(default_factory=list)
    """(rounds, N): log-probability of each record's symbol."""

    @classmethod
    def start(
        cls,
        model: TransducerSteps,
        encoder_out: Array,
        lens: Array,
        K: int,
        options: LogitOptions,
        scorer: Scorer | None,
    ) -> _Search:
        xp, device, (N, T, D) = namespace(encoder_out), device_of(encoder_out), encoder_out.shape
        utterances, empty_places = xp.arange(N, dtype=xp.int64, device=device), [-xp.inf] * (PLACES * K - 1)
        numbers = xp.zeros((N, _CONTEXT + model.context_size), dtype=xp.int64, device=device)
        numbers[:, _RECORD], numbers[:, _CONTEXT:] = _ROOT, model.blank_id
        if scorer is not None:
            numbers = xp.concat([numbers, scorer.start(utterances)], axis=1)
        numbers = xp.broadcast_to(numbers[:, None], (N, PLACES * K, numbers.shape[1]))
        symbol_log_probs = xp.zeros((N, PLACES * K), dtype=xp.float32, device=device)
        root, empty = (
            xp.broadcast_to(xp.asarray([first, *empty_places], dtype=xp.float64, device=device), symbol_log_probs.shape)
            for first in (0.0, -xp.inf)
        )
        return cls(
            model=model,
            frames=encoder_out.reshape(N * T, D),
            options=options,
            scorer=scorer,
            size=K,
            utterances=utterances,
            first_frames=utterances * T,
            lens=xp.astype(lens, xp.int64),
            t=xp.zeros_like(utterances),
            num_expanded=xp.zeros_like(utterances),
            open=_Hypotheses(root, numbers, symbol_log_probs),
            done=_Hypotheses(empty, numbers, symbol_log_probs),
            survivors=[(np.zeros(0), np.zeros((0, 0), np.int64))] * N,
        )

    def retire(self) -> int:
        """Remove finished utterances, and return the largest number of frames that a running one has left.

        This is the one place where the search waits for the device.
        """
        left = to_numpy(self.lens - self.t)
        ended, running = (like(where.nonzero()[0], self.frames) for where in (left <= 0, left > 0))
        final = self.open.rows(ended).places(slice(self.size))
        scores = final.log_probs
        if self.scorer is not None:
            states = final.numbers[:, :, _CONTEXT + self.model.context_size :]
            flat = states.reshape(states.shape[0] * states.shape[1], states.shape[2])
            scores = scores + self.scorer.finish(flat).reshape(scores.shape)
        columns = (to_numpy(array) for array in (self.utterances[ended], scores, final.numbers))
        for n, utterance_scores, numbers in zip(*columns, strict=True):
            self.survivors[n] = (utterance_scores, numbers)
        self.utterances, self.first_frames = self.utterances[running], self.first_frames[running]
        self.lens, self.t = self.lens[running], self.t[running]
        self.num_expanded = self.num_expanded[running]
        self.open, self.done = self.open.rows(running), self.done.rows(running)
        return int(left.max(initial=0))

    def expand(self, num_rounds: int) -> None:
        """Run rounds: in each, expand the most likely open hypothesis of every utterance."""
        xp, device, N = namespace(self.frames), device_of(self.frames), len(self.survivors)
        records = xp.zeros((num_rounds, N, 3), dtype=xp.int32, device=device)
        record_log_probs = xp.zeros((num_rounds, N), dtype=xp.float32, device=device)
        for i in range(num_rounds):
            best = self.open.places(slice(1))
            numbers = xp.asarray(best.numbers, copy=True)
            record = numbers[:, :, _RECORD]
            numbers[:, :, _RECORD] = xp.where(record == _NEW, self.num_rounds, record)
            records[i, self.utterances] = xp.astype(numbers[:, 0, _PARENT:_CONTEXT], xp.int32)
            record_log_probs[i, self.utterances] = xp.astype(best.symbol_log_probs[:, 0], xp.float32)
            self._run_round(_Hypotheses(best.log_probs, numbers, best.symbol_log_probs))
            self.num_rounds += 1
        self.records.append(records)
        self.record_log_probs.append(record_log_probs)

    def _run_round(self, best: _Hypotheses) -> None:
        xp, P = namespace(self.frames), self.open.log_probs.shape[1]
        is_running = self.t < self.lens
        t = xp.where(is_running, self.t, self.lens - 1)
        blank, continuations = self._continuations(best, t)
        open_ = self.open.places(slice(1, None)).merged(continuations, P)
        after_blank = _Hypotheses(best.log_probs + blank[:, None], best.numbers, best.symbol_log_probs)
        done = self.done.merged(after_blank, P)
        num_expanded = self.num_expanded + 1
        is_over = xp.count_nonzero(done.log_probs > open_.log_probs[:, :1], axis=1) >= self.size
        is_over |= (num_expanded >= MAX_EXPANSIONS * self.size) | (open_.log_probs[:, 0] == -xp.inf)
        is_survivor = xp.arange(P, device=device_of(done.log_probs)) < self.size
        survivors = _Hypotheses(xp.where(is_survivor, done.log_probs, -xp.inf), done.numbers, done.symbol_log_probs)
        self.open = _where(is_running, _where(is_over, survivors, open_), self.open)
        remaining = xp.where(is_over[:, None], -xp.inf, done.log_probs)
        self.done = _Hypotheses(remaining, done.numbers, done.symbol_log_probs)
        self.num_expanded = xp.where(is_over, 0, num_expanded)
        self.t = self.t + xp.astype(is_over & is_running, xp.int64)

    def _continuations(self, best: _Hypotheses, t: Array) -> tuple[Array, _Hypotheses]:
        """Return the log-probability of a blank, (R,), and the continuations by the best symbols, (R, S)."""
        xp, C, blank = namespace(self.frames), self.model.context_size, self.model.blank_id
        numbers = best.numbers[:, 0]
        context, state = numbers[:, _CONTEXT : _CONTEXT + C], numbers[:, _CONTEXT + C :]
        logits = self.model.join(self.frames[self.first_frames + t], self.model.predict(context))
        logits = self.options.adjust(logits, blank)
        normalizer = log_sum_exp(logits)[:, None]
        S = min(self.size + 1, logits.shape[1])
        symbols, scores, symbol_log_probs = best_symbols(logits, normalizer, S, state, self.scorer)
        parents = xp.broadcast_to(numbers[:, None], (len(numbers), S, numbers.shape[1]))
        columns = [
            extended_hash(parents[..., _HASH], symbols),
            parents[..., _NUM_TOKENS] + 1,
            xp.full_like(symbols, _NEW),
            parents[..., _RECORD],
            symbols,
            xp.broadcast_to(t[:, None], symbols.shape),
        ]
        parts = [xp.stack(columns, axis=2), parents[..., _CONTEXT + 1 : _CONTEXT + C], symbols[:, :, None]]
        if self.scorer is not None:
            after = self.scorer.advance(xp.repeat(state, S, axis=0), symbols.reshape(-1))
            parts.append(after.reshape(*symbols.shape, state.shape[1]))
        log_probs = xp.where(symbols == blank, -xp.inf, best.log_probs + scores)
        return logits[:, blank] - normalizer[:, 0], _Hypotheses(log_probs, xp.concat(parts, axis=2), symbol_log_probs)

    def finish(self) -> list[list[Hypothesis]]:
        """Read the hypotheses of each utterance back along the records."""
        N = len(self.survivors)
        records = np.concatenate([np.zeros((0, N, 3), np.int32), *map(to_numpy, self.records)])
        log_probs = np.concatenate([np.zeros((0, N), np.float32), *map(to_numpy, self.record_log_probs)])
        return [
            [
                _hypothesis(record, records[:, n], log_probs[:, n], score)
                for record, score in zip(numbers[:, _RECORD].tolist(), scores.tolist(), strict=True)
                if score > -np.inf
            ]
            for n, (scores, numbers) in enumerate(self.survivors)
        ]


def _hypothesis(last: int, records: np.ndarray, log_probs: np.ndarray, score: float) -> Hypothesis:
    """Read the hypothesis that ends in a record, from the records (rounds, 3) of its utterance."""
    path: list[int] = []
    record = last
    while record != _ROOT:
        path.append(record)
        record = int(records[record, 0])
    path.reverse()
    return Hypothesis(
        tokens=tuple(records[path, 1].tolist()),
        frames=tuple(records[path, 2].tolist()),
        log_probs=tuple(log_probs[path].tolist()),
        score=score,
    )
