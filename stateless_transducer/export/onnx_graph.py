"""ONNX graphs: a single one, the three of a transducer, and the search for them in a folder.

NumPy and onnxruntime only. Letters: N rows, T feature frames, F mel bins, C tokens of context, D joiner width,
V vocabulary.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from stateless_transducer.features import FbankConfig
from stateless_transducer.files import check_file, parse_json, refuse_pointer
from stateless_transducer.model_files import Listing
from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.threads import may_spin
from stateless_transducer.wording import counted, one_line

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
"""Supported types of inputs, by onnxruntime's names."""

_MOST_SIZE = 1_000_000
"""Largest number in the metadata: arrays of that size are made before a graph can refuse them."""

FRONT_END = "fbank"
"""Key of the front end (JSON) in the encoder's metadata; graphs of other projects lack it."""
SUBSAMPLING = "subsampling"
"""Key of the subsampling (JSON) in the encoder's metadata; graphs of other projects and of early exports lack it."""
RUNS_QUANTIZED = ("onnx.infer", "onnxruntime.quant")
"""Metadata entry of graphs that quantize activations dynamically."""


class Graph:
    """An open graph; immutable, so threads may share it."""

    def __init__(self, path: Path, num_threads: int | None) -> None:
        """Open a file.

        Args:
            path: File of the graph.
            num_threads: Threads inside the graph; None: one per core.

        Raises:
            ValueError: The file is not ONNX, or has an input whose type is not in `DTYPES`.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ValueError("ONNX models need onnxruntime: pip install 'stateless-transducer[onnx]'.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads or 0, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(may_spin())))
        options.log_severity_level = 3
        check_file(path)
        refuse_pointer(path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # onnxruntime's errors have no common base class but this one
        except Exception as err:
            raise ValueError(f"{path}: onnxruntime cannot open the graph: {one_line(err)}") from err
        self.path = path
        self.inputs: list[Any] = list(self._session.get_inputs())
        self.num_outputs: int = len(self._session.get_outputs())
        for declared in self.inputs:
            if declared.type not in DTYPES:
                raise ValueError(f"{path}: {declared.name}: {declared.type} is not supported; {', '.join(DTYPES)} are.")
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        # exported for one stream, or quantized dynamically over all rows, so that streams would affect one another
        self.is_single: bool = self.inputs[0].shape[0] == 1 or RUNS_QUANTIZED in self.metadata.items()

    def number(self, key: str) -> int:
        """Return a number of the metadata, a size of arrays.

        Raises:
            ValueError: It is missing, or not in 1..`_MOST_SIZE`.
        """
        value = self.metadata.get(key)
        if value is None:
            raise ValueError(f"{self.path}: the metadata lack `{key}`. Is it a transducer?")
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= _MOST_SIZE:
            raise ValueError(f"{self.path}: `{key}` in the metadata is {value[:80]!r}, not in 1..{_MOST_SIZE}.")
        return int(value)

    def check_arguments(self, *inputs: str, num_outputs: int = 1) -> None:
        """Check the numbers of inputs and outputs; names, which differ from exporter to exporter, are for the message.

        Raises:
            ValueError: A number differs.
        """
        if (len(self.inputs), self.num_outputs) != (len(inputs), num_outputs):
            names = ", ".join(declared.name for declared in self.inputs)
            raise ValueError(
                f"{self.path}: must take {' and '.join(inputs)} and give {counted(num_outputs, 'output')}, but takes "
                f"{names} and gives {self.num_outputs}. Is it a transducer?"
            )

    def run(self, *arrays: np.ndarray) -> list[Any]:
        """Return all outputs."""
        pairs = zip(self.inputs, arrays, strict=True)
        named = {declared.name: array.astype(DTYPES[declared.type], copy=False) for declared, array in pairs}
        try:
            return list(self._session.run(None, named))
        except Exception as err:
            raise ValueError(f"{self.path}: onnxruntime cannot run the graph: {one_line(err)}") from err

    def run_rows(self, *arrays: np.ndarray) -> np.ndarray:
        """Return the first output, computed row by row where the graph requires it."""
        if len(arrays[0]) <= 1 or not self.is_single:
            return self.run(*arrays)[0]
        return np.concatenate([self.run(*(a[i : i + 1] for a in arrays))[0] for i in range(len(arrays[0]))])


def is_streaming(encoder: Graph) -> bool:
    """Whether an encoder runs chunk by chunk with a state, rather than on whole utterances."""
    return len(encoder.inputs) > 2 and "decode_chunk_len" in encoder.metadata


def _usual_front_end(encoder: Graph) -> FbankConfig:
    """Return icefall's front end, with the number of mel bins of an encoder's input.

    Raises:
        ValueError: The number is unknown or impossible.
    """
    x = encoder.inputs[0]
    if len(x.shape) != 3 or not isinstance(x.shape[2], int):
        raise ValueError(f"{encoder.path}: {x.name} {x.shape} must be (N, T, F) with a known number F of mel bins.")
    try:
        return FbankConfig(num_mel_bins=x.shape[2])
    except ValueError as err:
        raise ValueError(f"{encoder.path}: {x.name} {x.shape}: {err}") from err


def front_end(encoder: Graph) -> FbankConfig:
    """Return the front end in the metadata, or icefall's if there is none."""
    usual = _usual_front_end(encoder)
    if FRONT_END not in encoder.metadata:
        return usual
    try:
        config = FbankConfig(**parse_json(encoder.metadata[FRONT_END]))
    except (ValueError, TypeError) as err:
        raise ValueError(f"{encoder.path}: `{FRONT_END}` in the metadata is no front end: {err}") from err
    if config.num_mel_bins != usual.num_mel_bins:
        raise ValueError(
            f"{encoder.path}: takes {usual.num_mel_bins} mel bins, but its front end has {config.num_mel_bins}."
        )
    return config


