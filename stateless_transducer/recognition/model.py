"""Models for recognition, from a checkpoint (torch) or a folder of ONNX graphs (no torch).

Letters: N utterances, T_in feature frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stateless_transducer.decoding.protocols import StreamingTransducer, TransducerModel
from stateless_transducer.features import FbankConfig
from stateless_transducer.hub import locate
from stateless_transducer.model_files import Form, Listing, ModelFiles, Precision
from stateless_transducer.text.symbols import Vocabulary, read_vocabulary
from stateless_transducer.text.tokens import SCORES_FILE, UNIT_FILE

if TYPE_CHECKING:
    import torch

    from stateless_transducer.checkpoint import Checkpoint


@dataclass(frozen=True)
class Model:
    """A model that is ready to recognize."""

    transducer: TransducerModel
    fbank_config: FbankConfig
    token_table: Vocabulary
    """Tokens of the model; BPE pieces without scores (models of other projects) cannot spell phrases."""
    place: Callable[[np.ndarray], Any]
    """Function that converts a NumPy array to the type and device of the model."""


def open_model(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    num_threads: int | None = None,
) -> Model:
    """Open a checkpoint, a folder with a model, or a published model by name.

    Args:
        model: Path or name, see `hub.locate`. Of a folder with ONNX graphs and a checkpoint, the graphs are used,
            unless the device or the precision asks for the checkpoint.
        device: Device of a checkpoint, see `choose_device`. Graphs run on the CPU.
        precision: fp32; bf16 for checkpoints, int8 for graphs.
        num_threads: Threads on the CPU; None: torch or onnxruntime decides. For a checkpoint, this sets torch's number,
            which holds for the whole process.

    Raises:
        ValueError: The model cannot be found or read, or does not support the precision or device.
    """
    forms = forms_for(device, precision)
    path = locate(model, forms=forms, precision=precision)
    if path.suffix == ".onnx" and path.is_file():
        raise ValueError(f"{path} is one of three graphs; name the folder that holds them and tokens.txt.")
    files = graphs_of(path, forms, precision)
    if files is not None:
        return _open_graphs(path, files, device, precision, num_threads)
    return model_of(load_pretrained(path, num_threads=num_threads), device=device, precision=precision)


@dataclass(frozen=True)
class StreamingModel:
    """A model that is ready to recognize live sound."""

    transducer: StreamingTransducer
    token_table: Vocabulary
    """Tokens of the model; BPE pieces without scores (models of other projects) cannot spell phrases."""

    @property
    def fbank_config(self) -> FbankConfig:
        """Front end of the model."""
        return self.transducer.fbank_config


def open_streaming_model(
    model: str | Path,
    *,
    chunk_ms: int | None = None,
    left_ms: int | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
    num_threads: int | None = None,
) -> StreamingModel:
    """Open a causal checkpoint, a folder with a streaming model, or a published model by name.

    Args:
        model: Path or name, see `hub.locate`. Of a folder with streaming ONNX graphs and a checkpoint, the graphs are
            used, unless the device or the precision asks for the checkpoint.
        chunk_ms: Milliseconds of a chunk of a checkpoint; None: the nearest to 320 that it is trained on. Graphs have
            their own.
        left_ms: Milliseconds before a chunk that it sees, of a checkpoint; None: likewise the nearest to 2560.
        device: Device of a checkpoint, see `choose_device`. Graphs run on the CPU.
        precision: fp32; bf16 for checkpoints, int8 for graphs.
        num_threads: Threads on the CPU; None: one per graph, torch's number for a checkpoint.

    Raises:
        ValueError: The model cannot be found or read, needs whole utterances, or does not support an argument.
    """
    forms = forms_for(device, precision)
    path = locate(model, forms=forms, precision=precision)
    files = graphs_of(path, forms, precision)
    if files is not None and (is_streaming_folder(path, forms) or not Listing.of_folder(path).has_checkpoint):
        return _open_streaming_graphs(path, files, chunk_ms, left_ms, device, precision, num_threads)
    checkpoint = load_pretrained(path, num_threads=num_threads)
    return streaming_model_of(checkpoint, chunk_ms=chunk_ms, left_ms=left_ms, device=device, precision=precision)


def streaming_model_of(
    checkpoint: Checkpoint,
    *,
    chunk_ms: int | None = None,
    left_ms: int | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
) -> StreamingModel:
    """Return the model of a causal checkpoint for live sound, see `open_streaming_model`.

    Raises:
        ValueError: The checkpoint needs whole utterances, the device does not exist, or an argument is not supported.
    """
    from stateless_transducer.model.live import LiveTransducer

    torch_device, dtype = _place_of_checkpoint(device, precision)
    model = checkpoint.model().to(torch_device)
    live = LiveTransducer(model, checkpoint.fbank_config, chunk_ms=chunk_ms, left_ms=left_ms, dtype=dtype)
    return StreamingModel(live, checkpoint.token_table)


def is_streaming_folder(path: Path, forms: Sequence[Form]) -> bool:
    """Return whether a model is a folder whose graphs are those of a streaming model.

    Args:
        path: The model.
        forms: Forms of a model to look for in a folder, the preferred one first.
    """
    from stateless_transducer.export.onnx_graph import Graph, is_streaming

    files = graphs_of(path, forms, "int8")
    return files is not None and is_streaming(Graph(path / files.model[0], 1))


def graphs_of(path: Path, forms: Sequence[Form], precision: Precision) -> ModelFiles | None:
    """Return the graphs of a model that is a folder; None if the model is a checkpoint.

    Args:
        path: The model.
        forms: Forms of a model to look for in a folder, the preferred one first.
        precision: Preferred precision of the graphs.

    Raises:
        ValueError: The folder holds no model in these forms, or several.
    """
    if not path.is_dir():
        return None
    files = Listing.of_folder(path).choose(forms, precision)
    return files if files.form == "graphs" else None


def _open_streaming_graphs(
    folder: Path,
    files: ModelFiles,
    chunk_ms: int | None,
    left_ms: int | None,
    device: str | torch.device,
    precision: Precision,
    num_threads: int | None,
) -> StreamingModel:
    from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer

    if str(device) not in ("auto", "cpu") or precision == "bf16":
        raise ValueError(f"{folder} is a streaming model of ONNX graphs: it runs on the CPU, in fp32 or int8.")
    for name, value in (("chunk_ms", chunk_ms), ("left_ms", left_ms)):
        if value is not None:
            raise ValueError(
                f"`{name}` is {value}, but {folder} holds ONNX graphs, whose chunks are fixed. Export them "
                "anew, or use the checkpoint."
            )
    model = OnnxStreamingTransducer.open(folder, num_threads=num_threads or 1, prefer_int8=precision == "int8")
    return StreamingModel(model, read_vocabulary(folder / files.tokens, model.vocab_size))


def forms_for(device: str | torch.device, precision: Precision) -> tuple[Form, ...]:
    """Return the forms of a model to look for, the preferred one first: graphs, unless only a checkpoint will do."""
    needs_torch = precision == "bf16" or str(device) not in ("auto", "cpu")
    return ("checkpoint", "graphs") if needs_torch else ("graphs", "checkpoint")


def load_pretrained(model: str | Path, *, num_threads: int | None = None) -> Checkpoint:
    """Read a checkpoint of this project, or icefall's with its tokens, from a file, a folder or by name.

    Args:
        model: Path or name, see `hub.locate`.
        num_threads: Number of torch's threads on the CPU to set for the whole process; None: unchanged.

    Raises:
        ValueError: The model cannot be found or read, or has no checkpoint.
    """
    from stateless_transducer.checkpoint import load_checkpoint
    from stateless_transducer.icefall import load_either

    path, lang_dir = find_checkpoint(model)
    if num_threads is not None:
        import torch

        torch.set_num_threads(num_threads)
    return load_checkpoint(path) if lang_dir is None else load_either(path, lang_dir)


def find_checkpoint(model: str | Path) -> tuple[Path, Path | None]:
    """Return the file of a checkpoint and the folder of its tokens; None: the model is a file alone.

    Raises:
        ValueError: The model cannot be found, or has no checkpoint.
    """
    path, lang_dir = locate(model, forms=("checkpoint",)), None
    if path.is_dir():
        files = Listing.of_folder(path).choose(("checkpoint",))
        path, lang_dir = path / files.model[0], (path / files.tokens).parent
    return path, lang_dir


def model_of(checkpoint: Checkpoint, *, device: str | torch.device = "cpu", precision: Precision = "fp32") -> Model:
    """Return the model of a checkpoint on a device.

    Raises:
        ValueError: The device does not exist, or the precision is not supported.
    """
    import torch

    from stateless_transducer.model.frozen import FrozenTransducer

    torch_device, dtype = _place_of_checkpoint(device, precision)
    return Model(
        FrozenTransducer(checkpoint.model().to(torch_device), dtype=dtype),
        checkpoint.fbank_config,
        checkpoint.token_table,
        lambda array: torch.from_numpy(array).to(torch_device),
    )


def _place_of_checkpoint(device: str | torch.device, precision: Precision) -> tuple[torch.device, torch.dtype]:
    import torch

    if precision == "int8":
        raise ValueError(
            "`precision` int8 is one of ONNX folders (`transducer export onnx --int8 true`); "
            "a checkpoint has fp32 and bf16."
        )
    return choose_device(device), torch.float32 if precision == "fp32" else torch.bfloat16


def _open_graphs(
    folder: Path, files: ModelFiles, device: str | torch.device, precision: Precision, num_threads: int | None
) -> Model:
    from stateless_transducer.export.card import check_files
    from stateless_transducer.export.onnx_model import OnnxTransducer

    if str(device) not in ("auto", "cpu"):
        raise ValueError(f"`device` {device}: ONNX models run on the CPU only. Use a checkpoint for a GPU.")
    if precision == "bf16":
        raise ValueError(f"`precision` bf16 is one of checkpoints; {folder} is an ONNX folder: fp32, perhaps int8.")
    model = OnnxTransducer.open(folder, precision=precision, num_threads=num_threads)
    tokens_path = folder / files.tokens
    check_files(tokens_path.with_name(name) for name in (tokens_path.name, UNIT_FILE, SCORES_FILE))
    tokens = read_vocabulary(tokens_path, model.vocab_size)
    return Model(model, model.fbank_config, tokens, lambda array: array)


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; ``auto`` is the first GPU, or the CPU.

    Raises:
        ValueError: The device does not exist.
    """
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:N, but is {name!r}.") from err
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"`device` {name}: torch sees {torch.cuda.device_count()} GPUs.")
    try:
        torch.zeros(1, device=device).cpu()
    # a device that this build of torch lacks, or that holds no values: an error of almost any kind
    except Exception as err:
        raise ValueError(f"`device` {name}: torch cannot compute there. Use auto, cpu, cuda or cuda:N.") from err
    return device
