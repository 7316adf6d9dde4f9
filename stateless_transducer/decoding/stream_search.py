"""Searches of live sound, carried from chunk to chunk, for any number of streams at once.

They are the searches of whole utterances: chunks give the same hypotheses as the whole, unless `unknown_id` makes a
token a blank. Letters: N streams, T_in feature frames, F mel bins, T encoder frames of a chunk, D joiner width,
K hypotheses a beam, C tokens of context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from stateless_transducer.decoding.arrays import Array, like, namespace, to_numpy, without_gradients
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Scorer, ScorersOfStreams
from stateless_transducer.decoding.greedy import advance_greedily
from stateless_transducer.decoding.hypothesis import LOST, Hypothesis, rank
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.modified_beam import Beams, advance_beams
from stateless_transducer.decoding.options import Schedule
from stateless_transducer.decoding.protocols import StreamingTransducer, TransducerSteps
from stateless_transducer.decoding.search import best_of, logit_options
from stateless_transducer.features import SILENCE_VALUE

FLUSH_S = 0.5
"""Seconds of silence that a finished stream is decoded beyond its end, since models emit tokens a little late."""


class _Greedy(NamedTuple):
    """Decoder of a greedy search after its last frame."""

    context: Array
    """(1, C)."""
    decoder_out: Array | None
    """(1, D), the decoder's output for it; None before the first chunk."""


@dataclass(frozen=True)
class SearchState:
    """Search of one stream between two chunks. It is a value: keep it to return to it, or advance it twice."""

    scorer: Scorer | None
    """Hotwords and language models of the stream."""
    context: tuple[int, ...]
    """Tokens before the first hypothesis."""
    hypotheses: tuple[Hypothesis, ...]
    """Hypotheses by their place in the beam, without scores; greedy search has one."""
    num_frames: int
    """Number of encoder frames so far."""
    memory: _Greedy | Beams
    """Arrays of the search."""


class StreamSearch:
    """Greedy search or modified beam search over streams."""

    def __init__(self, model: StreamingTransducer, config: SearchConfig, *, unknown_id: int | None = None) -> None:
        """Set up a search.

        Args:
            model: decoder and joiner.
            config: method and options.
            unknown_id: token that counts as a blank, as in sherpa-onnx; None: no token.

        Raises:
            ValueError: the method cannot be carried from chunk to chunk.
        """
        if config.decoding_method == "beam_search":
            raise ValueError(
                "`decoding_method` beam_search needs whole utterances. Streams have greedy_search and "
                "modified_beam_search."
            )
        self._model, self._config, self._unknown_id = model, config, unknown_id
        self._options = logit_options(config)

    def start(self, scorer: Scorer | None = None, context: Sequence[int] = ()) -> SearchState:
        """Return the state before the first frame.

        Args:
            scorer: hotwords and language models for a beam.
            context: C tokens before the first one; empty: blanks.
        """
        tokens = tuple(context) or (self._model.blank_id,) * self._model.context_size
        contexts = np.array([tokens], np.int64)
        if self._config.decoding_method == "greedy_search":
            return SearchState(scorer, tokens, (Hypothesis((), (), ()),), 0, _Greedy(contexts, None))
        states = None if scorer is None else scorer.start(np.zeros(1, np.int64))
        beams = Beams.start(contexts, self._config.beam_size, states)
        return SearchState(scorer, tokens, (Hypothesis((), (), ()),) * self._config.beam_size, 0, beams)

    def restart(self, state: SearchState) -> SearchState:
        """Return the state of a new segment, which continues from the last tokens if the last segment has any.

        A greedy search scores the first token of the new segment with the decoder's output from before, also after a
        segment without tokens, so that the results equal sherpa-onnx's.
        """
        best = self.ranked(state)[0]
        context = (*state.context, *best.tokens)[-len(state.context) :] if best.tokens else ()
        fresh = self.start(state.scorer, context)
        if isinstance(state.memory, _Greedy) and isinstance(fresh.memory, _Greedy):
            return replace(fresh, memory=_Greedy(fresh.memory.context, state.memory.decoder_out))
        return fresh

    @without_gradients
    def advance(self, encoder_out: Array, states: Sequence[SearchState]) -> list[SearchState]:
        """Return the states of N streams after T frames more.

        Args:
            encoder_out: (N, T, D).
            states: N states of this search; not modified.
        """
        N, T, _ = encoder_out.shape
        model, encoder_out, lens = search_inputs(self._model, encoder_out, np.full(N, T, np.int64))
        if self._config.decoding_method == "greedy_search":
            return self._advance_greedily(model, encoder_out, lens, states)
        return self._advance_beams(model, encoder_out, lens, states)

    def ranked(self, state: SearchState, *, is_final: bool = True) -> list[Hypothesis]:
        """Return the hypotheses with their scores, best first.

        Args:
            state: state of a stream.
            is_final: whether the segment ends here, so that scores have what the scorer adds and takes at an end.
        """
        if isinstance(state.memory, _Greedy):
            return list(state.hypotheses)
        totals = state.memory.totals(state.scorer if is_final else None)[0]
        num_tokens = [len(hypothesis.tokens) for hypothesis in state.hypotheses]
        ranks = rank(totals, num_tokens, self._model.context_size, self._config.length_norm)
        order = np.argsort(-ranks, kind="stable")[: np.isfinite(totals).sum()]
        return [replace(state.hypotheses[place], score=float(totals[place])) for place in order] or [LOST]

    def _advance_greedily(
        self, model: TransducerSteps, encoder_out: Array, lens: Array, states: Sequence[SearchState]
    ) -> list[SearchState]:
        xp, memories = namespace(encoder_out), [state.memory for state in states if isinstance(state.memory, _Greedy)]
        contexts = xp.concat([like(memory.context, encoder_out) for memory in memories])
        fresh = [place for place, memory in enumerate(memories) if memory.decoder_out is None]
        rows = [memory.decoder_out for memory in memories]
        if fresh:
            predicted = model.predict(contexts[like(np.array(fresh), encoder_out)])
            for number, place in enumerate(fresh):
                rows[place] = predicted[number : number + 1]
        decoder_out = xp.concat(rows)
        added = advance_greedily(
            model,
            encoder_out,
            lens,
            contexts,
            decoder_out,
            max_symbols_per_frame=self._config.max_sym_per_frame,
            options=self._options,
            unknown_id=self._unknown_id,
        )
        return [
            replace(
                state,
                hypotheses=(_extended(state.hypotheses[0], more, state.num_frames),),
                num_frames=state.num_frames + encoder_out.shape[1],
                memory=_Greedy(contexts[n : n + 1], decoder_out[n : n + 1]),
            )
            for n, (state, more) in enumerate(zip(states, added, strict=True))
        ]

    def _advance_beams(
        self, model: TransducerSteps, encoder_out: Array, lens: Array, states: Sequence[SearchState]
    ) -> list[SearchState]:
        memories = [state.memory for state in states if isinstance(state.memory, Beams)]
        scorer = None
        if any(state.scorer is not None for state in states):
            scorer = ScorersOfStreams(
                [state.scorer for state in states], vocab_size=self._model.vocab_size, unknown_id=self._unknown_id
            )
            joined = scorer.join([memory.states for memory in memories])
            memories = [memory._replace(states=joined[n : n + 1]) for n, memory in enumerate(memories)]
        xp = namespace(encoder_out)
        beams = Beams(
            *(xp.concat([like(part, encoder_out) for part in column]) for column in zip(*memories, strict=True))
        )
        schedule = Schedule.of(lens)
        paths = advance_beams(
            model,
            encoder_out,
            schedule,
            beams,
            options=self._options,
            scorer=scorer,
            unknown_id=self._unknown_id,
        )
        places = np.tile(np.arange(self._config.beam_size), (len(states), 1))
        origins, added = paths.read_back(places, schedule.lens, model.blank_id)
        scorer_states = None if scorer is None else scorer.split(beams.states)
        advanced: list[SearchState] = []
        for n, state in enumerate(states):
            memory = Beams(*(array[n : n + 1] for array in beams))
            if scorer_states is not None:
                memory = memory._replace(states=scorer_states[n])
            pairs = zip(origins[n].tolist(), added[n], strict=True)
            hypotheses = tuple(_extended(state.hypotheses[place], more, state.num_frames) for place, more in pairs)
            num_frames = state.num_frames + encoder_out.shape[1]
            advanced.append(replace(state, hypotheses=hypotheses, num_frames=num_frames, memory=memory))
        return advanced


