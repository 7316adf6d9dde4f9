"""Modified beam search: at most one symbol per frame, equal hypotheses merged; all utterances at once, in arrays.

Letters: N utterances, T encoder frames, D joiner width, V vocabulary, K hypotheses a beam, C tokens of context,
W integers of a scorer's state, R utterances still running, B continuations of a hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """Return the most likely token sequences of each utterance, ranked by log-probability per token.

    On each frame, every hypothesis is continued by a blank or one symbol. The best ``beam_size`` continuations survive;
    those with equal tokens are merged, and their probabilities added. The final hypotheses are ranked, see `rank`.

    Nothing is copied as hypotheses grow: memory, apart from the model's, is that of K contexts and of three numbers per
    frame and hypothesis. On a GPU, nothing waits for the device between the first frame and the last.

    Args:
        model: decoder and joiner.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        beam_size: K.
        length_norm: see `rank`.
        options: adjustments of the logits.
        scorer: hotwords or language models.

    Returns:
        The hypotheses of each utterance, 1 to K, best first. The score is the log-probability of all paths in the
        beam, plus the scorer's scores. If the model's output is not finite, the utterance has one empty hypothesis with
        score NaN.

    Raises:
        ValueError: a type, a shape, a length or ``beam_size`` is invalid.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model, tokens = checkpoint.model(), checkpoint.token_table
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> encoder_out, lens = model.encode(features, torch.tensor([features.shape[1]]))
        >>> (nbest,) = modified_beam_search(model, encoder_out, lens, beam_size=4)
        >>> tokens.decode(nbest[0].tokens)
        '今天很好'
    """
    check_beam_size(beam_size)
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    schedule = Schedule.of(encoder_out_lens)
    xp, device = namespace(encoder_out), device_of(encoder_out)
    contexts = xp.full((len(encoder_out), model.context_size), model.blank_id, dtype=xp.int64, device=device)
    beams = Beams.start(contexts, beam_size, None if scorer is None else scorer.start(schedule.order))
    paths = advance_beams(model, encoder_out, schedule, beams, options=options, scorer=scorer)
    totals, num_tokens = beams.totals(scorer), to_numpy(beams.num_tokens)
    order = np.argsort(-rank(totals, num_tokens, model.context_size, length_norm), kind="stable")
    _, hypotheses = paths.read_back(order, schedule.lens, model.blank_id)
    num_live = np.isfinite(totals).sum(1).tolist()
    ranked = np.take_along_axis(totals, order, axis=1).tolist()
    return schedule.unsort(
        [
            [replace(hypothesis, score=score) for hypothesis, score in zip(row[:count], scores, strict=False)] or [LOST]
            for row, scores, count in zip(hypotheses, ranked, num_live, strict=True)
        ]
    )


class Beams(NamedTuple):
    """K hypotheses of each utterance between two frames, as arrays; a dead hypothesis has log-probability -inf."""

    log_probs: Array
    """(N, K), log-probability of each hypothesis less `offset`, since small numbers lose fewer digits."""
    offset: Array
    """(N,), float64."""
    contexts: Array
    """(N, K, C), int64."""
    hashes: Array
    """(N, K), int64: hash of the whole token sequence, to detect equal ones."""
    num_tokens: Array
    """(N, K), int64."""
    states: Array
    """(N, K, W), int64: states of the scorer."""

    @classmethod
    def start(cls, contexts: Array, beam_size: int, states: Array | None = None) -> Beams:
        """Return beams that hold the empty hypothesis alone.

        Args:
            contexts: (N, C), int64, tokens before the first frame.
            beam_size: K.
            states: (N, W), int64, of the scorer; None without one.
        """
        xp, device, (N, _), K = namespace(contexts), device_of(contexts), contexts.shape, beam_size
        log_probs = xp.full((N, K), -xp.inf, dtype=xp.float32, device=device)
        log_probs[:, 0] = 0
        start_states = xp.zeros((N, 0), dtype=xp.int64, device=device) if states is None else states
        return cls(
            log_probs=log_probs,
            offset=xp.zeros(N, dtype=xp.float64, device=device),
            contexts=xp.repeat(contexts[:, None], K, axis=1),
            hashes=xp.zeros((N, K), dtype=xp.int64, device=device),
            num_tokens=xp.zeros((N, K), dtype=xp.int64, device=device),
            states=xp.repeat(start_states[:, None], K, axis=1),
        )

    def totals(self, scorer: Scorer | None = None) -> np.ndarray:
        """Return the score of each hypothesis, (N, K), float64; with a scorer, that of the utterance's end included."""
        log_probs = self.log_probs
        if scorer is not None:
            log_probs = log_probs + scorer.finish(self.states.reshape(-1, scorer.state_size)).reshape(log_probs.shape)
        return to_numpy(log_probs).astype(np.float64) + to_numpy(self.offset)[:, None]


