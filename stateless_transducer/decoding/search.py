# pyright: strict
"""Decoding of features or encoder output with the search of a `SearchConfig`.

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


def decode_features(
    model: TransducerModel,
    features: Array,
    feature_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[Hypothesis]:
    """Return the best hypothesis of each utterance. See `decode_features_nbest` for the arguments.

    Raises:
        ValueError: the model's output for an utterance is not finite, or see `decode_features_nbest`.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model, tokens = checkpoint.model(), checkpoint.token_table
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> config = SearchConfig("modified_beam_search")
        >>> (hypothesis,) = decode_features(model, features, torch.tensor([features.shape[1]]), config)
        >>> tokens.decode(hypothesis.tokens)
        '今天很好'
    """
    return best_of(decode_features_nbest(model, features, feature_lens, config, scorer))


def best_of(nbest: Sequence[Sequence[Hypothesis]]) -> list[Hypothesis]:
    """Return the best hypothesis of each utterance, given all of them, best first.

    Raises:
        ValueError: the model's output for an utterance is not finite.
    """
    best = [hypotheses[0] for hypotheses in nbest]
    for n, hypothesis in enumerate(best, start=1):
        if math.isnan(hypothesis.score):
            raise ValueError(f"The model's output is not finite for utterance {n} of a batch of {len(best)}.")
    return best


@without_gradients
def decode_features_nbest(
    model: TransducerModel,
    features: Array,
    feature_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """Return the final hypotheses of each utterance, best first; greedy search has one.

    Args:
        model: encoder, decoder and joiner.
        features: (N, T_in, F), NumPy or torch as the model takes them.
        feature_lens: (N,). An utterance too short for one encoder frame gives an empty hypothesis.
        config: method and options of the search.
        scorer: hotwords and language models for a beam; `make_scorer` builds the scorer of a configuration.

    Raises:
        ValueError: the configuration names hotwords or a language model, but `scorer` is None.

    Example:
        >>> checkpoint = load_checkpoint("model.pt")
        >>> model, tokens = checkpoint.model(), checkpoint.token_table
        >>> features = torch.from_numpy(fbank(read_audio("a.wav", 16000), checkpoint.fbank_config))[None]
        >>> config = SearchConfig("modified_beam_search", beam_size=4)
        >>> (nbest,) = decode_features_nbest(model, features, torch.tensor([features.shape[1]]), config)
        >>> len(nbest), tokens.decode(nbest[0].tokens)
        (4, '今天很好')
    """
    return decode_encoder_out(model, *encode(model, features, feature_lens), config, scorer)


@without_gradients
def encode(model: TransducerModel, features: Array, feature_lens: Array) -> tuple[Array, Array]:
    """Run the encoder on features of any length: (N, T_in, F), (N,) to encoder_out (N, T, D) and its lengths (N,)."""
    return model.encode(_wide_enough(features, model.subsampling.min_frames), feature_lens)


def decode_encoder_out(
    model: TransducerSteps,
    encoder_out: Array,
    encoder_out_lens: Array,
    config: SearchConfig,
    scorer: Scorer | None = None,
) -> list[list[Hypothesis]]:
    """Return the final hypotheses of each utterance from the output of `encode`. See `decode_features_nbest`."""
    if scorer is None and config.scorer_files:
        names = " and ".join(f"`{name}`" for name in config.scorer_files)
        raise ValueError(
            f"`scorer` is None, but the configuration has {names}. Pass `scorer=make_scorer(config, token_table)`."
        )
    options = logit_options(config)
    if config.decoding_method == "greedy_search":
        best = greedy_search(
            model, encoder_out, encoder_out_lens, max_symbols_per_frame=config.max_sym_per_frame, options=options
        )
        return [[hypothesis] for hypothesis in best]
    search = beam_search if config.decoding_method == "beam_search" else modified_beam_search
    return search(
        model,
        encoder_out,
        encoder_out_lens,
        beam_size=config.beam_size,
        length_norm=config.length_norm,
        options=options,
        scorer=scorer,
    )


def logit_options(config: SearchConfig) -> LogitOptions:
    """Return the adjustments of the logits that a configuration asks for."""
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
    """Build the scorer of a configuration's hotwords and language models, with further hotwords; None without any.

    Args:
        config: names the files to read, and the scores and scales.
        token_table: the model's tokens.
        hotwords: further phrases to boost.

    Raises:
        ValueError: a file cannot be read, the model's tokens cannot spell a phrase, or `hotwords` is a string.

    Example:
        >>> config = SearchConfig("modified_beam_search", ngram_lm="lm.arpa")
        >>> scorer = make_scorer(config, load_checkpoint("model.pt").token_table, hotwords=["今天"])
        >>> scorer.state_size  # one integer for the hotwords, one for the n-grams
        2
    """
    return Scorers(config, token_table, hotwords).shared


class Scorers:
    """The scorers of a configuration, read once, for batches with hotwords per utterance."""

    def __init__(self, config: SearchConfig, token_table: TokenTable, hotwords: Sequence[str] = ()) -> None:
        """Read the files. See `make_scorer` for the arguments and errors."""
        self._score, self._tokens = config.hotwords_score, token_table
        phrases = self.spell(hotwords)
        if config.hotwords_file is not None:
            phrases += tuple(read_hotwords(config.hotwords_file, token_table, config.hotwords_score))
        self._scorers: list[Scorer] = [self._automaton([phrases])] if phrases else []
        for path, scale in ((config.ngram_lm, config.lm_scale), (config.lodr_lm, -config.lodr_scale)):
            if path is not None:
                ngrams = read_arpa(path, token_table)
                self._scorers.append(NgramScorer(ngrams, scale=scale, blank_id=token_table.blank_id))
        self.shared: Scorer | None = _summed(self._scorers)
        """Scorer for utterances without hotwords of their own; None without hotwords and language models."""

    def spell(self, hotwords: Sequence[str]) -> tuple[HotwordPhrase, ...]:
        """Convert phrases to tokens, with the configuration's score.

        Raises:
            ValueError: the tokens cannot spell a phrase, or `hotwords` is a string.
        """
        if isinstance(hotwords, str):
            raise ValueError(f"`hotwords` must be a list of phrases, but is a string. Pass [{hotwords!r}].")
        return tuple(spell_hotwords([(phrase, self._score) for phrase in hotwords], self._tokens))

    def for_batch(self, phrases: Sequence[Sequence[HotwordPhrase]]) -> Scorer | None:
        """Return the scorer for a batch, given the additional phrases of each utterance."""
        return _summed([*self._scorers, self._automaton(phrases)]) if any(phrases) else self.shared

    def _automaton(self, phrases: Sequence[Sequence[HotwordPhrase]]) -> Hotwords:
        return Hotwords(phrases, vocab_size=len(self._tokens), blank_id=self._tokens.blank_id)


def _summed(scorers: Sequence[Scorer]) -> Scorer | None:
    """Return one scorer that adds up the given ones; None for none."""
    if not scorers:
        return None
    return scorers[0] if len(scorers) == 1 else SumOfScorers(scorers)
