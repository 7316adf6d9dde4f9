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
) -> list[list[Hypothesis]]:
    """The likeliest token sequences per token, among those that survive each frame.

    On a frame, the likeliest open hypothesis is expanded: with a blank it is done with the frame, with each of its
    ``beam_size`` best symbols it is open again. The frame ends when ``beam_size`` done hypotheses are likelier than all
    open ones. At the end they are ranked by log-probability divided by the number of tokens, start blanks counted.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,).
        beam_size: K.
        options: adjustments of the logits.

    Returns:
        For each utterance its hypotheses, best first; their score is the log-probability of all their paths that were
        followed.
    """
    N, T, _ = encoder_out.shape
    walks = [_Walk.start(n, lens, model, beam_size) for n, lens in enumerate(encoder_out_lens.tolist())]
    flat, device = encoder_out.flatten(0, 1), encoder_out.device
    running = [walk for walk in walks if walk.num_frames]
    while running:
        for walk in running:
            walk.choose()
        contexts = torch.tensor([walk.chosen.context for walk in running], device=device)
        frames = torch.tensor([walk.n * T + walk.t for walk in running], device=device)
        logits = options.adjust(model.join(flat[frames], model.predict(contexts)), model.blank_id)
        log_probs = logits.log_softmax(-1)
        blanks = log_probs[:, model.blank_id].tolist()
        values, symbols = log_probs.topk(min(beam_size + 1, log_probs.shape[1]))
        for walk, blank, own, said in zip(running, blanks, values.tolist(), symbols.tolist(), strict=True):
            walk.expand(blank, list(zip(said, own, strict=True)))
        running = [walk for walk in running if walk.t < walk.num_frames]
    return [walk.finish() for walk in walks]


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

    def say(self, token: int, t: int, log_prob: float) -> _Node:
        context = (*self.context[1:], token)
        return _Node(self, hash((self.key, self.num_tokens, token)), context, self.num_tokens + 1, t, log_prob)


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
    def start(cls, n: int, num_frames: int, model: Recognisable, beam_size: int) -> _Walk:
        root = _Node(None, 0, (model.blank_id,) * model.context_size, 0, 0, 0.0)
        return cls(n, num_frames, model.blank_id, beam_size, {root.key: (0.0, root)}, {}, root)

    def choose(self) -> None:
        """Take the likeliest open hypothesis."""
        key = max(self.open, key=lambda key: self.open[key][0])
        self.log_prob, self.chosen = self.open.pop(key)

    def expand(self, blank: float, symbols: list[tuple[int, float]]) -> None:
        """Continue the chosen hypothesis, and go on to the next frame if this one is done."""
        self.expansions += 1
        _add(self.done, self.chosen, self.log_prob + blank)
        for symbol, own in symbols:
            if symbol != self.blank_id:
                _add(self.open, self.chosen.say(symbol, self.t, own), self.log_prob + own)
        threshold = max((log_prob for log_prob, _ in self.open.values()), default=-math.inf)
        better = [key for key, (log_prob, _) in self.done.items() if log_prob > threshold]
        is_full = len(better) >= self.beam_size
        if is_full or not self.open or self.expansions >= MAX_EXPANSIONS * self.beam_size:
            kept = better if is_full else list(self.done)
            kept.sort(key=lambda key: -self.done[key][0])
            self.open = {key: self.done[key] for key in kept[: self.beam_size]}
            self.done, self.expansions = {}, 0
            self.t += 1

    def finish(self) -> list[Hypothesis]:
        """What is open behind the last frame, ranked."""
        ranked = sorted(
            self.open.values(), key=lambda pair: -pair[0] / max(1, pair[1].num_tokens + len(pair[1].context))
        )
        return [_hypothesis(node, log_prob) for log_prob, node in ranked]


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