class Paths(NamedTuple):
    """Continuations of the hypotheses of N utterances on T frames."""

    parents: Array
    """(T, N, K), int32: place of each hypothesis's parent."""
    symbols: Array
    """(T, N, K), int32: symbol that each hypothesis added, blank or token."""
    log_probs: Array
    """(T, N, K): log-probability of the symbol in the model alone."""

    def read_back(
        self, places: np.ndarray, lens: np.ndarray, blank_id: int
    ) -> tuple[np.ndarray, list[list[Hypothesis]]]:
        """Read hypotheses back along their parents.

        Args:
            places: (N, K): places after the last frame, in the order of the result.
            lens: (N,): number of frames of each utterance, longest first.
            blank_id: id of the blank.

        Returns:
            The place before the first frame that each hypothesis comes from, (N, K), and what it added, without scores.
        """
        parents, symbols, log_probs = (to_numpy(array) for array in self)
        # in place: column k of an utterance becomes the symbols of its k-th hypothesis
        symbols, log_probs = symbols.copy(), log_probs.copy()
        column, rows = places.copy(), np.arange(len(places))[:, None]
        for t in range(len(parents) - 1, -1, -1):
            R = int((lens > t).sum())
            here = column[:R]
            symbols[t, :R], log_probs[t, :R] = symbols[t, rows[:R], here], log_probs[t, rows[:R], here]
            column[:R] = parents[t, rows[:R], here]
        hypotheses: list[list[Hypothesis]] = []
        for n, num_frames in enumerate(lens.tolist()):
            is_token = symbols[:num_frames, n] != blank_id
            hypotheses.append(
                [
                    _hypothesis(is_token[:, k].nonzero()[0], symbols[:, n, k], log_probs[:, n, k])
                    for k in range(places.shape[1])
                ]
            )
        return column, hypotheses


def advance_beams(
    model: TransducerSteps,
    encoder_out: Array,
    schedule: Schedule,
    beams: Beams,
    *,
    options: LogitOptions,
    scorer: Scorer | None,
    unknown_id: int | None = None,
) -> Paths:
    """Advance beams in place over all frames of their utterances.

    Args:
        model: decoder and joiner, see `search_inputs`.
        encoder_out: (N, T, D).
        schedule: order of the utterances in the beams.
        beams: of the utterances, in the order of the schedule.
        options: adjustments of the logits.
        scorer: hotwords or language models, whose states the beams hold.
        unknown_id: token that counts as a blank; the scorer should have no score for it.
    """
    search = _Search.of(model, beams, len(schedule.running))
    for t, running in enumerate(schedule.running):
        rows = search.distinct_rows(running)
        logits = model.join(encoder_out[schedule.order[rows.utterances], t], model.predict(rows.contexts))
        logits = options.adjust(logits, model.blank_id)
        normalizer = log_sum_exp(logits)[:, None]
        # a beam's best continuations are among the best of each of its hypotheses
        count = min(beams.log_probs.shape[1], logits.shape[1])
        symbols, scores, log_probs = best_symbols(logits, normalizer, count, rows.states, scorer)
        if unknown_id is not None:
            symbols = namespace(symbols).where(symbols == unknown_id, model.blank_id, symbols)
        index = rows.of_hypothesis
        search.advance(t, scores[index], symbols[index], log_probs[index], scorer)
    return search.paths


class _Rows(NamedTuple):
    """Q rows to evaluate, and the row of each hypothesis."""

    utterances: Array
    """(Q,)."""
    contexts: Array
    """(Q, C)."""
    states: Array
    """(Q, W), of the scorer."""
    of_hypothesis: Array
    """(R, K), 0..Q-1."""


