"""Models that a command takes: a path, or the name of a published model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stateless_transducer.commands.shared.console import bytes_bar, complain
from stateless_transducer.model_files import Form, Precision


def find_model(model: str | Path, *, forms: Sequence[Form], precision: Precision = "fp32") -> Path:
    """Return the file or folder of a model, after a download with a progress bar if it is only published.

    Raises:
        ValueError, OSError: see `hub.locate`.
    """
    from stateless_transducer.hub import locate

    return locate(model, forms=forms, precision=precision, say=complain, bar=bytes_bar)
