"""Beam search with any number of symbols a frame, after Graves 2012 (arXiv 1211.3711, algorithm 1), as icefall does it.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam.

The paper's sums over prefixes of hypotheses are left out, as in icefall.
"""

from __future__ import annotations

import math

from stateless_transducer.decoding.arrays import Array, is_on_host, without_gradients
from stateless_transducer.decoding.beam_arrays import search_in_arrays
from stateless_transducer.decoding.beam_walks import search_by_walks
from stateless_transducer.decoding.fusion import Scorer
from stateless_transducer.decoding.hypothesis import LOST, Hypothesis, rank
from stateless_transducer.decoding.inputs import search_inputs
from stateless_transducer.decoding.options import PLAIN, LogitOptions, check_beam_size
from stateless_transducer.decoding.protocols import TransducerSteps


@without_gradients
def beam_search(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    *,
    beam_size: int = 4,
    length_norm: float = 1.0,
    options: LogitOptions = PLAIN,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """The likeliest token sequences per token, among those that survive each frame.

    On a frame, the likeliest open hypothesis is expanded: with a blank it is done with the frame, with each of its
    best symbols it is open again. The frame ends when ``beam_size`` done hypotheses are likelier than all
    open ones. At the end they are ranked, see `rank`.

    On a CPU each utterance's hypotheses are Python's; elsewhere they are arrays, and where most frames say nothing the
    device is waited for a few times in all.

    Args:
        model: predicts and joins.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        beam_size: K.
        length_norm: see `rank`.
        options: adjustments of the logits.
        scorer: what else counts: hotwords, a language model.

    Returns:
        For each utterance its hypotheses, best first; their score is the log-probability of all their paths that were
        followed, and what the scorer added. An empty one with score NaN for an utterance for which the model gives no
        numbers.

    Raises:
        ValueError: types, shapes, lens or ``beam_size`` cannot be.
    """
    check_beam_size(beam_size)
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    search = search_by_walks if is_on_host(encoder_out) else search_in_arrays
    found = search(model, encoder_out, encoder_out_lens, beam_size, options, scorer)

    def goodness(hypothesis: Hypothesis) -> float:
        return float(rank(hypothesis.score, len(hypothesis.tokens), model.context_size, length_norm))

    def is_lost(own: list[Hypothesis]) -> bool:
        return not own or any(math.isnan(each.score) for each in own)

    return [[LOST] if is_lost(own) else sorted(own, key=goodness, reverse=True) for own in found]