@dataclass(frozen=True)
class _Search:
    """Beams on their way through the frames, and what the steps share."""

    blank_id: int
    beams: Beams
    paths: Paths
    all_rows: Array
    """(N, 1): 0..N-1."""
    all_places: Array
    """(K,): 0..K-1."""

    @classmethod
    def of(cls, model: TransducerSteps, beams: Beams, T: int) -> _Search:
        (N, K), xp, device = beams.log_probs.shape, namespace(beams.log_probs), device_of(beams.log_probs)
        paths = Paths(
            parents=xp.zeros((T, N, K), dtype=xp.int32, device=device),
            symbols=xp.full((T, N, K), model.blank_id, dtype=xp.int32, device=device),
            log_probs=xp.zeros((T, N, K), dtype=xp.float32, device=device),
        )
        all_rows, all_places = xp.arange(N, device=device)[:, None], xp.arange(K, device=device)
        return cls(model.blank_id, beams, paths, all_rows, all_places)

    def distinct_rows(self, R: int) -> _Rows:
        """Return the rows to evaluate for the first R utterances.

        Hypotheses with equal contexts share a row. On a CPU, where the joiner takes most of the time, each row is
        evaluated once, and dead hypotheses have none. On a GPU, finding equal rows would have to wait for the device.
        """
        beams, K = self.beams, self.all_places.shape[0]
        xp, contexts, states = namespace(beams.contexts), beams.contexts[:R], beams.states[:R]
        flat = self.all_rows[:R] * K + self.all_places
        flat_contexts, flat_states = contexts.reshape(R * K, -1), states.reshape(R * K, states.shape[2])
        if not is_on_host(contexts):
            utterances = xp.broadcast_to(self.all_rows[:R], (R, K)).reshape(-1)
            return _Rows(utterances, flat_contexts, flat_states, flat)
        is_same = xp.all(contexts[:, :, None] == contexts[:, None], axis=-1)
        if states.shape[2]:
            is_same &= xp.all(states[:, :, None] == states[:, None], axis=-1)
        # a dead hypothesis shares the row of the first of its beam, which is always alive
        is_alive = beams.log_probs[:R] > -xp.inf
        shared_row = xp.where(is_alive, _first(is_same & is_alive[:, None], self.all_places), 0) + self.all_rows[:R] * K
        is_evaluated = (shared_row == flat).reshape(-1)
        evaluated = xp.nonzero(is_evaluated)[0]
        numbers = is_evaluated.cumsum(0) - 1
        return _Rows(evaluated // K, flat_contexts[evaluated], flat_states[evaluated], numbers[shared_row])

    def advance(self, t: int, scores: Array, symbols: Array, log_probs: Array, scorer: Scorer | None) -> None:
        """Advance the first R utterances by one frame.

        Args:
            t: frame.
            scores: (R, K, B), total scores of the best continuations of each hypothesis.
            symbols: (R, K, B), their symbols.
            log_probs: (R, K, B), their log-probabilities in the model alone.
            scorer: advances the states.
        """
        xp, (R, K, B), beams, paths = namespace(scores), scores.shape, self.beams, self.paths
        rows = self.all_rows[:R]
        best, places = top((beams.log_probs[:R, :, None] + scores).reshape(R, K * B), K)
        parent, symbol = places // B, symbols.reshape(R, K * B)[rows, places]
        paths.parents[t, :R], paths.symbols[t, :R] = parent, symbol
        paths.log_probs[t, :R] = log_probs.reshape(R, K * B)[rows, places]

        is_token = symbol != self.blank_id
        hashes, num_tokens = beams.hashes[rows, parent], beams.num_tokens[rows, parent] + is_token
        hashes = xp.where(is_token, extended_hash(hashes, symbol), hashes)
        contexts = beams.contexts[rows, parent]
        shifted = xp.concat([contexts[:, :, 1:], symbol[:, :, None]], axis=2)
        beams.contexts[:R] = xp.where(is_token[:, :, None], shifted, contexts)
        if scorer is not None:
            beams.states[:R] = _advanced(scorer, beams.states[rows, parent], symbol, is_token)

        best = _merge(best, hashes, num_tokens, self.all_places)
        largest = xp.max(best, axis=1, keepdims=True)
        beams.offset[:R] += largest[:, 0]
        # if the model's output is not finite, no hypothesis remains
        with np.errstate(invalid="ignore"):
            beams.log_probs[:R] = best - largest
        beams.hashes[:R], beams.num_tokens[:R] = hashes, num_tokens


def _first(is_same: Array, all_places: Array) -> Array:
    """Return the first equal place of each hypothesis, (R, K, K) to (R, K); K if there is none."""
    xp = namespace(is_same)
    return xp.min(xp.where(is_same, all_places, all_places.shape[0]), axis=2)


def _advanced(scorer: Scorer, states: Array, symbol: Array, is_token: Array) -> Array:
    """Return the states (R, K, W) after the symbols (R, K), advanced where the symbol is a token."""
    xp = namespace(states)
    if is_on_host(states):
        places = xp.nonzero(is_token)
        if len(places[0]):
            states[places] = scorer.advance(states[places], symbol[places])
        return states
    after = scorer.advance(states.reshape(-1, states.shape[2]), symbol.reshape(-1)).reshape(states.shape)
    return xp.where(is_token[:, :, None], after, states)


def _merge(log_probs: Array, hashes: Array, num_tokens: Array, all_places: Array) -> Array:
    """Add the probabilities of equal hypotheses to the first of them, and let the others die: (R, K) to (R, K).

    The first is the most likely one, so its frames are reported.
    """
    xp = namespace(log_probs)
    is_same = (hashes[:, :, None] == hashes[:, None]) & (num_tokens[:, :, None] == num_tokens[:, None])
    is_same &= (log_probs > -xp.inf)[:, None]
    first = _first(is_same, all_places)  # K for a dead one
    if is_on_host(first) and bool(xp.all(first >= all_places)):
        return log_probs
    return log_sum_exp(xp.where(first[:, None] == all_places[:, None], log_probs[:, None], -xp.inf))


def _hypothesis(frames: np.ndarray, symbols: np.ndarray, log_probs: np.ndarray) -> Hypothesis:
    return Hypothesis(tuple(symbols[frames].tolist()), tuple(frames.tolist()), tuple(log_probs[frames].tolist()))
