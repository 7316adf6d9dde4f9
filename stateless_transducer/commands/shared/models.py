"""Models that a command takes: a path, or the name of a published model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateless_transducer.commands.shared.console import bytes_bar, complain
from stateless_transducer.model_files import Form, Precision
from stateless_transducer.wording import counted

if TYPE_CHECKING:
    from stateless_transducer.features import FbankConfig


def find_model(model: str | Path, *, forms: Sequence[Form], precision: Precision = "fp32") -> Path:
    """Return the file or folder of a model, after a download with a progress bar if it is only published.

    Raises:
        ValueError, OSError: see `hub.locate`.
    """
    from stateless_transducer.hub import locate

    return locate(model, forms=forms, precision=precision, say=complain, bar=bytes_bar)


def check_front_end(argument: str, model: str, config: FbankConfig) -> None:
    """Check that a model expects the features of prepared corpora.

    Args:
        argument: Name of the argument that names the model.
        model: The model.
        config: Its front end.

    Raises:
        ValueError: It expects other features.
    """
    from stateless_transducer.features import FbankConfig

    usual = asdict(FbankConfig())
    others = [
        f"{name} {value:g}, not {usual[name]:g}" for name, value in asdict(config).items() if value != usual[name]
    ]
    if others:
        raise ValueError(
            f"`{argument}` {model} expects other features than those of prepared corpora: {'; '.join(others)}."
        )


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
