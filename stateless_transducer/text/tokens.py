"""The token table, which spells a text in ids and reads ids as text, and the lang folder that holds it.

Tokens are characters, words or pieces of words. Between characters, white space is a token (`SPACE`, the sign of
sentencepiece and sherpa-onnx) only if the table has it. A piece that begins a word begins with `SPACE`.

`write_char_lang` writes a folder like that of icefall's ``prepare_char.py``, without the finite-state graphs
(``L.pt``, ``L_disambig.pt``), which the transducer never uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from stateless_transducer.files import check_file, parse_json, read_lines, write_text
from stateless_transducer.text.bpe import SPACE, Segmenter, learn_pieces, model_scores, read_scores
from stateless_transducer.text.byte_level import is_byte_level, is_of_bytes, text_of_bytes, words_in_bytes

Unit = Literal["char", "word", "bpe", "bbpe"]
"""Characters, words, pieces of words, or pieces of the bytes of words (byte-level BPE)."""

BLANK, SOS_EOS, UNKNOWN = "<blk>", "<sos/eos>", "<unk>"
SPECIAL = (BLANK, SOS_EOS, UNKNOWN)

SCORES_FILE = "bpe.vocab"
_MODEL_FILES = ("bpe.model", "bbpe.model")
_OF_PIECES = ("bpe", "bbpe")
UNIT_FILE = "lang.json"
"""File beside ``tokens.txt`` that names the unit, and the corpus of the tokens."""

_FIRST_WORDS = ("<eps>", "!SIL", "<SPOKEN_NOISE>", "<UNK>")
_LAST_WORDS = ("#0", "<s>", "</s>")

# blanks beside CJK ideographs do not separate words; they only show how a transcript was segmented
_CJK = "\u2e80-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_CJK_GAP = re.compile(rf"(?<=[{_CJK}])\s+|\s+(?=[{_CJK}])")


@dataclass(frozen=True)
class TokenTable:
    """All tokens in the order of their ids, from 0.

    Example:
        >>> tokens = TokenTable(("<blk>", "<sos/eos>", "<unk>", "今", "天"))
        >>> tokens.encode("今天"), tokens.decode([3, 4])
        ([3, 4], '今天')
    """

    symbols: tuple[str, ...]
    unit: Unit = "char"
    scores: tuple[float, ...] = ()
    """Log-probability of each symbol, for pieces of words ("bpe", "bbpe"); otherwise empty. Byte-level pieces without
    scores can be decoded, not encoded."""

    def __post_init__(self) -> None:
        if len(set(self.symbols)) != len(self.symbols):
            duplicate = next(s for i, s in enumerate(self.symbols) if s in self.symbols[:i])
            raise ValueError(f"The token table holds {duplicate!r} twice.")
        for name in (BLANK, UNKNOWN):
            if name not in self.symbols:
                raise ValueError(f"The token table lacks {name!r}.")
        if self.unit not in get_args(Unit):
            raise ValueError(f'`unit` must be "char", "word", "bpe" or "bbpe", but is {self.unit!r}.')
        if self.unit == "bbpe":
            other = next((s for s in self.symbols if s not in SPECIAL and not is_of_bytes(s)), None)
            if other is not None:
                raise ValueError(f'`unit` is "bbpe", but {other!r} has characters that stand for no byte.')
        is_without = self.unit == "bbpe" and not self.scores
        if len(self.scores) != (len(self.symbols) if self.unit in _OF_PIECES and not is_without else 0):
            raise ValueError(
                f"A token table of {len(self.symbols)} {self.unit} tokens cannot have {len(self.scores)} scores; "
                "pieces of words have one each, characters and words none."
            )

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Symbol -> id."""
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @property
    def blank_id(self) -> int:
        """Id of the blank."""
        return self.ids[BLANK]

    @property
    def unknown_id(self) -> int:
        """Id of the token for units that the table lacks."""
        return self.ids[UNKNOWN]

    @property
    def spells_words(self) -> bool:
        """Whether tokens are characters, with `SPACE` for the blanks between words."""
        return self.unit == "char" and SPACE in self.ids

    @cached_property
    def _segmenter(self) -> Segmenter:
        pieces = zip(self.symbols, self.scores, strict=True)
        return Segmenter({piece: score for piece, score in pieces if piece not in SPECIAL})

    def split(self, text: str) -> list[str]:
        """Split a text into units; a blank between words is `SPACE` if the table has it."""
        if self.unit == "word":
            return text.split()
        text = tidied(text)
        if self.unit in _OF_PIECES:
            if not self.scores:
                raise ValueError(
                    "The tokens are byte-level BPE without scores, and cannot spell a text. Import the model with "
                    "`bpe_model`."
                )
            words = words_in_bytes(text) if self.unit == "bbpe" else text.split()
            return [piece for word in words for piece in self._segmenter.pieces(SPACE + word)]
        return list(text.replace(" ", SPACE if self.spells_words else ""))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text's units; `UNKNOWN` for units not in the table or spelled like special tokens."""
        return self.ids_of(self.split(text))

    def ids_of(self, units: Iterable[str]) -> list[int]:
        """Return the ids of units, with the same exceptions as `encode`."""
        return [self.unknown_id if unit in SPECIAL else self.ids.get(unit, self.unknown_id) for unit in units]

    def unknown_units(self, text: str) -> list[str]:
        """Return the units of a text that the table lacks, in order, repeats included.

        For byte-level BPE, these are words and ideographs with a byte that no piece has; none without scores.
        """
        if self.unit == "bbpe":
            words = words_in_bytes(tidied(text)) if self.scores else []
            return [
                text_of_bytes(word)
                for word in words
                if not set(self._segmenter.pieces(SPACE + word)) <= self.ids.keys()
            ]
        return [unit for unit in self.split(text) if unit not in self.ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text that ids spell."""
        symbols = [self.symbols[i] for i in ids]
        if self.unit == "word":
            return " ".join(symbols)
        if self.unit == "bbpe":
            return tidied(text_of_bytes("".join(symbol for symbol in symbols if symbol not in SPECIAL)))
        text = "".join(symbols).replace(SPACE, " ").strip()
        return " ".join(text.split()) if self.unit == "bpe" else text

    def join(self, texts: Iterable[str]) -> str:
        """Join texts, with a blank between them if the table puts blanks between words."""
        text = " ".join(text for text in texts if text)
        if self.unit == "word":
            return text
        return close_gaps(text) if self.spells_words or self.unit in _OF_PIECES else text.replace(" ", "")

    def write(
        self, lang_dir: str | Path, extra: tuple[str, ...] = (), *, mark_words: bool = False, corpus: str | None = None
    ) -> None:
        """Write ``tokens.txt`` (icefall's format) and ``lang.json`` (the unit, the corpus) into a folder.

        For pieces of words, also write ``bpe.vocab``, with a line ``piece<tab>score`` per piece; sherpa-onnx needs it
        for hotwords.

        Args:
            lang_dir: created if it does not exist.
            extra: symbols to write after the last token that are not tokens: a character table's ``#0``, ``#1``.
            mark_words: begin each word with `SPACE`: programs that only join symbols then put blanks between words.
            corpus: name of the prepared corpus that the tokens are from.
        """
        lang_dir = Path(lang_dir)
        mark = SPACE if mark_words and self.unit == "word" else ""
        symbols = (symbol if symbol in SPECIAL else mark + symbol for symbol in (*self.symbols, *extra))
        lines = (f"{symbol} {i}\n" for i, symbol in enumerate(symbols))
        write_text(lang_dir / "tokens.txt", "".join(lines))
        if self.scores:
            write_text(lang_dir / SCORES_FILE, self.scores_text())
        settings = {"unit": self.unit} if corpus is None else {"unit": self.unit, "corpus": corpus}
        write_text(lang_dir / UNIT_FILE, json.dumps(settings) + "\n")

    def scores_text(self) -> str:
        """Return the text of ``bpe.vocab``: a line ``piece<tab>score`` per symbol."""
        return "".join(f"{symbol}\t{score:g}\n" for symbol, score in zip(self.symbols, self.scores, strict=True))

    def facts(self) -> dict[str, Any]:
        """Return the table as plain values for JSON; `from_facts` is the inverse."""
        scores = {"scores": list(self.scores)} if self.scores else {}
        return {"symbols": list(self.symbols), "unit": self.unit, **scores}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> TokenTable:
        """Return the table of `facts`.

        Raises:
            ValueError: a value is missing or of another type, or the table is invalid.
        """
        symbols, unit, scores = facts.get("symbols"), facts.get("unit"), facts.get("scores", [])
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in cast("list[Any]", symbols)):
            raise ValueError("`symbols` must be a list of strings.")
        if not isinstance(scores, list) or not all(isinstance(score, float) for score in cast("list[Any]", scores)):
            raise ValueError("`scores` must be a list of numbers.")
        return cls(tuple(cast("list[str]", symbols)), cast("Unit", unit), tuple(cast("list[float]", scores)))

    @classmethod
    def read(cls, lang_dir: str | Path, *, bpe_model: Path | None = None) -> TokenTable:
        """Read a folder with ``tokens.txt``.

        Without ``lang.json`` (icefall writes none), tokens are pieces of words if a ``bpe.vocab`` or sentencepiece's
        ``bpe.model`` has a score for each of them, and otherwise characters. Disambiguation symbols (``#0``, ``#1``,
        ...) of a character table are skipped.

        Args:
            lang_dir: the folder, or the path of its ``tokens.txt``.
            bpe_model: sentencepiece's model, if it is elsewhere.

        Raises:
            ValueError: there is no such file, or a line, symbol or id is invalid.
        """
        lang_dir = Path(lang_dir)
        path = lang_dir if lang_dir.is_file() else lang_dir / "tokens.txt"
        if not path.is_file():
            raise ValueError(f"`lang_dir` {lang_dir} holds no tokens.txt; make it with `transducer prepare`.")
        settings = path.parent / UNIT_FILE
        unit = _read_unit(settings) if settings.is_file() else None
        by_id = read_symbols(path)
        if unit == "word":
            by_id = {i: symbol.removeprefix(SPACE) for i, symbol in by_id.items()}
        else:
            by_id = {i: symbol for i, symbol in by_id.items() if not re.fullmatch(r"#\d+", symbol)}
        if sorted(by_id) != list(range(len(by_id))):
            missing = next(i for i in range(len(by_id)) if i not in by_id)
            raise ValueError(f"{path}: ids must run from 0 without a gap, but {missing} is missing.")
        symbols = tuple(by_id[i] for i in range(len(by_id)))
        if unit in ("char", "word"):
            if bpe_model is not None:
                raise ValueError(
                    f'`bpe_model` is {bpe_model}, but the unit of the tokens is "{unit}" ({settings}). Remove it, or '
                    f"correct {settings.name}."
                )
            return cls(symbols, unit)
        scores = piece_scores(path.parent, symbols, bpe_model)
        if scores is None and (unit == "bpe" or bpe_model is not None):
            place = bpe_model or path.parent / SCORES_FILE
            raise ValueError(f"{place}: must have a score for each of the tokens in {path.name}.")
        if unit == "bbpe" or is_byte_level(symbol for symbol in symbols if symbol not in SPECIAL):
            return cls(symbols, "bbpe", scores or ())
        return cls(symbols, "char") if scores is None else cls(symbols, "bpe", scores)


def read_symbols(path: Path) -> dict[int, str]:
    """Read lines ``symbol id`` into a mapping from id to symbol; a line with only an id is a blank between words.

    Raises:
        ValueError: there is no such file, or a line is invalid.
    """
    check_file(path)
    try:
        lines = read_lines(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text.") from None
    symbols: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) > 2 or not fields[-1].isdecimal():
            raise ValueError(f"{path}:{number}: must be `symbol id`, but is {line!r}.")
        symbol, i = (fields[0] if len(fields) == 2 else SPACE), int(fields[-1])
        if i in symbols:
            raise ValueError(f"{path}:{number}: id {i} stands for {symbols[i]!r} already.")
        symbols[i] = symbol
    return symbols


def _read_unit(settings: Path) -> Unit:
    """Return the unit in a ``lang.json``; `TokenTable` checks it."""
    try:
        return parse_json(settings.read_bytes())["unit"]
    except (ValueError, TypeError, KeyError) as err:
        expected = '{"unit": "char"}, or "word", "bpe" or "bbpe"'
        raise ValueError(
            f"{settings}: must be {expected}. Correct it, or remove it if another program wrote it."
        ) from err


def lang_corpus(lang_dir: Path) -> str | None:
    """Return the name of the corpus in a folder's ``lang.json``; None if there is none, or the file is not ours."""
    try:
        settings: Any = parse_json((lang_dir / UNIT_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return cast("dict[str, Any]", settings).get("corpus") if isinstance(settings, dict) else None


def piece_scores(folder: Path, symbols: Sequence[str], model: Path | None = None) -> tuple[float, ...] | None:
    """Return the scores of tokens that are pieces of words, from a model, or from the files in their folder.

    The files are ``bpe.vocab``, ``bpe.model`` and ``bbpe.model``; the first is used.

    The result is None if there is no such file, if it lacks some of the tokens (they are characters), or if some tokens
    are single bytes.

    Raises:
        ValueError: the file cannot be read.
    """
    path = model or next((folder / name for name in (SCORES_FILE, *_MODEL_FILES) if (folder / name).is_file()), None)
    if path is None:
        return None
    scores = read_scores(path) if path.suffix == ".vocab" else model_scores(path)
    if any(symbol not in scores or symbol.startswith("<0x") for symbol in symbols):
        return None
    return tuple(scores[symbol] for symbol in symbols)


def tidied(text: str) -> str:
    """Return a text with one blank between words and none beside ideographs; `SPACE` in it counts as a blank."""
    return " ".join(close_gaps(text.replace(SPACE, " ")).split())


def close_gaps(text: str) -> str:
    """Remove blanks beside CJK ideographs."""
    return _CJK_GAP.sub("", text)


def has_ideographs(text: str) -> bool:
    """Report whether a text has CJK characters, whose scripts put no blanks between words."""
    return re.search(f"[{_CJK}]", text) is not None


def build_token_table(
    texts: Iterable[str], unit: Unit, *, keep_spaces: bool = False, vocab_size: int = 500
) -> TokenTable:
    """Build a table of the special tokens and all units of texts, in order of first appearance.

    Pieces are in order of their scores, the highest first.

    Args:
        texts: transcripts.
        unit: characters, words, or pieces of words or of their bytes.
        keep_spaces: add `SPACE` if a text has a blank between two words of an alphabetic script.
        vocab_size: number of tokens if they are pieces, see `learn_pieces`.

    Raises:
        ValueError: see `learn_pieces`.
    """
    if unit in _OF_PIECES:
        texts = map(tidied, texts)
        if unit == "bbpe":
            texts = (" ".join(words_in_bytes(text)) for text in texts)
        scores = learn_pieces(texts, vocab_size, SPECIAL, unit=unit)
        return TokenTable(tuple(scores), unit, tuple(scores.values()))
    splitter = TokenTable((*SPECIAL, SPACE) if keep_spaces and unit == "char" else SPECIAL, unit)
    seen: dict[str, None] = dict.fromkeys(SPECIAL)
    for text in texts:
        seen.update(dict.fromkeys(splitter.split(text)))
    return TokenTable(tuple(seen), unit)


def write_char_lang(lang_dir: Path, transcripts: Sequence[str]) -> TokenTable:
    """Write ``text, transcript_words.txt, words.txt, lexicon.txt, lexicon_disambig.txt, tokens.txt``.

    Args:
        lang_dir: created if it does not exist.
        transcripts: texts of all splits (icefall's choice), with blanks between words.
    """
    table = build_token_table(transcripts, "char")
    words = sorted({word for text in transcripts for word in text.split()} - set(_FIRST_WORDS) - set(_LAST_WORDS))
    numbered = enumerate((*_FIRST_WORDS, *words, *_LAST_WORDS))
    write_text(lang_dir / "words.txt", "".join(f"{word} {i}\n" for i, word in numbered))
    lexicon = [(word, tuple(word)) for word in words if not set(word) - set(table.symbols)]
    lexicon.append(("<UNK>", (UNKNOWN,)))
    write_text(lang_dir / "lexicon.txt", _lexicon_text(lexicon))
    disambiguated = _disambiguate(lexicon)
    write_text(lang_dir / "lexicon_disambig.txt", _lexicon_text(disambiguated))
    table.write(lang_dir, extra=("#0", "#1") if disambiguated != lexicon else ("#0",))
    # written last: `lang_is_of` takes this file as a sign that all others are complete
    for name in ("transcript_words.txt", "text"):
        write_text(lang_dir / name, _text(transcripts))
    return table


def lang_is_of(lang_dir: Path, transcripts: Sequence[str]) -> bool:
    """Report whether `write_char_lang` has written a folder for the same transcripts."""
    path = lang_dir / "text"
    return path.is_file() and path.read_text(encoding="utf-8") == _text(transcripts)


def _text(transcripts: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in transcripts)


def _disambiguate(lexicon: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """Mark with ``#1`` each word that is a prefix of another; words of characters never have the same units."""
    prefixes = {units[:i] for _, units in lexicon for i in range(1, len(units))}
    return [(word, (*units, "#1") if units in prefixes else units) for word, units in lexicon]


def _lexicon_text(lexicon: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    return "".join(f"{word} {' '.join(units)}\n" for word, units in lexicon)
