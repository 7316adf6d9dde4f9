"""The door to all searches.

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Hotwords, Scorer
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.options import LogitOptions
from stateless_transducer.decoding.recognisable import Recognisable
from stateless_transducer.ops.masks import MIN_FEATURE_FRAMES
from stateless_transducer.text.hotwords import read_hotwords, spell_hotwords
from stateless_transducer.text.tokens import TokenTable


@torch.inference_mode()
def search(
    model: Recognisable,
    features: Tensor,
    feature_lens: Tensor,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[Hypothesis]:
    """The best hypothesis of each utterance; `search_nbest` gives them all."""
    return [found[0] for found in search_nbest(model, features, feature_lens, config, scorer)]


@torch.inference_mode()
def search_nbest(
    model: Recognisable,
    features: Tensor,
    feature_lens: Tensor,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """The hypotheses that the search ends with, best first; greedy search has one.

    Args:
        model: encodes, predicts, joins.
        features: (N, T_in, F).
        feature_lens: (N,); an utterance too short for one encoder frame gives an empty hypothesis.
        config: which search.
        scorer: what else counts in a beam; `make_scorer` gives that of the configuration.
    """
    # a batch of nothing but very short utterances is too narrow for the encoder
    missing = max(0, MIN_FEATURE_FRAMES - features.shape[1])
    padded = torch.nn.functional.pad(features, (0, 0, 0, missing))
    encoder_out, encoder_out_lens = model.encode(padded, feature_lens)
    options = LogitOptions(config.blank_penalty, config.temperature)
    if config.decoding_method == "greedy_search":
        best = greedy_search(
            model, encoder_out, encoder_out_lens, max_symbols_per_frame=config.max_sym_per_frame, options=options
        )
        return [[hypothesis] for hypothesis in best]
    find = beam_search if config.decoding_method == "beam_search" else modified_beam_search
    return find(model, encoder_out, encoder_out_lens, beam_size=config.beam_size, options=options, scorer=scorer)


def make_scorer(
    config: SearchConfig, token_table: TokenTable, device: torch.device, hotwords: Sequence[str] = ()
) -> Scorer | None:
    """The hotwords of the configuration's file and those given here; None if there are none.

    Raises:
        ValueError: the file cannot be read, or the model's tokens cannot spell a phrase.
    """
    phrases = spell_hotwords([(phrase, config.hotwords_score) for phrase in hotwords], token_table)
    if config.hotwords_file is not None:
        phrases += read_hotwords(config.hotwords_file, token_table, config.hotwords_score)
    if not phrases:
        return None
    return Hotwords([phrases], vocab_size=len(token_table), blank_id=token_table.blank_id, device=device)
