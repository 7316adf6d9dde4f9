"""Graves' beam search in arrays, for devices that must not be waited for; `beam_walks` does the same on a CPU.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam, C tokens of context, W integers of a
scorer's state, R utterances that are still running, P places for hypotheses, S continuations of a hypothesis,
F = 6 + C + W numbers of a hypothesis.

Each utterance walks at its own pace: in a round, every one expands one hypothesis, on whichever frame it is. As a frame
takes K rounds or more, nobody has to look before K rounds a frame are over which utterances have come to their ends.
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
"""For open hypotheses, and for those done with a frame, times K: the least likely beyond them are forgotten. With 4 and
K = 2, icefall's golden hypotheses were not all found; with 8 they were."""

# columns of the numbers of a hypothesis; behind them its context and the scorer's state
_HASH, _NUM_TOKENS, _RECORD, _PARENT, _SYMBOL, _FRAME, _CONTEXT = range(7)
_ROOT, _NEW = -1, -2
"""In place of the number of a record: of who has said nothing; of who has not been expanded yet."""


def search_in_arrays(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    beam_size: int,
    options: LogitOptions,
    scorer: Scorer | None,
) -> list[list[Hypothesis]]:
    """Hypotheses of each utterance, in no order; arguments as for `beam_search`."""
    search = _Search.start(model, encoder_out, encoder_out_lens, beam_size, options, scorer)
    while frames_left := search.retire():
        search.expand(frames_left * beam_size)
    return search.finish()


@dataclass
class _Hypotheses:
    """P places for hypotheses of each of R utterances, the likeliest first."""

    log_probs: Array
    """(R, P), float64; -inf where nobody is."""
    numbers: Array
    """(R, P, F), int64."""
    own: Array
    """(R, P), float32: log-probability of the last symbol."""

    def of(self, rows: Array) -> _Hypotheses:
        """Those of some utterances."""
        return _Hypotheses(self.log_probs[rows], self.numbers[rows], self.own[rows])

    def among(self, places: slice) -> _Hypotheses:
        """Those in some places."""
        return _Hypotheses(self.log_probs[:, places], self.numbers[:, places], self.own[:, places])

    def joined_by(self, others: _Hypotheses, num_places: int) -> _Hypotheses:
        """With others, all different from one another: who says the same as one here adds its probability to it."""
        xp = namespace(self.log_probs)
        mine, theirs = self.numbers[:, :, None], others.numbers[:, None]
        is_same = (mine[..., _HASH] == theirs[..., _HASH]) & (mine[..., _NUM_TOKENS] == theirs[..., _NUM_TOKENS])
        is_same &= (self.log_probs > -xp.inf)[:, :, None]
        added = xp.max(xp.where(is_same, others.log_probs[:, None], -xp.inf), axis=2)
        new = xp.where(xp.any(is_same, axis=1), -xp.inf, others.log_probs)
        log_probs = xp.concat([xp.logaddexp(self.log_probs, added), new], axis=1)
        log_probs, places = top(log_probs, num_places)
        numbers, own = (
            gather(xp.concat([here, there], axis=1), places)
            for here, there in ((self.numbers, others.numbers), (self.own, others.own))
        )
        return _Hypotheses(log_probs, numbers, own)

    def instead_of(self, others: _Hypotheses, where: Array) -> _Hypotheses:
        """These for the utterances where (R,) is true, the others for the rest."""
        xp = namespace(where)
        return _Hypotheses(
            xp.where(where[:, None], self.log_probs, others.log_probs),
            xp.where(where[:, None, None], self.numbers, others.numbers),
            xp.where(where[:, None], self.own, others.own),
        )


