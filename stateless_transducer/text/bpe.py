"""Pieces of words, for alphabetic scripts: a unigram model (Kudo, "Subword regularization", ACL 2018).

sentencepiece learns it; the pieces and their scores are all that is needed to spell a text, so nothing of sentencepiece
is when a model is used. The field, icefall's ``lang_bpe_500`` and sherpa-onnx call these tokens BPE, too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stateless_transducer.files import read_lines

SPACE = "\u2581"
"""The sign of sentencepiece and sherpa-onnx for a blank; the first piece of a word begins with it."""
_MOST_SENTENCES = 1_000_000
"""So many texts, drawn by chance, are enough to learn from."""
_DROPPED = str.maketrans("", "", "\0\u2585")
"""sentencepiece takes texts with the second for its own marks, and leaves the whole text out."""
_PRIVATE = range(0xE000, 0xF8FF)
"""Characters that no text should have."""


class Segmenter:
    """Cuts words into the pieces whose scores have the largest sum.

    Args:
        scores: piece -> log-probability.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self._scores = scores
        self._longest = max(map(len, scores), default=1)
        # a character that is no piece: worse than any way without it
        self._unknown = min(scores.values(), default=0.0) - 10
        # few words make most of any text
        self.pieces = lru_cache(maxsize=100_000)(self._pieces)

    def __reduce__(self) -> tuple[type[Segmenter], tuple[Mapping[str, float]]]:
        """A pickle of the scores: what is remembered of words stays behind."""
        return Segmenter, (self._scores,)

    def _pieces(self, word: str) -> tuple[str, ...]:
        """Of one word; a character that no piece covers stands alone."""
        best, cuts = [0.0], [0]
        for end in range(1, len(word) + 1):
            value, cut = -math.inf, end - 1
            for start in range(max(0, end - self._longest), end):
                score = self._scores.get(word[start:end], self._unknown if start == end - 1 else -math.inf)
                if best[start] + score > value:
                    value, cut = best[start] + score, start
            best.append(value)
            cuts.append(cut)
        found, end = [], len(word)
        while end:
            found.append(word[cuts[end] : end])
            end = cuts[end]
        return tuple(reversed(found))


def learn_pieces(texts: Iterable[str], vocab_size: int, special: tuple[str, ...]) -> dict[str, float]:
    """Tokens of a corpus and their scores in the order of their ids: the special ones, then pieces, likeliest first.

    Args:
        texts: transcripts, words with blanks between them.
        vocab_size: number of tokens, the special ones included; fewer where the texts have no more to offer.
        special: tokens that stand for no text.

    Raises:
        ValueError: sentencepiece is not there, the texts are empty, or have more characters than there are tokens.
    """
    sentencepiece = _sentencepiece("`--token bpe`")
    # no text has half a character, but JSON can write one
    texts = [text.translate(_DROPPED).encode("utf-8", "ignore").decode() for text in texts]
    characters = {c for text in texts for c in text if not c.isspace()}
    # each character is a token, and the mark of a word's beginning
    least = len(characters | {SPACE}) + len(special)
    if not characters:
        raise ValueError("`--token bpe`: the training texts are empty.")
    if vocab_size < least:
        raise ValueError(
            f"`--vocab-size` must be at least {least}, the number of characters of the training texts and "
            f"{len(special)} special tokens, but is {vocab_size}."
        )
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - len(special) + 1,
            hard_vocab_limit=False,
            character_coverage=1.0,
            required_chars="".join(sorted(characters)),
            # texts are spelt as they are
            normalization_rule_name="identity",
            input_sentence_size=_MOST_SENTENCES,
            shuffle_input_sentence=True,
            max_sentence_length=1_000_000,
            # the same tokens on every machine
            num_threads=1,
            # the special tokens come to it later: their names may be part of a text
            unk_piece=next(chr(code) for code in _PRIVATE if chr(code) not in characters),
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as err:
        raise ValueError(f"sentencepiece cannot learn tokens from the training texts: {err}") from err
    scores = _scores(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))
    return dict.fromkeys(special, 0.0) | dict(list(scores.items())[1:])


def model_scores(path: Path) -> dict[str, float]:
    """Tokens and scores of sentencepiece's own file, icefall's ``bpe.model``.

    Raises:
        ValueError: sentencepiece is not there, or the file is none of its unigram models.
    """
    sentencepiece = _sentencepiece(f"{path.name}, with no bpe.vocab beside it,")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as err:
        raise ValueError(f"{path}: cannot be read as a model of sentencepiece ({err}).") from err
    scores = _scores(processor)
    segmenter, letters = Segmenter(scores), "".join(scores).replace(SPACE, "")
    words = [letters[start : start + 9] for start in range(0, min(len(letters), 2000), 9)]
    unlike = sum(list(segmenter.pieces(SPACE + word)) != processor.encode_as_pieces(word) for word in words)
    # where two ways score the same, either may be taken; models of other types are unlike nearly everywhere
    if unlike > len(words) / 4:
        raise ValueError(
            f"{path}: is no unigram model of sentencepiece; its scores alone do not say how it cuts words."
        )
    return scores


def read_scores(path: Path) -> dict[str, float]:
    """Pieces and scores of a ``bpe.vocab``: lines of both, with a tab or blanks between.

    Raises:
        ValueError: it cannot be read.
    """
    scores = {}
    try:
        lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as err:
        raise ValueError(f"{path}: cannot be read as pieces and scores: {err}") from err
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            piece, score = line.split()
            scores[piece] = _rounded(float(score))
        except ValueError:
            raise ValueError(f"{path}:{number}: must be `piece<tab>score`, but is {line!r}.") from None
    return scores


def _scores(processor: Any) -> dict[str, float]:
    return {processor.id_to_piece(i): _rounded(processor.get_score(i)) for i in range(len(processor))}


def _rounded(score: float) -> float:
    """Six digits say as much as there is, and are what bpe.vocab holds."""
    if not math.isfinite(score):
        raise ValueError(f"A score is {score}.")
    return float(f"{score:.6g}")


def _sentencepiece(what: str) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise ValueError(f"{what} needs sentencepiece: pip install 'stateless-transducer[train]'.") from None
    return sentencepiece