def decode_features_in_chunks(
    model: StreamingTransducer,
    features: Array,
    feature_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
    *,
    unknown_id: int | None = None,
) -> list[Hypothesis]:
    """Return the best hypothesis of each utterance, decoded as a stream of one segment.

    Args:
        model: model for live sound.
        features: (N, T_in, F), float32.
        feature_lens: (N,).
        config: method and options of the search.
        scorer: hotwords and language models for a beam.
        unknown_id: see `StreamSearch`.

    Raises:
        ValueError: the model's output for an utterance is not finite, or the method needs whole utterances.
    """
    features, feature_lens = to_numpy(features), to_numpy(feature_lens)
    search = StreamSearch(model, config, unknown_id=unknown_id)
    shift, width, flush_frames = (
        model.chunk_shift,
        model.chunk_frames,
        round(FLUSH_S / model.fbank_config.frame_shift_s),
    )
    num_chunks = [-(-(int(length) + flush_frames) // shift) for length in feature_lens]
    shape = (len(features), max(num_chunks, default=0) * shift + width, features.shape[2])
    padded = np.full(shape, SILENCE_VALUE, np.float32)
    for row, frames, length in zip(padded, features, feature_lens, strict=True):
        row[:length] = frames[:length]
    states = [model.initial_state() for _ in features]
    searches = [search.start(scorer) for _ in features]
    for number in range(max(num_chunks, default=0)):
        active = [n for n, count in enumerate(num_chunks) if number < count]
        chunk = padded[active, number * shift : number * shift + width]
        encoder_out, advanced = model.encode_chunk(chunk, [states[n] for n in active])
        pairs = zip(advanced, search.advance(encoder_out, [searches[n] for n in active]), strict=True)
        for n, (state, carried) in zip(active, pairs, strict=True):
            states[n], searches[n] = state, carried
    return best_of([search.ranked(carried) for carried in searches])


def num_common_tokens(hypotheses: Sequence[Hypothesis]) -> int:
    """Return the number of tokens with which all hypotheses begin: later frames cannot change them."""
    columns = zip(*(hypothesis.tokens for hypothesis in hypotheses), strict=False)
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), _shortest(hypotheses))


def _shortest(hypotheses: Sequence[Hypothesis]) -> int:
    return min(len(hypothesis.tokens) for hypothesis in hypotheses)


def _extended(hypothesis: Hypothesis, more: Hypothesis, num_frames: int) -> Hypothesis:
    """Append what the frames after the first ``num_frames`` add to a hypothesis."""
    if math.isnan(hypothesis.score) or math.isnan(more.score):
        return LOST
    if not more.tokens:
        return hypothesis
    return Hypothesis(
        hypothesis.tokens + more.tokens,
        hypothesis.frames + tuple(num_frames + frame for frame in more.frames),
        hypothesis.log_probs + more.log_probs,
        hypothesis.score + more.score,
    )
