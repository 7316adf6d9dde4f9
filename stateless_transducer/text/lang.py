"""The folder ``lang_char``: tokens, words and lexicon as icefall's ``prepare_char.py`` writes them.

The finite-state graphs (``L.pt``, ``L_disambig.pt``) are left out: the transducer never uses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from stateless_transducer.files import write_text
from stateless_transducer.text.tokens import UNKNOWN, TokenTable, build_token_table

_FIRST_WORDS = ("<eps>", "!SIL", "<SPOKEN_NOISE>", "<UNK>")
_LAST_WORDS = ("#0", "<s>", "</s>")


def write_char_lang(lang_dir: Path, transcripts: Sequence[str]) -> TokenTable:
    """Write ``text, transcript_words.txt, words.txt, lexicon.txt, lexicon_disambig.txt, tokens.txt``.

    Args:
        lang_dir: made if need be.
        transcripts: texts with blanks between words, those of all splits, as icefall does.
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
    # last: says that all of the above are there
    for name in ("transcript_words.txt", "text"):
        write_text(lang_dir / name, _text(transcripts))
    return table


def lang_is_of(lang_dir: Path, transcripts: Sequence[str]) -> bool:
    """Whether `write_char_lang` has written the folder for these very transcripts."""
    path = lang_dir / "text"
    return path.is_file() and path.read_text(encoding="utf-8") == _text(transcripts)


def _text(transcripts: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in transcripts)


def _disambiguate(lexicon: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """Mark with ``#1`` each word that begins another one; words of characters never have the same units."""
    prefixes = {units[:i] for _, units in lexicon for i in range(1, len(units))}
    return [(word, (*units, "#1") if units in prefixes else units) for word, units in lexicon]


def _lexicon_text(lexicon: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    return "".join(f"{word} {' '.join(units)}\n" for word, units in lexicon)
