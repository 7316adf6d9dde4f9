"""Pieces of words, for alphabetic scripts: a unigram model (Kudo, "Subword regularization", ACL 2018).

sentencepiece learns the pieces. Their scores are enough to split a text, so that a model is used without sentencepiece.
The tokens are called BPE, as in icefall's ``lang_bpe_500`` and in sherpa-onnx.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stateless_transducer.files import check_file, read_lines

SPACE = "\u2581"
"""Sign for a blank in sentencepiece and sherpa-onnx; the first piece of a word begins with it."""
_MOST_SENTENCES = 1_000_000
"""Number of texts, drawn at random, to learn pieces from at most."""
_DROPPED = str.maketrans("", "", "\0\u2585")
"""Characters to delete: sentencepiece skips every text that has one of them."""
_LETTERS = {"bpe": "characters", "bbpe": "different bytes"}
"""Shortest pieces by unit."""
_PRIVATE = range(0xE000, 0xF8FF)
"""Unicode's private use area: one of its characters names sentencepiece's unknown token."""


class Segmenter:
    """Splits words into the pieces whose scores have the largest sum.

    Args:
        scores: piece -> log-probability.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self._scores = scores
        self._longest = max(map(len, scores), default=1)
        # score of a character that is no piece: lower than that of any piece
        self._unknown = min(scores.values(), default=0.0) - 10
        # most of a text consists of few different words
        self.pieces: Callable[[str], tuple[str, ...]] = lru_cache(maxsize=100_000)(self._pieces)

    def __reduce__(self) -> tuple[type[Segmenter], tuple[Mapping[str, float]]]:
        """Pickle the scores alone, without the cache of words."""
        return Segmenter, (self._scores,)

    def _pieces(self, word: str) -> tuple[str, ...]:
        """Split one word; a character that no piece covers is a piece of its own."""
        best, cuts = [0.0], [0]
        for end in range(1, len(word) + 1):
            value, cut = -math.inf, end - 1
            for start in range(max(0, end - self._longest), end):
                score = self._scores.get(word[start:end], self._unknown if start == end - 1 else -math.inf)
                if best[start] + score > value:
                    value, cut = best[start] + score, start
            best.append(value)
            cuts.append(cut)
        pieces, end = [], len(word)
        while end:
            pieces.append(word[cuts[end] : end])
            end = cuts[end]
        return tuple(reversed(pieces))


def learn_pieces(
    texts: Iterable[str], vocab_size: int, special: tuple[str, ...], *, unit: str = "bpe"
) -> dict[str, float]:
    """Learn the tokens of a corpus; return their scores in the order of ids: special tokens, then pieces by score.

    Args:
        texts: transcripts with blanks between words.
        vocab_size: number of tokens, special tokens included; the result may have fewer if the texts are short.
        special: tokens that stand for no text.
        unit: value of the option `token` that asks for the pieces, for messages.

    Raises:
        ValueError: sentencepiece is not installed, the texts are empty, or have more letters than ``vocab_size``.
    """
    sentencepiece = _sentencepiece(f"`token={unit}`")
    # JSON can hold half of a surrogate pair, which is no text
    texts = [text.translate(_DROPPED).encode("utf-8", "ignore").decode() for text in texts]
    characters = {c for text in texts for c in text if not c.isspace()}
    # every character is a token, and so is the sign for a blank
    least = len(characters | {SPACE}) + len(special)
    if not characters:
        raise ValueError(f"`token={unit}`: the training texts are empty.")
    if vocab_size < least:
        raise ValueError(
            f"`vocab_size` must be at least {least}, the number of {_LETTERS[unit]} of the training texts and "
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
            # do not normalize texts
            normalization_rule_name="identity",
            input_sentence_size=_MOST_SENTENCES,
            shuffle_input_sentence=True,
            max_sentence_length=1_000_000,
            # the same tokens on every machine
            num_threads=1,
            # the special tokens are added later: a text may contain their names
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
    """Read tokens and scores from a file of sentencepiece, icefall's ``bpe.model``.

    Raises:
        ValueError: sentencepiece is not installed, or the file is not a unigram model of sentencepiece.
    """
    check_file(path)
    sentencepiece = _sentencepiece(f"{path.name}, with no bpe.vocab beside it,")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as err:
        raise ValueError(f"{path}: cannot be read as a model of sentencepiece ({err}).") from err
    scores = _scores(processor)
    segmenter, letters = Segmenter(scores), "".join(scores).replace(SPACE, "")
    words = [letters[start : start + 9] for start in range(0, min(len(letters), 2000), 9)]
    num_different = sum(list(segmenter.pieces(SPACE + word)) != processor.encode_as_pieces(word) for word in words)
    # ties may be split differently; models of other types differ nearly everywhere
    if num_different > len(words) / 4:
        raise ValueError(
            f"{path}: is not a unigram model of sentencepiece; its scores alone do not determine how it splits words."
        )
    return scores


def read_scores(path: Path) -> dict[str, float]:
    """Read a ``bpe.vocab``: a piece and its score per line, separated by a tab or blanks.

    Raises:
        ValueError: the file cannot be read, or a line is invalid.
    """
    scores = {}
    check_file(path)
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
    """Round a score to six digits, the precision of ``bpe.vocab``."""
    if not math.isfinite(score):
        raise ValueError(f"A score is {score}.")
    return float(f"{score:.6g}")


def _sentencepiece(what: str) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise ValueError(f"{what} needs sentencepiece: pip install 'stateless-transducer[train]'.") from None
    return sentencepiece
