"""Hotwords and language models of a recognizer, and hotwords of a single sound."""

from __future__ import annotations

from collections.abc import Sequence

from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.fusion import Scorer
from stateless_transducer.decoding.search import Scorers
from stateless_transducer.recognition.segments import Phrases
from stateless_transducer.text.symbols import Vocabulary
from stateless_transducer.text.tokens import TokenTable


class SoundScorers:
    """Scorers of a recognizer's search, which sounds may extend by hotwords of their own."""

    def __init__(self, config: SearchConfig, token_table: Vocabulary, hotwords: Sequence[str]) -> None:
        """Read the files of a search.

        Raises:
            ValueError: The tokens cannot spell a hotword, or the search has no beam.
        """
        has_beam = config.decoding_method != "greedy_search"
        if hotwords and not has_beam:
            raise ValueError('Hotwords need a beam: SearchConfig(decoding_method="modified_beam_search").')
        self._scorers: Scorers | None = None
        if isinstance(token_table, TokenTable):
            self._scorers = Scorers(config, token_table, hotwords)
        elif hotwords or config.scorer_files:
            raise ValueError(
                "Hotwords and language models need tokens that spell a text: characters, words, or pieces of words "
                "with their scores in bpe.vocab, <unk> among them; those of this model's tokens.txt do not."
            )
        self.has_hotwords: bool = self._scorers is not None and has_beam
        """Whether sounds may have hotwords of their own."""

    def spell(self, hotwords: Sequence[str]) -> Phrases:
        """Convert the phrases of a sound to tokens.

        Raises:
            ValueError: The tokens cannot spell a phrase, or the search has no beam.
        """
        if not hotwords:
            return ()
        if not self.has_hotwords or self._scorers is None:
            raise ValueError("Hotwords need a search with a beam and a model whose tokens spell a text.")
        return self._scorers.spell(hotwords)

    def for_batch(self, phrases: Sequence[Phrases]) -> Scorer | None:
        """Return the scorer for a batch, given the phrases of each sound; None without hotwords and language models."""
        return None if self._scorers is None else self._scorers.for_batch(phrases)
