"""Wording of messages: counts, and errors of other programs."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, singular or plural: "1 utterance", "2 batches".

    Args:
        number: count, from 0.
        noun: singular of a regular noun; words before it stay.
    """
    # after a hiss; the ch of "epoch" is none
    plural = f"{noun}es" if noun.endswith(("s", "x", "sh", "tch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def one_line(err: Exception) -> str:
    """Return the message of an error of another program as one line."""
    return " ".join(str(err).split())
