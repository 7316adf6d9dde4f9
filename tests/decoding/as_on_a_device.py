"""Graves' beam search the way that a GPU takes, whatever the arrays are."""

from __future__ import annotations

import pytest

from stateless_transducer.decoding.beam import beam_search


def beam_search_in_arrays(*args, **options):
    """`beam_search` that takes its arrays for a device's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("beam", "recognisable"):
            patch.setattr(f"stateless_transducer.decoding.{module}.is_on_host", lambda _: False)
        return beam_search(*args, **options)
