"""``transducer info``: what a model is, where it comes from, and which file it is exactly; or what the machine is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from stateless_transducer.commands.shared.console import say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.wording import counted

if TYPE_CHECKING:
    from stateless_transducer.text.symbols import Vocabulary

_FORMS = ("graphs", "checkpoint")
_FIRST_TOKENS = 12
_DESCRIBED = ("epoch", "step", "train_loss", "valid_loss", "averaged")
"""Entries of a provenance that `describe_training` describes."""


@dataclass(frozen=True)
class Options:
    """Options of ``transducer info``."""

    model: Annotated[str | None, Positional] = None
    """Checkpoint (.pt, .safetensors), folder of a model, or owner/name of a published one."""
    machine: bool = False
    """Describe the machine instead: processor, threads, and the library that multiplies matrices."""
    output_format: Literal["txt", "json"] = "txt"
    """txt: readable lines. json: one object with all facts."""

    def __post_init__(self) -> None:
        if (self.model is None) != self.machine:
            raise ValueError("Pass either `model` or `machine=true`.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Show sizes, tokens, front end, training and hashes of a model, or describe this machine."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Describe the model, or the machine."""
    if options.model is None:
        facts = _of_machine()
        lines = [json.dumps(facts, indent=2)] if options.output_format == "json" else _machine_lines(facts)
        for line in lines:
            say(line)
        return
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.model_files import Listing

    path = find_model(options.model, forms=_FORMS)
    files = Listing.of_folder(path).choose(_FORMS) if path.is_dir() else None
    if files is not None and files.form == "graphs":
        facts = _of_graphs(path, path / files.tokens)
    else:
        facts = _of_checkpoint(path)
    if options.output_format == "json":
        # a provenance may hold values of any type
        say(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
        return
    say(options.model)
    for name, value in _lines(facts):
        say(f"  {name:12s} {value}")


def _of_machine() -> dict[str, Any]:
    import torch

    from stateless_transducer.products import SHAPES, choose_products, processor

    products = choose_products()
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "products": products.choice,
        "reason": products.reason,
        "gains": {"x".join(map(str, shape)): gain for shape, gain in zip(SHAPES, products.gains, strict=False)},
        "errors": dict(zip(("default", "onednn"), products.errors, strict=False)),
    }


def _machine_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for name in ("processor", "instructions", "cores", "threads", "torch"):
        yield f"{name:12s} {facts[name]}"
    yield f"{'products':12s} {facts['products']}: {facts['reason']}"
    for shape, gain in facts["gains"].items():
        yield f"{'':12s} oneDNN is {gain:.2f} times as fast at {shape}"
    if facts["errors"]:
        yield f"{'':12s} largest error: " + ", ".join(f"{name} {error:.1e}" for name, error in facts["errors"].items())


def _of_checkpoint(model: Path) -> dict[str, Any]:
    from stateless_transducer.export.card import facts_of
    from stateless_transducer.recognition.model import find_checkpoint, load_pretrained

    path, checkpoint = find_checkpoint(model)[0], load_pretrained(model)
    return {
        "path": str(path),
        "format": "safetensors" if path.suffix == ".safetensors" else "checkpoint",
        "training_state": checkpoint.training_state is not None,
        "files": {path.name: facts_of(path)},
        "parameters": sum(weight.numel() for weight in checkpoint.weights.values()),
        "sizes": checkpoint.model_config.sizes(),
        "tokens": _tokens(checkpoint.token_table, len(checkpoint.token_table)),
        "front_end": asdict(checkpoint.fbank_config),
        "provenance": dict(checkpoint.provenance),
    }


def _of_graphs(folder: Path, tokens: Path) -> dict[str, Any]:
    """Return the facts of a folder of graphs, and of its card if there is one."""
    from stateless_transducer.export.card import facts_of, read_card
    from stateless_transducer.export.onnx_graph import Graph, find_graph, is_int8, is_streaming
    from stateless_transducer.export.onnx_model import OnnxTransducer
    from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer
    from stateless_transducer.model_files import ROLES, Listing
    from stateless_transducer.text.symbols import read_vocabulary
    from stateless_transducer.text.tokens import SCORES_FILE

    encoder = find_graph(folder, "encoder", prefer_int8=False)
    has_state = is_streaming(Graph(encoder, 1))
    # not `open`, which refuses changed files; they are listed below
    graphs = (find_graph(folder, role, is_int8(encoder)) for role in ROLES)
    model = OnnxStreamingTransducer(*graphs) if has_state else OnnxTransducer(*graphs)
    listing = Listing.of_folder(folder)
    paths = [*(folder / name for role in ROLES for name in listing.nearest(f"{role}*.onnx")), tokens]
    paths += [path for path in [tokens.parent / SCORES_FILE] if path.is_file()]
    files, card = {str(path.relative_to(folder)): facts_of(path) for path in paths}, read_card(folder)
    changed = [name for name, facts in files.items() if card and card["files"].get(name) != facts]
    return {
        "path": str(folder),
        "format": "ONNX, streaming" if has_state else "ONNX",
        "files": files,
        **({"changed_since_export": changed} if changed else {}),
        **{name: card[name] for name in ("parameters", "sizes") if name in card},
        "metadata": model.metadata,
        "tokens": _tokens(read_vocabulary(tokens, model.vocab_size), model.vocab_size),
        "front_end": asdict(model.fbank_config),
        "provenance": card.get("provenance", {}),
        **({"int8": card["int8"]} if card.get("int8") else {}),
    }


def _tokens(vocabulary: Vocabulary, vocab_size: int) -> dict[str, Any]:
    first = [vocabulary.symbols[i] for i in range(min(vocab_size, _FIRST_TOKENS))]
    return {"number": vocab_size, "unit": vocabulary.unit, "first": first}


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Return names and values of the text output."""
    state = ", with training state" if facts.get("training_state") else ""
    yield "format", f"{facts['format']}{state}"
    for name, file in facts["files"].items():
        yield "file", f"{name}: {file['bytes']:,} bytes, sha256 {file['sha256']}"
    if "changed_since_export" in facts:
        yield "changed", f"since the export: {', '.join(facts['changed_since_export'])}"
    if "parameters" in facts:
        yield "parameters", f"{facts['parameters']:,}"
    if "sizes" in facts:
        yield "sizes", _joined(facts["sizes"])
    if "metadata" in facts:
        yield "metadata", _joined(facts["metadata"])
    tokens = facts["tokens"]
    yield "tokens", f"{tokens['number']} of unit {tokens['unit']}: {' '.join(tokens['first'])} ..."
    yield "front end", _joined(facts["front_end"])
    yield from _training(facts["provenance"])
    if "int8" in facts:
        int8 = facts["int8"]
        yield (
            "int8",
            f"{int8['metric']} {int8['error_rate_int8']:.2f} %, fp32 {int8['error_rate_fp32']:.2f} % "
            f"({int8['corpus']} {int8['test_set']}, {counted(int8['utterances'], 'utterance')})"
            + ("" if int8["kept"] else "; rejected"),
        )


def _training(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from stateless_transducer.commands.shared.models import describe_training

    yield from describe_training(provenance).items()
    yield from ((name, str(value)) for name, value in provenance.items() if name not in _DESCRIBED)


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
