"""``transducer push``: publish a model, as a folder or in a repository of Hugging Face."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import complain, say
from stateless_transducer.commands.shared.flags import parse

if TYPE_CHECKING:
    from stateless_transducer.checkpoint import Checkpoint


@dataclass(frozen=True)
class Options:
    """Options of ``transducer push``."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """Model file, training checkpoint, folder with a checkpoint and tokens.txt, or owner/name of a published model."""
    language: tuple[str, ...]
    """Languages of the model, as codes: zh, en."""
    repository: Annotated[str | None, Positional, arg(metavar="[OWNER/NAME]")] = None
    """Hugging Face repository to upload to; it is created if it does not exist."""
    output_dir: Path | None = None
    """Folder to write, to check the files before the upload or without an upload."""
    license: str | None = None
    """License of the model, for example apache-2.0."""
    training_data: str | None = None
    """Sentence about the training data."""
    results: tuple[Path, ...] = ()
    """result-*.json files of `transducer decode`, for the error rates."""
    int8: bool = False
    """Also write x.int8.onnx; `transducer export onnx` measures what it costs."""
    private: bool = False
    """Create a private repository."""

    def __post_init__(self) -> None:
        if self.repository is None and self.output_dir is None:
            raise ValueError("Name the repository to upload to, OWNER/NAME, or set `output_dir`.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run."""
    description = "Write a model with ONNX graphs and a model card; upload it to Hugging Face."
    run(parse(Options, program, arguments, description))
    return 0


def run(options: Options) -> None:
    """Write the folder and upload it."""
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.export.model_card import MODEL_CARD, check_replaceable, read_result
    from stateless_transducer.hub import check_repository, upload
    from stateless_transducer.recognition.model import load_pretrained

    if options.repository is not None:
        check_repository(options.repository)
    if options.output_dir is not None and options.output_dir.exists() and not options.output_dir.is_dir():
        raise ValueError(f"`output_dir` {options.output_dir} is a file; name a folder.")
    if options.output_dir is not None:
        check_replaceable(options.output_dir / MODEL_CARD)
    results = [read_result(path) for path in options.results]
    checkpoint = replace(load_pretrained(find_model(options.model, forms=("checkpoint",))), training_state=None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output_dir or Path(temporary) / "model"
        files = _write(folder, checkpoint, results, options)
        if options.output_dir is not None:
            sizes = [(folder / file).stat().st_size for file in files if (folder / file).exists()]
            say(f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")
        if options.repository is not None:
            say(upload(folder, files, options.repository, is_private=options.private))


def _write(folder: Path, checkpoint: Checkpoint, results: list[dict[str, Any]], options: Options) -> tuple[str, ...]:
    """Write the files of the model; return the names that they may have."""
    from stateless_transducer.checkpoint import save_checkpoint
    from stateless_transducer.export.card import write_card
    from stateless_transducer.export.model_card import MODEL_CARD, Statements, model_card
    from stateless_transducer.export.onnx_writer import (
        FOLDER_FILES,
        differs_from_clients,
        write_onnx,
        write_streaming_onnx,
    )
    from stateless_transducer.export.quantize import quantize
    from stateless_transducer.files import filling
    from stateless_transducer.model_files import STREAMING, WEIGHTS

    differences = differs_from_clients(checkpoint.fbank_config)
    if differences:
        complain(f"note: sherpa-onnx and onnx-asr compute other features than this model's ({differences}).")
    is_causal = checkpoint.model_config.is_causal
    owned = (*FOLDER_FILES, MODEL_CARD, WEIGHTS)
    of_streaming = tuple(f"{STREAMING}/{name}" for name in FOLDER_FILES)
    statements = Statements(
        name=options.repository or folder.absolute().name,
        languages=options.language,
        license=options.license,
        training_data=options.training_data,
    )
    card = model_card(checkpoint, statements, results, has_int8=options.int8, differences=differences)
    if is_causal:
        # a causal checkpoint serves whole utterances and live sound, its graphs live sound alone
        with filling(folder / STREAMING, owned=FOLDER_FILES) as new:
            write_streaming_onnx(new, checkpoint)
            if options.int8:
                quantize(new)
            write_card(new, checkpoint)
    with filling(folder, owned=owned if is_causal else (*owned, *of_streaming)) as new:
        if is_causal:
            checkpoint.token_table.write(new, mark_words=True)
        else:
            write_onnx(new, checkpoint)
            if options.int8:
                quantize(new)
        save_checkpoint(new / WEIGHTS, checkpoint)
        (new / MODEL_CARD).write_text(card, encoding="utf-8")
        write_card(new, checkpoint)
    return (*owned, *of_streaming)
