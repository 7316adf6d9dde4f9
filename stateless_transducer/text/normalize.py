"""Plain form of transcripts, and the characters in them that look like noise: `H e E 1 2 , !`.

Unicode's data decide what is a letter, a digit or punctuation. Numbers are not spelled out: how they are read depends
on language and context.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from stateless_transducer.text.tokens import SPACE

_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc\uff07`\u00b4", "''''''")
_RARE_SHARE = 0.01
"""Share of all letters below which those of another script look like noise."""


def normalize(text: str) -> str:
    """Return a text in Unicode's form NFKC, in small letters, without punctuation and symbols.

    NFKC replaces full-width letters and digits by the usual ones. Punctuation and symbols become blanks, except
    apostrophes inside words and `SPACE`; invisible characters disappear. Digits stay.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower())
    kept: list[str] = []
    for place, character in enumerate(folded):
        if _is_spoken(character) or _is_inside_word(folded, place):
            kept.append(character)
        elif unicodedata.category(character) != "Cf":
            kept.append(" ")
    return " ".join("".join(kept).split())


def suspect_characters(texts: Iterable[str]) -> dict[str, Counter[str]]:
    """Return the characters of texts that look like noise, with their counts, by the reason in words.

    Capital letters are noise only beside small ones, and letters of a script only if they are rare.
    """
    counts = Counter(
        character
        for text in texts
        for place, character in enumerate(text)
        if not character.isspace() and not _is_inside_word(text, place)
    )
    scripts: Counter[str] = Counter()
    for character, count in counts.items():
        if character.isalpha():
            scripts[_script(character)] += count
    rare = {script for script, count in scripts.items() if count < _RARE_SHARE * scripts.total()}
    has_small = any(character.islower() for character in counts)
    found: dict[str, Counter[str]] = {}
    for character, count in counts.items():
        reason = _reason(character, has_small=has_small, rare=rare)
        if reason:
            found.setdefault(reason, Counter())[character] = count
    return found


def _reason(character: str, *, has_small: bool, rare: set[str]) -> str:
    """Return why a character looks like noise; empty if it does not."""
    category = unicodedata.category(character)
    if category in ("Nd", "No"):
        return "digits, to be spelled out in the source"
    if not _is_spoken(character):
        return "punctuation and symbols" if category[0] in "PS" else "invisible characters"
    if unicodedata.normalize("NFKC", character) != character:
        return "full-width and other variants"
    if not character.isalpha():
        return ""
    script = _script(character)
    if script in rare:
        return f"rare {script.capitalize()} letters"
    return "capital letters beside small ones" if has_small and character.isupper() else ""


def _is_spoken(character: str) -> bool:
    """Whether a character is a letter, a mark on a letter, a digit, or `SPACE`."""
    return unicodedata.category(character)[0] in "LMN" or character == SPACE


def _is_inside_word(text: str, place: int) -> bool:
    """Whether a character is an apostrophe between letters."""
    return text[place] == "'" and text[max(0, place - 1) : place].isalpha() and text[place + 1 : place + 2].isalpha()


def _script(character: str) -> str:
    """Return the script in a character's name: LATIN, CJK, HIRAGANA, CYRILLIC."""
    script = re.split("[ -]", unicodedata.name(character, "UNKNOWN"))[0]
    # iteration marks and the like
    return "CJK" if script == "IDEOGRAPHIC" else script