def subsampling(encoder: Graph, *, default: Subsampling) -> Subsampling:
    """Return the subsampling in the metadata, or the default if there is none."""
    if SUBSAMPLING not in encoder.metadata:
        return default
    try:
        return Subsampling(**parse_json(encoder.metadata[SUBSAMPLING]))
    except (ValueError, TypeError) as err:
        raise ValueError(f"{encoder.path}: `{SUBSAMPLING}` in the metadata is invalid: {err}") from err


def _with_nothing_before(contexts: np.ndarray, blank_id: int) -> np.ndarray:
    """Return contexts (N, C) with -1, nothing, for each blank that another one follows.

    Training has one blank before the first token, and nothing before that blank.
    """
    is_blank = contexts == blank_id
    is_nothing = is_blank[:, :-1] & is_blank[:, 1:]
    if not is_nothing.any():
        return contexts
    contexts = contexts.copy()
    contexts[:, :-1][is_nothing] = -1
    return contexts


class TransducerGraphs:
    """Encoder, decoder and joiner of a transducer; immutable, so threads may share it."""

    blank_id = 0

    def __init__(self, encoder: Path, decoder: Path, joiner: Path, num_threads: int | None) -> None:
        """Open three graphs.

        Raises:
            ValueError: A graph is not ONNX, or decoder or joiner are none.
        """
        self._encoder, self._decoder, self._joiner = (Graph(path, num_threads) for path in (encoder, decoder, joiner))
        self._decoder.check_arguments("y")
        self._joiner.check_arguments("encoder_out", "decoder_out")
        self.context_size: int = self._decoder.number("context_size")
        self.vocab_size: int = self._decoder.number("vocab_size")

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the three graphs, without front end and subsampling, which are JSON."""
        graphs = self._encoder, self._decoder, self._joiner
        entries = (entry for graph in graphs for entry in sorted(graph.metadata.items()))
        return {key: value for key, value in entries if key not in (FRONT_END, SUBSAMPLING)}

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        """(N, C), int64, blanks before the first token -> decoder_out (N, D)."""
        return self._decoder.run_rows(_with_nothing_before(contexts, self.blank_id))

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        """(N, D) and (N, D) -> logits (N, V)."""
        return self._joiner.run_rows(encoder_out, decoder_out)

    def _check_logits(self, encoder_out: np.ndarray) -> None:
        """Run decoder and joiner once, and check that a frame (1, D) gives V logits."""
        logits = self.join(encoder_out, self.predict(np.zeros((1, self.context_size), np.int64)))
        if logits.shape != (1, self.vocab_size):
            raise ValueError(
                f"{self._joiner.path}: gives {logits.shape[-1]} logits, but `vocab_size` of {self._decoder.path} "
                f"is {self.vocab_size}; the graphs belong to different models."
            )


def find_graph(folder: Path, role: str, prefer_int8: bool) -> Path:
    """Return the graph of one role; x.onnx and x.int8.onnx are one graph in two precisions.

    Raises:
        ValueError: The folder and its subfolders hold no such graph, or several.
    """
    return folder / Listing.of_folder(folder).graph(role, "int8" if prefer_int8 else "fp32")


def is_int8(path: Path) -> bool:
    """Whether a graph is quantized, by its file name."""
    return ".int8." in path.name
