"""The door to all searches.

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stateless_transducer.decoding.arrays import Array, device_of, namespace, without_gradients
from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Hotwords, Scorer, SumOfScorers
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.hypothesis import Hypothesis
from stateless_transducer.decoding.language_model import NgramScorer
from stateless_transducer.decoding.modified_beam import modified_beam_search
from stateless_transducer.decoding.options import LogitOptions
from stateless_transducer.decoding.protocols import TransducerModel, TransducerSteps
from stateless_transducer.text.hotwords import HotwordPhrase, read_hotwords, spell_hotwords
from stateless_transducer.text.ngram import read_arpa
from stateless_transducer.text.tokens import TokenTable


def search(
    model: TransducerModel,
    features: Array,
    feature_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[Hypothesis]:
    """The best hypothesis of each utterance; `search_nbest` gives them all.

    Raises:
        ValueError: the model gives no number for some utterance.
    """
    every = search_nbest(model, features, feature_lens, config, scorer)
    if lost := [n for n, found in enumerate(every) if math.isnan(found[0].score)]:
        raise ValueError(f"The model's output is not finite for utterance {lost[0] + 1} of a batch of {len(every)}.")
    return [found[0] for found in every]


@without_gradients
def search_nbest(
    model: TransducerModel,
    features: Array,
    feature_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """The hypotheses that the search ends with, best first; greedy search has one.

    Args:
        model: encodes, predicts, joins.
        features: (N, T_in, F), of the kind of arrays that the model takes.
        feature_lens: (N,); an utterance too short for one encoder frame gives an empty hypothesis.
        config: which search.
        scorer: what else counts in a beam; `make_scorer` gives that of the configuration.

    Raises:
        ValueError: the configuration names hotwords or a language model, and there is no scorer.
    """
    return search_encoded(model, *encode(model, features, feature_lens), config, scorer)


@without_gradients
def encode(model: TransducerModel, features: Array, feature_lens: Array) -> tuple[Array, Array]:
    """(N, T_in, F) and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,), however short the features are."""
    return model.encode(_wide_enough(features, model.subsampling.min_frames), feature_lens)


def search_encoded(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """`search_nbest` of what `encode` gives."""
    if scorer is None and config.scorer_files:
        names = " and ".join(f"`{name}`" for name in config.scorer_files)
        raise ValueError(f"Give what `make_scorer(config, token_table)` returns as `scorer`: it reads {names}.")
    options = logit_options(config)
    if config.decoding_method == "greedy_search":
        best = greedy_search(
            model, encoder_out, encoder_out_lens, max_symbols_per_frame=config.max_sym_per_frame, options=options
        )
        return [[hypothesis] for hypothesis in best]
    find = beam_search if config.decoding_method == "beam_search" else modified_beam_search
    return find(
        model,
        encoder_out,
        encoder_out_lens,
        beam_size=config.beam_size,
        length_norm=config.length_norm,
        options=options,
        scorer=scorer,
    )


def logit_options(config: SearchConfig) -> LogitOptions:
    """Those of the configuration."""
    return LogitOptions(config.blank_penalty, config.temperature)


def _wide_enough(features: Array, min_frames: int) -> Array:
    """A batch of nothing but very short utterances is too narrow for the encoder: with frames behind their ends."""
    missing = min_frames - features.shape[1]
    if missing <= 0:
        return features
    xp, (N, _, F) = namespace(features), features.shape
    silence = xp.zeros((N, missing, F), dtype=features.dtype, device=device_of(features))
    return xp.concat([features, silence], axis=1)


def make_scorer(config: SearchConfig, token_table: TokenTable, hotwords: Sequence[str] = ()) -> Scorer | None:
    """Hotwords and language models of the configuration's files, and the hotwords given here; None if there are none.

    Raises:
        ValueError: a file cannot be read, the model's tokens cannot spell a phrase, or the hotwords are one text.
    """
    return Scorers(config, token_table, hotwords).of_all


class Scorers:
    """What `make_scorer` reads, for utterances that have hotwords of their own besides."""

    def __init__(self, config: SearchConfig, token_table: TokenTable, hotwords: Sequence[str] = ()) -> None:
        """See `make_scorer`."""
        self._score, self._tokens = config.hotwords_score, token_table
        phrases = self.spell(hotwords)
        if config.hotwords_file is not None:
            phrases += tuple(read_hotwords(config.hotwords_file, token_table, config.hotwords_score))
        self._scorers: list[Scorer] = [self._automaton([phrases])] if phrases else []
        for path, scale in ((config.ngram_lm, config.lm_scale), (config.lodr_lm, -config.lodr_scale)):
            if path is not None:
                ngrams = read_arpa(path, token_table)
                self._scorers.append(NgramScorer(ngrams, scale=scale, blank_id=token_table.blank_id))
        self.of_all = self._sum(self._scorers)
        """Of utterances without hotwords of their own; None if nothing is wanted."""

    def spell(self, hotwords: Sequence[str]) -> tuple[HotwordPhrase, ...]:
        """Phrases in tokens, with the configuration's score.

        Raises:
            ValueError: the tokens cannot spell one, or the hotwords are one text.
        """
        if isinstance(hotwords, str):
            raise ValueError(f"`hotwords` must be a list of phrases, [{hotwords!r}] perhaps, but are one text.")
        return tuple(spell_hotwords([(phrase, self._score) for phrase in hotwords], self._tokens))

    def of_each(self, phrases: Sequence[Sequence[HotwordPhrase]]) -> Scorer | None:
        """Of a batch: the phrases of each utterance."""
        return self._sum([*self._scorers, self._automaton(phrases)]) if any(phrases) else self.of_all

    def _automaton(self, phrases: Sequence[Sequence[HotwordPhrase]]) -> Hotwords:
        return Hotwords(phrases, vocab_size=len(self._tokens), blank_id=self._tokens.blank_id)

    @staticmethod
    def _sum(scorers: Sequence[Scorer]) -> Scorer | None:
        return SumOfScorers(scorers) if len(scorers) > 1 else (*scorers, None)[0]
