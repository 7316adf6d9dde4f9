"""Beam search with any number of symbols a frame, after Graves 2012 (arXiv 1211.3711, algorithm 1), as icefall does it.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam.

The paper's sums over prefixes of hypotheses are left out, as in icefall. Each utterance walks at its own pace: in every
round the likeliest open hypothesis of each is expanded, all in one call of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stateless_transducer.decoding.fusion import Scorer
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.options import PLAIN, LogitOptions
from stateless_transducer.decoding.recognisable import Recognisable

MAX_EXPANSIONS = 32
"""Of one frame, times the beam size: a model that has learnt nothing would say symbols without end."""


@torch.inference_mode()
def beam_search(
    model: Recognisable,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    *,
    beam_size: int = 4,
    options: LogitOptions = PLAIN,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """The likeliest token sequences per token, among those that survive each frame.

    On a frame, the likeliest open hypothesis is expanded: with a blank it is done with the frame, with each of its
    best symbols it is open again. The frame ends when ``beam_size`` done hypotheses are likelier than all
    open ones. At the end they are ranked by log-probability divided by the number of tokens, start blanks counted.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,).
        beam_size: K.
        options: adjustments of the logits.
        scorer: what else counts: hotwords, a language model.

    Returns:
        For each utterance its hypotheses, best first; their score is the log-probability of all their paths that were
        followed, and what the scorer added.
    """
    N, T, _ = encoder_out.shape
    flat, device = encoder_out.flatten(0, 1), encoder_out.device
    states = [0] * N if scorer is None else scorer.start(torch.arange(N, device=device)).tolist()
    lens = encoder_out_lens.tolist()
    walks = [_Walk.start(n, lens[n], model, beam_size, states[n]) for n in range(N)]
    running = [walk for walk in walks if walk.num_frames]
    while running:
        for walk in running:
            walk.choose()
        contexts = torch.tensor([walk.chosen.context for walk in running], device=device)
        frames = torch.tensor([walk.n * T + walk.t for walk in running], device=device)
        logits = options.adjust(model.join(flat[frames], model.predict(contexts)), model.blank_id)
        log_probs = logits.log_softmax(-1)
        blanks, totals = log_probs[:, model.blank_id].tolist(), log_probs
        chosen = torch.tensor([walk.chosen.state for walk in running], device=device)
        if scorer is not None:
            totals = log_probs + scorer.scores(chosen)
        values, symbols = totals.topk(min(beam_size + 1, totals.shape[1]))
        after = chosen[:, None].expand_as(symbols)
        if scorer is not None:
            after = scorer.advance(after.flatten(), symbols.flatten()).view_as(symbols)
        found = (symbols, values, log_probs.gather(1, symbols), after)
        for walk, blank, *said in zip(running, blanks, *(each.tolist() for each in found), strict=True):
            walk.expand(blank, list(zip(*said, strict=True)))
        running = [walk for walk in running if walk.t < walk.num_frames]
    return [walk.finish(scorer, device) for walk in walks]


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
    state: int
    """Of the scorer."""

    def say(self, token: int, t: int, log_prob: float, state: int) -> _Node:
        context, key = (*self.context[1:], token), hash((self.key, self.num_tokens, token))
        return _Node(self, key, context, self.num_tokens + 1, t, log_prob, state)


@dataclass
class _Walk:
    """One utterance: open and done hypotheses of the present frame, by key."""

    n: int
    num_frames: int
    blank_id: int
    beam_size: int
    open: dict[int, tuple[float, _Node]]
    done: dict[int, tuple[float, _Node]]
    chosen: _Node
    log_prob: float = 0.0
    t: int = 0
    expansions: int = 0

    @classmethod
    def start(cls, n: int, num_frames: int, model: Recognisable, beam_size: int, state: int) -> _Walk:
        root = _Node(None, 0, (model.blank_id,) * model.context_size, 0, 0, 0.0, state)
        return cls(n, num_frames, model.blank_id, beam_size, {root.key: (0.0, root)}, {}, root)

    def choose(self) -> None:
        """Take the likeliest open hypothesis."""
        key = max(self.open, key=lambda key: self.open[key][0])
        self.log_prob, self.chosen = self.open.pop(key)

    def expand(self, blank: float, symbols: list[tuple[int, float, float, int]]) -> None:
        """Continue the chosen hypothesis, and go on to the next frame if this one is done.

        Each symbol comes with what it adds in all, its own log-probability, and the scorer's state behind it.
        """
        self.expansions += 1
        _add(self.done, self.chosen, self.log_prob + blank)
        for symbol, total, own, state in symbols:
            if symbol != self.blank_id:
                _add(self.open, self.chosen.say(symbol, self.t, own, state), self.log_prob + total)
        threshold = max((log_prob for log_prob, _ in self.open.values()), default=-math.inf)
        better = [key for key, (log_prob, _) in self.done.items() if log_prob > threshold]
        is_full = len(better) >= self.beam_size
        if is_full or not self.open or self.expansions >= MAX_EXPANSIONS * self.beam_size:
            kept = better if is_full else list(self.done)
            kept.sort(key=lambda key: -self.done[key][0])
            self.open = {key: self.done[key] for key in kept[: self.beam_size]}
            self.done, self.expansions = {}, 0
            self.t += 1

    def finish(self, scorer: Scorer | None, device: torch.device) -> list[Hypothesis]:
        """What is open behind the last frame, ranked."""
        last, nodes = (list(each) for each in zip(*self.open.values(), strict=True))
        if scorer is not None:
            more = scorer.finish(torch.tensor([node.state for node in nodes], device=device)).tolist()
            last = [log_prob + own for log_prob, own in zip(last, more, strict=True)]
        ranks = [-log_prob / (node.num_tokens + len(node.context)) for log_prob, node in zip(last, nodes, strict=True)]
        return [_hypothesis(nodes[i], last[i]) for i in sorted(range(len(nodes)), key=ranks.__getitem__)]


def _add(hypotheses: dict[int, tuple[float, _Node]], node: _Node, log_prob: float) -> None:
    """Add a hypothesis, or its probability to an equal one."""
    other = hypotheses.get(node.key)
    if other is not None:
        high, low = max(other[0], log_prob), min(other[0], log_prob)
        log_prob = high + math.log1p(math.exp(low - high)) if low > -math.inf else high
        node = other[1]
    hypotheses[node.key] = (log_prob, node)


def _hypothesis(node: _Node, score: float) -> Hypothesis:
    said = []
    while node.parent is not None:
        said.append((node.context[-1], node.t, node.log_prob))
        node = node.parent
    tokens, frames, log_probs = zip(*reversed(said), strict=True) if said else ((), (), ())
    return Hypothesis(tokens, frames, log_probs, score)
