"""``model.json``, the card of an exported model: facts that recognition does not need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateless_transducer import __version__
from stateless_transducer.files import parse_json, sha256, write_text

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint

CARD = "model.json"

_KINDS = {"files": dict, "sizes": dict, "parameters": int, "provenance": dict, "int8": dict | None}
"""Types of the entries of a card."""
_INT8_KINDS = {
    **dict.fromkeys(("metric", "corpus", "test_set"), str),
    **dict.fromkeys(("error_rate_int8", "error_rate_fp32"), int | float),
    "utterances": int,
    "kept": bool,
}
"""Types of those entries of ``int8`` that are shown."""


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
        card = parse_json(path.read_bytes())
    except ValueError as err:
        raise ValueError(f"{path} is damaged: {err}") from err
    # another project's file may have the same name
    if not (isinstance(card, dict) and "files" in card and "sizes" in card):
        return {}
    int8 = card.get("int8")
    kinds = [(card, name, kind) for name, kind in _KINDS.items() if name in card]
    kinds += [(int8, name, kind) for name, kind in _INT8_KINDS.items() if isinstance(int8, dict)]
    for values, name, kind in kinds:
        if not isinstance(values.get(name), kind):
            raise ValueError(f"{path} is damaged: `{name}` is a {type(values.get(name)).__name__}")
    return card


def check_files(paths: Iterable[Path]) -> None:
    """Compare files with the hashes in the card of their folder; files that no card lists are not checked.

    Raises:
        ValueError: A file differs, or the card is damaged.
    """
    for path in paths:
        listed = read_card(path.parent).get("files")
        facts = listed.get(path.name) if isinstance(listed, dict) else None
        if isinstance(facts, dict) and path.is_file() and facts.get("sha256") != sha256(path):
            raise ValueError(
                f"{path} differs from its checksum in {CARD}: it is damaged, or was changed after the export. Copy it "
                f"again, or remove {CARD} if you changed it."
            )


def facts_of(path: Path) -> dict[str, Any]:
    """Return size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
