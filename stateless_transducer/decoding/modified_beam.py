"""Modified beam search: one symbol a frame at most, equal hypotheses merged; all utterances at once, in tensors.

Letters: N utterances, T encoder frames, D joiner width, V vocabulary, K hypotheses a beam, C tokens of context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stateless_transducer.decoding.fusion import Scorer
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.options import PLAIN, LogitOptions, Schedule
from stateless_transducer.decoding.recognisable import Recognisable

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
"""Of the hash of token sequences; those of Knuth's 64-bit generator."""


@torch.inference_mode()
def modified_beam_search(
    model: Recognisable,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    *,
    beam_size: int = 4,
    options: LogitOptions = PLAIN,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """The likeliest token sequences per token among the ``beam_size`` that survive each frame.

    On each frame, every hypothesis is continued by a blank or one symbol; the best ``beam_size`` continuations stay,
    and those that say the same are merged, their probabilities summed. At the end they are ranked by log-probability
    divided by the number of tokens, start blanks counted, as icefall's.

    Besides the model's own work, memory is that of K hypotheses' contexts and of three numbers a frame and hypothesis:
    nothing is copied as hypotheses grow. On a GPU nothing waits for the device from the first frame to the last.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,).
        beam_size: K.
        options: adjustments of the logits.
        scorer: what else counts: hotwords, a language model.

    Returns:
        For each utterance its hypotheses, 1 to K, best first; their score is the log-probability of all their paths
        that the beam kept, and what the scorer added.
    """
    schedule = Schedule.of(encoder_out_lens)
    encoder_out = encoder_out[schedule.order]
    beam = _Beam.start(model, len(encoder_out), len(schedule.running), beam_size, encoder_out.device)
    if scorer is not None:
        beam.states = scorer.start(schedule.order)[:, None].repeat(1, beam_size)
    for t, running in enumerate(schedule.running):
        rows = beam.distinct_rows(running)
        logits = model.join(encoder_out[rows.utterances, t], model.predict(rows.contexts))
        log_probs = options.adjust(logits, model.blank_id).log_softmax(-1)
        totals = log_probs if scorer is None else log_probs + scorer.scores(rows.states)
        # a beam's best continuations are among the best of each of its hypotheses
        more, symbols = totals.topk(min(beam_size, totals.shape[1]))
        own = log_probs.gather(1, symbols)
        index = rows.of_hypothesis
        beam.advance(t, more[index], symbols[index], own[index], scorer)
    if scorer is not None:
        beam.log_probs += scorer.finish(beam.states.flatten()).view_as(beam.log_probs)
    return schedule.unsort(beam.finish(schedule.lens))


class _Rows(NamedTuple):
    """Questions to the model, Q of them, and which of the answers is for which hypothesis."""

    utterances: Tensor
    """(Q,)."""
    contexts: Tensor
    """(Q, C)."""
    states: Tensor
    """(Q,), of the scorer."""
    of_hypothesis: Tensor
    """(R, K), 0..Q-1."""


@dataclass
class _Beam:
    """K hypotheses of each utterance as tensors; a dead one has log-probability -inf."""

    blank_id: int
    log_probs: Tensor
    """(N, K), of each hypothesis less `offset`; small numbers lose fewer digits."""
    offset: Tensor
    """(N,), float64."""
    contexts: Tensor
    """(N, K, C), int64."""
    hashes: Tensor
    """(N, K), int64: of the whole token sequence, to know equal ones."""
    num_tokens: Tensor
    """(N, K), int64."""
    states: Tensor
    """(N, K), int64: of the scorer."""
    parents: Tensor
    """(T, N, K), int32: which hypothesis each came from."""
    symbols: Tensor
    """(T, N, K), int32: what it said, blank or token."""
    symbol_log_probs: Tensor
    """(T, N, K)."""

    @classmethod
    def start(cls, model: Recognisable, N: int, T: int, K: int, device: torch.device) -> _Beam:
        log_probs = torch.full((N, K), -torch.inf, device=device)
        log_probs[:, 0] = 0
        zeros = torch.zeros(N, K, dtype=torch.int64, device=device)
        return cls(
            blank_id=model.blank_id,
            log_probs=log_probs,
            offset=torch.zeros(N, dtype=torch.float64, device=device),
            contexts=torch.full((N, K, model.context_size), model.blank_id, device=device),
            hashes=zeros,
            num_tokens=zeros.clone(),
            states=zeros.clone(),
            parents=torch.zeros(T, N, K, dtype=torch.int32, device=device),
            symbols=torch.full((T, N, K), model.blank_id, dtype=torch.int32, device=device),
            symbol_log_probs=torch.zeros(T, N, K, device=device),
        )

    def distinct_rows(self, R: int) -> _Rows:
        """What the model must be asked for the first R utterances.

        Hypotheses with the same context get the same answer: on a CPU, where the joiner takes most of the time, each is
        asked for once, and dead hypotheses not at all. On a GPU, finding them would have to wait for the device.
        """
        K, device = self.log_probs.shape[1], self.log_probs.device
        utterances = torch.arange(R, device=device)[:, None].expand(R, K)
        contexts, states = self.contexts[:R], self.states[:R]
        if device.type != "cpu":
            every = torch.arange(R * K, device=device).view(R, K)
            return _Rows(utterances.flatten(), contexts.flatten(0, 1), states.flatten(), every)
        keys = utterances * _MULTIPLIER + states
        for token in contexts.unbind(2):
            keys = keys * _MULTIPLIER + (token + 1) * _INCREMENT
        # a dead hypothesis asks as the first of its beam, which is always alive
        place = torch.arange(R * K).view(R, K)
        place = torch.where(self.log_probs[:R] == -torch.inf, place[:, :1], place).flatten()
        distinct, of_hypothesis = torch.unique(keys.flatten()[place], return_inverse=True)
        first = torch.empty_like(distinct).scatter_(0, of_hypothesis, place)
        return _Rows(
            utterances.flatten()[first],
            contexts.flatten(0, 1)[first],
            states.flatten()[first],
            of_hypothesis.view(R, K),
        )

    def advance(self, t: int, more: Tensor, symbols: Tensor, own: Tensor, scorer: Scorer | None) -> None:
        """One frame on for the first R utterances.

        Args:
            t: frame.
            more: (R, K, B), what the best continuations of each hypothesis add.
            symbols: (R, K, B), their symbols.
            own: (R, K, B), their log-probabilities in the model alone.
            scorer: advances the states.
        """
        R, K, B = more.shape
        best, where = (self.log_probs[:R, :, None] + more).flatten(1).topk(min(K, K * B))
        parent, symbol = where.div(B, rounding_mode="floor"), symbols.flatten(1).gather(1, where)
        says = symbol != self.blank_id
        own = own.flatten(1).gather(1, where)

        hashes, num_tokens = self.hashes[:R].gather(1, parent), self.num_tokens[:R].gather(1, parent)
        hashes = torch.where(says, hashes * _MULTIPLIER + (symbol + 1) * _INCREMENT, hashes)
        num_tokens = num_tokens + says
        contexts = self.contexts[:R].gather(1, parent[:, :, None].expand(-1, -1, self.contexts.shape[2]))
        shifted = torch.cat([contexts[:, :, 1:], symbol[:, :, None]], dim=2)

        if scorer is not None:
            states = self.states[:R].gather(1, parent)
            after = scorer.advance(states.flatten(), symbol.flatten()).view_as(states)
            self.states[:R] = torch.where(says, after, states)

        best = _merge(best, hashes, num_tokens)
        largest = best.amax(1, keepdim=True)
        self.offset[:R] += largest[:, 0]
        self.log_probs[:R] = best - largest
        self.contexts[:R] = torch.where(says[:, :, None], shifted, contexts)
        self.hashes[:R], self.num_tokens[:R] = hashes, num_tokens
        self.parents[t, :R], self.symbols[t, :R], self.symbol_log_probs[t, :R] = parent.int(), symbol.int(), own

    def finish(self, lens: list[int]) -> list[list[Hypothesis]]:
        """Ranked hypotheses of each utterance, read back along the parents."""
        totals = self.log_probs.double() + self.offset[:, None]
        ranks = totals / (self.num_tokens + self.contexts.shape[2])
        order, num_live = ranks.argsort(1, descending=True).cpu(), (self.log_probs > -torch.inf).sum(1).tolist()
        totals, parents, symbols = totals.cpu(), self.parents.cpu().numpy(), self.symbols.cpu().numpy()
        symbol_log_probs = self.symbol_log_probs.cpu().numpy()
        results = []
        for n, num_frames in enumerate(lens):
            chosen = order[n, : num_live[n]].numpy()
            said: list[list[tuple[int, int, float]]] = [[] for _ in chosen]
            at = chosen
            for t in range(num_frames - 1, -1, -1):
                symbol = symbols[t, n, at]
                for i in (symbol != self.blank_id).nonzero()[0].tolist():
                    said[i].append((int(symbol[i]), t, float(symbol_log_probs[t, n, at[i]])))
                at = parents[t, n, at]
            results.append([_hypothesis(row, float(totals[n, k])) for row, k in zip(said, chosen, strict=True)])
        return results


def _merge(log_probs: Tensor, hashes: Tensor, num_tokens: Tensor) -> Tensor:
    """(R, K) -> (R, K): equal hypotheses give their probability to the first of them, and die.

    The first is the likeliest, and so tells the times.
    """
    K = log_probs.shape[1]
    place = torch.arange(K, device=log_probs.device)
    is_same = (hashes[:, :, None] == hashes[:, None]) & (num_tokens[:, :, None] == num_tokens[:, None])
    is_same &= (log_probs > -torch.inf)[:, None]
    first = torch.where(is_same, place, K).amin(2)  # K for a dead one
    return torch.where(first[:, None] == place[:, None], log_probs[:, None], -torch.inf).logsumexp(2)


def _hypothesis(said: list[tuple[int, int, float]], score: float) -> Hypothesis:
    tokens, frames, log_probs = zip(*reversed(said), strict=True) if said else ((), (), ())
    return Hypothesis(tokens, frames, log_probs, score)
