"""A file of ONNX that computes, and where a model's three files lie. NumPy and onnxruntime only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stateless_transducer.files import way_from_training

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
"""Of inputs, by onnxruntime's names."""

RUNS_QUANTIZED = ("onnx.infer", "onnxruntime.quant")
"""Key and value of the metadata of graphs that quantize as they run."""


class Graph:
    """A graph that is open; never changes, so threads may share it."""

    def __init__(self, path: Path, num_threads: int | None) -> None:
        """Open a file.

        Args:
            path: the file.
            num_threads: inside the graph; None: as many as there are cores.

        Raises:
            ValueError: it is not ONNX, or takes what is not in `DTYPES`.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ValueError("ONNX models need onnxruntime: pip install 'stateless-transducer[onnx]'.") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads or 0, 1
        options.log_severity_level = 3
        _refuse_pointer(path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # its errors have no base class but this one
        except Exception as err:
            raise ValueError(f"{path}: onnxruntime cannot open it: {_one_line(err)}") from err
        self.path = path
        self.inputs: list[Any] = list(self._session.get_inputs())
        self.num_outputs = len(self._session.get_outputs())
        for declared in self.inputs:
            if declared.type not in DTYPES:
                raise ValueError(f"{path}: {declared.name}: {declared.type} is not supported; {', '.join(DTYPES)} are.")
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        # exported for one stream; or quantized as it runs, over all rows: then streams would disturb one another
        self.is_single = self.inputs[0].shape[0] == 1 or RUNS_QUANTIZED in self.metadata.items()

    def number(self, key: str) -> int:
        """A positive number of the metadata."""
        value = self.metadata.get(key)
        if value is None:
            raise ValueError(f"{self.path}: its metadata lacks `{key}`; is it of a transducer?")
        if not value.isdecimal() or int(value) == 0:
            raise ValueError(f"{self.path}: `{key}` of its metadata must be a positive number, but is {value!r}.")
        return int(value)

    def run(self, *arrays: np.ndarray) -> list[Any]:
        """All outputs."""
        pairs = zip(self.inputs, arrays, strict=True)
        named = {declared.name: array.astype(DTYPES[declared.type], copy=False) for declared, array in pairs}
        try:
            return list(self._session.run(None, named))
        except Exception as err:
            raise ValueError(f"{self.path}: onnxruntime cannot run it: {_one_line(err)}") from err

    def run_rows(self, *arrays: np.ndarray) -> np.ndarray:
        """The first output, row by row where that is needed."""
        if len(arrays[0]) <= 1 or not self.is_single:
            return self.run(*arrays)[0]
        return np.concatenate([self.run(*(a[i : i + 1] for a in arrays))[0] for i in range(len(arrays[0]))])


def is_streaming(encoder: Graph) -> bool:
    """Whether an encoder goes on from chunk to chunk, rather than taking whole utterances."""
    return len(encoder.inputs) > 2 and "decode_chunk_len" in encoder.metadata


def feature_dim(encoder: Graph) -> int:
    """Mel bins that an encoder takes."""
    x = encoder.inputs[0]
    if len(x.shape) != 3 or not isinstance(x.shape[2], int):
        raise ValueError(f"{encoder.path}: {x.name} {x.shape} must be (N, T, F) with a known number F of mel bins.")
    return x.shape[2]


def find_graph(folder: Path, role: str, prefer_int8: bool) -> Path:
    """The graph of one role; x.onnx and x.int8.onnx are one graph in two precisions.

    Raises:
        ValueError: there is none in the folder and those directly in it, or it is not clear which one.
    """
    there = find_files(folder, f"{role}*.onnx")
    int8 = [path for path in there if is_int8(path)]
    plain = [path for path in there if path not in int8]
    candidates = (int8 or plain) if prefer_int8 else (plain or int8)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ValueError(f"{folder}: holds no {role}*.onnx{way_from_training(folder)}.")
    names = ", ".join(str(path.relative_to(folder)) for path in candidates)
    raise ValueError(f"{folder}: which one is the {role}: {names}? Leave one in the folder.")


def find_tokens(folder: Path) -> Path:
    """The ``tokens.txt`` of a model's folder, or of one directly in it.

    Raises:
        ValueError: there is none, or more than one.
    """
    there = find_files(folder, "tokens.txt")
    if len(there) > 1:
        raise ValueError(f"{folder}: which one is the model's: {', '.join(str(p.relative_to(folder)) for p in there)}?")
    return there[0] if there else folder / "tokens.txt"


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder, or if there are none, of those directly in it: some keep graphs and tokens apart."""
    return sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))


def is_int8(path: Path) -> bool:
    """Whether a graph's name says that it is quantized."""
    return ".int8." in path.name


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise ValueError(f"{path}: is Git LFS's note of where the file is, not the file; fetch it: git lfs pull.")


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split())
