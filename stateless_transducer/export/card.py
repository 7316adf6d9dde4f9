"""``model.json``, the card of an exported model: facts that recognition does not need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateless_transducer import __version__
from stateless_transducer.files import sha256, write_text

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint

CARD = "model.json"


def write_card(folder: Path, checkpoint: Checkpoint, int8: Mapping[str, Any] | None = None) -> None:
    """Write ``model.json`` into a folder: sizes, provenance and files of the model.

    Args:
        folder: Holds all other files already.
        checkpoint: The exported checkpoint.
        int8: Cost of quantization in accuracy, if measured.
    """
    card = {
        "version": __version__,
        "parameters": sum(weight.numel() for weight in checkpoint.weights.values()),
        "sizes": checkpoint.model_config.sizes(),
        "provenance": dict(checkpoint.provenance),
        "files": {path.name: facts_of(path) for path in sorted(folder.iterdir()) if path.name != CARD},
        "int8": None if int8 is None else dict(int8),
    }
    # a provenance may hold values of any type
    write_text(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False, default=str) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of a folder, empty if it has none (models of other projects).

    Raises:
        ValueError: The card is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is damaged: {err}") from err
    # another project's file may have the same name
    return card if isinstance(card, dict) and "files" in card and "sizes" in card else {}


def facts_of(path: Path) -> dict[str, Any]:
    """Return size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
