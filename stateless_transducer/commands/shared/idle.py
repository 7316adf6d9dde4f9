"""Options that would choose nothing are errors: who gives one means something by it.

A value that equals the default cannot be told from none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from stateless_transducer.decoding.config import SearchConfig

A_BEAM = "a beam: add `--decoding-method modified_beam_search`"


def refuse_idle(config: Any, needs: str, *, names: Sequence[str] = ()) -> None:
    """Of a dataclass of options, none of which chooses anything for want of something.

    Args:
        config: the dataclass.
        needs: what they want.
        names: of the fields that are meant; none: all.

    Raises:
        ValueError: one is not what it is by default.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        if value != each.default and (not names or each.name in names):
            raise ValueError(f"`{each.name}` {_as_written(value)} needs {needs}.")


def _as_written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def refuse_idle_search(search: SearchConfig, *, nbest: int = 1, sounds_have_hotwords: bool = False) -> None:
    """Options of a search that belong to another one, or to a file that is not given.

    Args:
        search: the options.
        nbest: another one.
        sounds_have_hotwords: whether there may be hotwords without a file.

    Raises:
        ValueError: there is one.
    """
    if search.decoding_method != "greedy_search":
        refuse_idle(search, "`--decoding-method greedy_search`", names=["max_sym_per_frame"])
    else:
        refuse_idle(search, A_BEAM, names=["beam_size", "length_norm"])
        if nbest > 1:
            raise ValueError(f"`nbest` {nbest} needs {A_BEAM}.")
    if nbest > search.beam_size:
        raise ValueError(f"`nbest` {nbest} must be at most `beam_size` {search.beam_size}.")
    if search.hotwords_file is None:
        if not sounds_have_hotwords:
            refuse_idle(search, "`--hotwords-file`", names=["hotwords_score"])
        elif search.decoding_method == "greedy_search":
            refuse_idle(search, A_BEAM, names=["hotwords_score"])
    if search.ngram_lm is None:
        refuse_idle(search, "`--ngram-lm`", names=["lm_scale", "lodr_lm"])
    if search.lodr_lm is None:
        refuse_idle(search, "`--lodr-lm`", names=["lodr_scale"])
