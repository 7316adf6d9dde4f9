"""Modified beam search: one symbol a frame at most, equal hypotheses merged; all utterances at once.

Letters: N utterances, T encoder frames, D joiner width, V vocabulary, K hypotheses a beam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.recognisable import Recognisable


@torch.inference_mode()
def modified_beam_search(
    model: Recognisable, encoder_out: Tensor, encoder_out_lens: Tensor, *, beam_size: int = 4
) -> list[Hypothesis]:
    """The likeliest token sequence per token among the ``beam_size`` that survive each frame.

    On each frame, every hypothesis is continued by a blank or one symbol; the best ``beam_size`` continuations stay,
    and those that say the same are merged, their probabilities summed. The winner has the best log-probability divided
    by its number of tokens, start blanks counted, as icefall's.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,).
        beam_size: K.
    """
    N, T, _ = encoder_out.shape
    beams = [_Beam.start(model.context_size, model.blank_id) for _ in range(N)]
    for t in range(T):
        live = [n for n in range(N) if t < int(encoder_out_lens[n])]
        contexts = torch.tensor([h.tokens[-model.context_size :] for n in live for h in beams[n].hypotheses])
        counts = [len(beams[n].hypotheses) for n in live]
        if not counts:
            break
        index = torch.repeat_interleave(torch.tensor(live), torch.tensor(counts)).to(encoder_out.device)
        decoder_out = model.predict(contexts.to(encoder_out.device))
        log_probs = model.join(encoder_out[index, t], decoder_out).log_softmax(-1)  # (sum of counts, V)
        for n, own in zip(live, log_probs.split(counts), strict=True):
            beams[n] = beams[n].advance(own.cpu(), t, beam_size, model.blank_id)
    return [beam.best(model.context_size) for beam in beams]


class _Partial:
    """A hypothesis on its way: tokens with the start blanks, frames and log-probabilities of the real ones."""

    __slots__ = ("frames", "log_prob", "token_log_probs", "tokens")

    def __init__(self, tokens, frames, token_log_probs, log_prob: float) -> None:
        self.tokens: tuple[int, ...] = tokens
        self.frames: tuple[int, ...] = frames
        self.token_log_probs: tuple[float, ...] = token_log_probs
        self.log_prob = log_prob


class _Beam:
    def __init__(self, hypotheses: list[_Partial]) -> None:
        self.hypotheses = hypotheses

    @classmethod
    def start(cls, context_size: int, blank_id: int) -> _Beam:
        return cls([_Partial((blank_id,) * context_size, (), (), 0.0)])

    def advance(self, log_probs: Tensor, t: int, beam_size: int, blank_id: int) -> _Beam:
        """One frame on; log_probs: (hypotheses, V)."""
        totals = log_probs + torch.tensor([[h.log_prob] for h in self.hypotheses])
        best, where = totals.flatten().topk(min(beam_size, totals.numel()))
        merged: dict[tuple[int, ...], _Partial] = {}
        for log_prob, position in zip(best.tolist(), where.tolist(), strict=True):
            parent, symbol = divmod(position, log_probs.shape[1])
            new = self._continue(self.hypotheses[parent], symbol, t, log_probs[parent, symbol], log_prob, blank_id)
            other = merged.get(new.tokens)
            if other is None:
                merged[new.tokens] = new
            else:
                # the likelier one comes first and tells the times
                other.log_prob = float(torch.logaddexp(torch.tensor(other.log_prob), torch.tensor(log_prob)))
        return _Beam(list(merged.values()))

    def _continue(self, parent: _Partial, symbol: int, t: int, own: Tensor, total: float, blank_id: int) -> _Partial:
        if symbol == blank_id:
            return _Partial(parent.tokens, parent.frames, parent.token_log_probs, total)
        return _Partial((*parent.tokens, symbol), (*parent.frames, t), (*parent.token_log_probs, float(own)), total)

    def best(self, context_size: int) -> Hypothesis:
        winner = max(self.hypotheses, key=lambda h: h.log_prob / len(h.tokens))
        return Hypothesis(winner.tokens[context_size:], winner.frames, winner.token_log_probs)
