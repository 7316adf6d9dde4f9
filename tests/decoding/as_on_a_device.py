"""The searches the way that a GPU takes, whatever the arrays are."""

from __future__ import annotations

import pytest

from stateless_transducer.decoding.beam import beam_search
from stateless_transducer.decoding.greedy import greedy_search
from stateless_transducer.decoding.modified_beam import modified_beam_search


def as_on_a_device(search, *args, **options):
    """Call a function whose searches take arrays for a device's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("beam", "greedy", "modified_beam", "inputs"):
            patch.setattr(f"stateless_transducer.decoding.{module}.is_on_host", lambda _: False)
        return search(*args, **options)


def beam_search_in_arrays(*args, **options):
    """`beam_search` that takes its arrays for a device's."""
    return as_on_a_device(beam_search, *args, **options)


def greedy_search_in_arrays(*args, **options):
    """`greedy_search`, likewise."""
    return as_on_a_device(greedy_search, *args, **options)


def modified_beam_search_in_arrays(*args, **options):
    """`modified_beam_search`, likewise."""
    return as_on_a_device(modified_beam_search, *args, **options)
