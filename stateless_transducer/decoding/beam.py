"""Beam search with any number of symbols per frame, after Graves 2012 (arXiv 1211.3711, algorithm 1), as in icefall.

Letters: N utterances, T encoder frames, D joiner width, K hypotheses a beam.

The paper's sums over prefixes of hypotheses are omitted, as in icefall.
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
    """Return the most likely token sequences of each utterance, ranked by log-probability per token.

    On a frame, the most likely open hypothesis is expanded: extended by a blank, it is done with the frame; extended by
    each of its best symbols, it is open again. The frame ends when ``beam_size`` done hypotheses are more likely than
    all open ones. The final hypotheses are ranked, see `rank`.

    On a CPU, the hypotheses of each utterance are Python objects. Elsewhere they are arrays, and the search rarely
    waits for the device if most frames emit no symbol.

    Args:
        model: decoder and joiner.
        encoder_out: (N, T, D).
        encoder_out_lens: (N,), integer, 0..T.
        beam_size: K.
        length_norm: see `rank`.
        options: adjustments of the logits.
        scorer: hotwords or language models.

    Returns:
        The hypotheses of each utterance, best first. The score is the log-probability of all paths that the search
        followed, plus the scorer's scores. If the model's output is not finite, the utterance has one empty hypothesis
        with score NaN.

    Raises:
        ValueError: a type, a shape, a length or ``beam_size`` is invalid.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model = checkpoint.model()
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> encoder_out, lens = model.encode(features, torch.tensor([features.shape[1]]))
        >>> (nbest,) = beam_search(model, encoder_out, lens, beam_size=4)
        >>> len(nbest), nbest[0].score < 0
        (4, True)
    """
    check_beam_size(beam_size)
    model, encoder_out, encoder_out_lens = search_inputs(model, encoder_out, encoder_out_lens)
    search = search_by_walks if is_on_host(encoder_out) else search_in_arrays
    beams = search(model, encoder_out, encoder_out_lens, beam_size, options, scorer)

    def ranking_score(hypothesis: Hypothesis) -> float:
        return float(rank(hypothesis.score, len(hypothesis.tokens), model.context_size, length_norm))

    def is_lost(beam: list[Hypothesis]) -> bool:
        return not beam or any(math.isnan(hypothesis.score) for hypothesis in beam)

    return [[LOST] if is_lost(beam) else sorted(beam, key=ranking_score, reverse=True) for beam in beams]
