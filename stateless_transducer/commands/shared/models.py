"""Models that a command takes: a path, or the name of a published model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stateless_transducer.commands.shared.console import bytes_bar, complain
from stateless_transducer.model_files import Form, Precision
from stateless_transducer.wording import counted


def find_model(model: str | Path, *, forms: Sequence[Form], precision: Precision = "fp32") -> Path:
    """Return the file or folder of a model, after a download with a progress bar if it is only published.

    Raises:
        ValueError, OSError: see `hub.locate`.
    """
    from stateless_transducer.hub import locate

    return locate(model, forms=forms, precision=precision, say=complain, bar=bytes_bar)


def describe_training(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return how long a model was trained, its losses, and which checkpoints it averages, for users.

    A provenance may hold values of any type; those of another type than ours are skipped.
    """
    epoch, step, averaged = (provenance.get(name) for name in ("epoch", "step", "averaged"))
    counts = [counted(epoch + 1, "epoch")] if isinstance(epoch, int) else []
    counts += [counted(step, "batch")] if isinstance(step, int) else []
    losses = {name: provenance.get(name) for name in ("train_loss", "valid_loss")}
    counts += [f"{name.replace('_', ' ')} {loss:.4f}" for name, loss in losses.items() if isinstance(loss, int | float)]
    facts = {"trained": ", ".join(counts)}
    if isinstance(averaged, list):
        facts["averaged"] = ", ".join(map(str, averaged))
    return {name: fact for name, fact in facts.items() if fact}