@dataclass
class _Search:
    """The utterances that are still running."""

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
    """(R,): where in `frames` each utterance begins."""
    lens: Array
    """(R,)."""
    t: Array
    """(R,): the frame where each is; its length where it has ended."""
    num_expanded: Array
    """(R,): on this frame."""
    open: _Hypotheses
    done: _Hypotheses
    survivors: list[tuple[np.ndarray, np.ndarray]]
    """Of each utterance that has ended: log-probabilities (K,) and numbers (K, F)."""
    num_rounds: int = 0
    said: list[Array] = field(default_factory=list)
    """What was expanded, so many rounds each: (rounds, N, 3), int32: the record that it continues, symbol, frame."""
    sure: list[Array] = field(default_factory=list)
    """(rounds, N): the symbol's log-probability."""

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
        utterances, nobody = xp.arange(N, dtype=xp.int64, device=device), [-xp.inf] * (PLACES * K - 1)
        numbers = xp.zeros((N, _CONTEXT + model.context_size), dtype=xp.int64, device=device)
        numbers[:, _RECORD], numbers[:, _CONTEXT:] = _ROOT, model.blank_id
        if scorer is not None:
            numbers = xp.concat([numbers, scorer.start(utterances)], axis=1)
        numbers = xp.broadcast_to(numbers[:, None], (N, PLACES * K, numbers.shape[1]))
        own = xp.zeros((N, PLACES * K), dtype=xp.float32, device=device)
        root, empty = (
            xp.broadcast_to(xp.asarray([first, *nobody], dtype=xp.float64, device=device), own.shape)
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
            open=_Hypotheses(root, numbers, own),
            done=_Hypotheses(empty, numbers, own),
            survivors=[(np.zeros(0), np.zeros((0, 0), np.int64))] * N,
        )

    def retire(self) -> int:
        """Put aside the utterances that have ended; how many frames the last of the others still has, 0 for no other.

        The one place where the search waits for the device.
        """
        left = to_numpy(self.lens - self.t)
        ended, running = (like(where.nonzero()[0], self.frames) for where in (left <= 0, left > 0))
        last = self.open.of(ended).among(slice(self.size))
        scores = last.log_probs
        if self.scorer is not None:
            states = last.numbers[:, :, _CONTEXT + self.model.context_size :]
            flat = states.reshape(states.shape[0] * states.shape[1], states.shape[2])
            scores = scores + self.scorer.finish(flat).reshape(scores.shape)
        for n, *survivors in zip(*map(to_numpy, (self.utterances[ended], scores, last.numbers)), strict=True):
            self.survivors[n] = tuple(survivors)
        for name in ("utterances", "first_frames", "lens", "t", "num_expanded"):
            setattr(self, name, getattr(self, name)[running])
        self.open, self.done = self.open.of(running), self.done.of(running)
        return int(left.max(initial=0))

    def expand(self, num_rounds: int) -> None:
        """So many rounds. In each, the likeliest open hypothesis of every utterance is expanded."""
        xp, device, N = namespace(self.frames), device_of(self.frames), len(self.survivors)
        said = xp.zeros((num_rounds, N, 3), dtype=xp.int32, device=device)
        sure = xp.zeros((num_rounds, N), dtype=xp.float32, device=device)
        for i in range(num_rounds):
            best = self.open.among(slice(1))
            numbers = xp.asarray(best.numbers, copy=True)
            record = numbers[:, :, _RECORD]
            numbers[:, :, _RECORD] = xp.where(record == _NEW, self.num_rounds, record)
            said[i, self.utterances] = xp.astype(numbers[:, 0, _PARENT:_CONTEXT], xp.int32)
            sure[i, self.utterances] = xp.astype(best.own[:, 0], xp.float32)
            self._expand(_Hypotheses(best.log_probs, numbers, best.own))
            self.num_rounds += 1
        self.said.append(said)
        self.sure.append(sure)

    def _expand(self, best: _Hypotheses) -> None:
        xp, P = namespace(self.frames), self.open.log_probs.shape[1]
        is_running = self.t < self.lens
        t = xp.where(is_running, self.t, self.lens - 1)
        blank, continuations = self._continuations(best, t)
        open_ = self.open.among(slice(1, None)).joined_by(continuations, P)
        done = self.done.joined_by(_Hypotheses(best.log_probs + blank[:, None], best.numbers, best.own), P)
        num_expanded = self.num_expanded + 1
        is_over = xp.count_nonzero(done.log_probs > open_.log_probs[:, :1], axis=1) >= self.size
        is_over |= (num_expanded >= MAX_EXPANSIONS * self.size) | (open_.log_probs[:, 0] == -xp.inf)
        kept = xp.where(xp.arange(P, device=device_of(done.log_probs)) < self.size, done.log_probs, -xp.inf)
        open_ = _Hypotheses(kept, done.numbers, done.own).instead_of(open_, is_over)
        self.open = open_.instead_of(self.open, is_running)
        self.done = _Hypotheses(xp.where(is_over[:, None], -xp.inf, done.log_probs), done.numbers, done.own)
        self.num_expanded = xp.where(is_over, 0, num_expanded)
        self.t = self.t + xp.astype(is_over & is_running, xp.int64)

    def _continuations(self, best: _Hypotheses, t: Array) -> tuple[Array, _Hypotheses]:
        """Log-probability of a blank (R,), and the best symbols (R, S)."""
        xp, C, blank = namespace(self.frames), self.model.context_size, self.model.blank_id
        numbers = best.numbers[:, 0]
        context, state = numbers[:, _CONTEXT : _CONTEXT + C], numbers[:, _CONTEXT + C :]
        logits = self.model.join(self.frames[self.first_frames + t], self.model.predict(context))
        logits = self.options.adjust(logits, blank)
        normalizer = log_sum_exp(logits)[:, None]
        S = min(self.size + 1, logits.shape[1])
        symbols, more, own = best_symbols(logits, normalizer, S, state, self.scorer)
        every = xp.broadcast_to(numbers[:, None], (len(numbers), S, numbers.shape[1]))
        columns = [
            extended_hash(every[..., _HASH], symbols),
            every[..., _NUM_TOKENS] + 1,
            xp.full_like(symbols, _NEW),
            every[..., _RECORD],
            symbols,
            xp.broadcast_to(t[:, None], symbols.shape),
        ]
        parts = [xp.stack(columns, axis=2), every[..., _CONTEXT + 1 : _CONTEXT + C], symbols[:, :, None]]
        if self.scorer is not None:
            after = self.scorer.advance(xp.repeat(state, S, axis=0), symbols.reshape(-1))
            parts.append(after.reshape(*symbols.shape, state.shape[1]))
        log_probs = xp.where(symbols == blank, -xp.inf, best.log_probs + more)
        return logits[:, blank] - normalizer[:, 0], _Hypotheses(log_probs, xp.concat(parts, axis=2), own)

    def finish(self) -> list[list[Hypothesis]]:
        """The hypotheses of each utterance, read back along the records."""
        N = len(self.survivors)
        said = np.concatenate([np.zeros((0, N, 3), np.int32), *map(to_numpy, self.said)])
        sure = np.concatenate([np.zeros((0, N), np.float32), *map(to_numpy, self.sure)])
        return [
            [
                _hypothesis(record, said[:, n], sure[:, n], score)
                for record, score in zip(numbers[:, _RECORD].tolist(), scores.tolist(), strict=True)
                if score > -np.inf
            ]
            for n, (scores, numbers) in enumerate(self.survivors)
        ]


def _hypothesis(record: int, said: np.ndarray, sure: np.ndarray, score: float) -> Hypothesis:
    records = []
    while record != _ROOT:
        records.append(record)
        record = int(said[record, 0])
    records.reverse()
    tokens, frames = said[records, 1:].T.tolist() if records else ((), ())
    return Hypothesis(tuple(tokens), tuple(frames), tuple(sure[records].tolist()), score)
