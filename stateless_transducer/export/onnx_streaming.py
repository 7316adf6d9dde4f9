"""Streaming transducers as ONNX graphs in sherpa-onnx's layout, exported by this project or another, chunk by chunk.

An encoder maps T feature frames and the state of a stream to a few encoder frames and the next state. The next chunk
begins fewer than T frames later, so that chunks overlap by the look-ahead. The arrays of a state depend on the kind of
encoder. Letters: N streams, T feature frames of a chunk, F mel bins, T' encoder frames of a chunk, D joiner width,
V vocabulary. NumPy and onnxruntime only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stateless_transducer.export.card import check_files
from stateless_transducer.export.onnx_graph import (
    DTYPES,
    Graph,
    TransducerGraphs,
    find_graph,
    front_end,
    is_streaming,
    subsampling,
)
from stateless_transducer.features import SILENCE_VALUE, FbankConfig
from stateless_transducer.model_files import ROLES
from stateless_transducer.ops.subsampling import Subsampling

_MOST_STATE = 2**24
"""Largest number of elements in an array of a state: 64 MiB."""

State = list[np.ndarray]
"""State of an encoder for one stream; each array has a batch axis of 1."""


class OnnxStreamingTransducer(TransducerGraphs):
    """A streaming transducer on NumPy arrays."""

    def __init__(self, encoder: Path, decoder: Path, joiner: Path, *, num_threads: int = 1) -> None:
        """Open three graphs and run them once on a chunk of silence.

        Raises:
            ValueError: A graph is not ONNX, not streaming or of an unknown kind, or the graphs do not match.
        """
        super().__init__(encoder, decoder, joiner, num_threads)
        self.kind: str = self._encoder.metadata.get("model_type", "")
        self._state_axes = _state_axes(self._encoder, self.kind)
        if self._encoder.metadata.get("feature", ""):
            raise ValueError(f"{encoder}: expects {self._encoder.metadata['feature']!r} features, not Kaldi's fbank.")
        self.chunk_frames: int = self._encoder.number("T")
        """T, feature frames per chunk."""
        self.chunk_shift: int = self._encoder.number("decode_chunk_len")
        """Feature frames from the beginning of a chunk to that of the next one."""
        self.fbank_config: FbankConfig = front_end(self._encoder)
        """Front end of the encoder."""
        self._try()
        factor = self.chunk_shift // self.encoder_frames
        # the fewest frames of graphs of other projects are those of convolutions with a small kernel
        self.subsampling: Subsampling = subsampling(self._encoder, default=Subsampling(factor, factor + 3))
        """Subsampling of the encoder."""

    @classmethod
    def open(cls, folder: Path, *, num_threads: int = 1, prefer_int8: bool = False) -> OnnxStreamingTransducer:
        """Open a folder with encoder*.onnx, decoder*.onnx and joiner*.onnx.

        Args:
            folder: Folder of the graphs.
            num_threads: Threads inside a graph.
            prefer_int8: Prefer x.int8.onnx to x.onnx where the folder holds both.

        Raises:
            ValueError: A file is missing, ambiguous or invalid.
        """
        if folder.is_file():
            raise ValueError(
                f"`folder` {folder} is a file. `OnnxStreamingTransducer` reads a folder with three ONNX graphs; "
                "`open_streaming_model` also reads causal checkpoints."
            )
        encoder, decoder, joiner = (find_graph(folder, role, prefer_int8) for role in ROLES)
        check_files((encoder, decoder, joiner))
        return cls(encoder, decoder, joiner, num_threads=num_threads)

    def initial_state(self) -> State:
        """Return the state of a new stream: zeros."""
        state = []
        for declared, axis in zip(self._encoder.inputs[1:], self._state_axes, strict=True):
            sizes = [1 if place == axis else size for place, size in enumerate(declared.shape)]
            state.append(np.zeros(sizes, DTYPES[declared.type]))
        return state

    def encode_chunk(self, features: np.ndarray, states: Sequence[State]) -> tuple[np.ndarray, list[State]]:
        """Encode one chunk of each stream.

        Args:
            features: (N, T, F), float32.
            states: N states; not modified.

        Returns:
            encoder_out (N, T', D) and the N next states.
        """
        if len(states) > 1 and self._encoder.is_single:
            parts = [self.encode_chunk(features[i : i + 1], states[i : i + 1]) for i in range(len(states))]
            return np.concatenate([out for out, _ in parts]), [new for _, (new,) in parts]
        inputs = [
            _stack(arrays, axis) for arrays, axis in zip(zip(*states, strict=True), self._state_axes, strict=True)
        ]
        encoder_out, *outputs = self._encoder.run(features, *inputs)
        if self.kind == "conformer":
            # its last input is the number of frames before the chunk, which the graph does not count itself
            outputs.append(inputs[-1] + self.chunk_shift)
        unstacked = (_unstack(output, axis) for output, axis in zip(outputs, self._state_axes, strict=True))
        return encoder_out, [list(state) for state in zip(*unstacked, strict=True)]

    def encode(self, features: np.ndarray, feature_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode whole utterances chunk by chunk, with silence after their ends, for the searches of whole utterances.

        Args:
            features: (N, T_in, F), float32.
            feature_lens: (N,).

        Returns:
            encoder_out (N, T, D), and encoder_out_lens (N,).
        """
        (N, width, F), shift = features.shape, self.chunk_shift
        num_chunks = max(1, -(-width // shift))
        padded = np.full((N, (num_chunks - 1) * shift + self.chunk_frames, F), SILENCE_VALUE, np.float32)
        for row, utterance, length in zip(padded, features, feature_lens, strict=True):
            row[:length] = utterance[:length]
        states, parts = [self.initial_state() for _ in range(N)], []
        for first in range(0, num_chunks * shift, shift):
            encoder_out, states = self.encode_chunk(padded[:, first : first + self.chunk_frames], states)
            parts.append(encoder_out)
        return np.concatenate(parts, axis=1), self.subsampling.lens(feature_lens)

    def _try(self) -> None:
        """Run a chunk, so that graphs that do not match are refused at once."""
        silence = np.full((1, self.chunk_frames, self.fbank_config.num_mel_bins), SILENCE_VALUE, np.float32)
        state = self.initial_state()
        encoder_out, (new,) = self.encode_chunk(silence, [state])
        self.encoder_frames: int = encoder_out.shape[1]
        """T', encoder frames per chunk."""
        for declared, before, after in zip(self._encoder.inputs[1:], state, new, strict=True):
            if before.shape != after.shape:
                name = f"{self._encoder.path}: state {declared.name}"
                raise ValueError(f"{name} has input shape {before.shape} and output shape {after.shape}.")
        self._check_logits(encoder_out[:, 0])


def _state_axes(encoder: Graph, kind: str) -> list[int]:
    """Return the batch axis of each state, in the order of the encoder's inputs."""
    states = encoder.inputs[1:]
    if not is_streaming(encoder):
        names = ", ".join(declared.name for declared in encoder.inputs)
        raise ValueError(
            f"{encoder.path} is not a streaming encoder: it takes {names}, "
            f"and its metadata {'has' if 'decode_chunk_len' in encoder.metadata else 'lacks'} `decode_chunk_len`; "
            "`transducer transcribe` is for models that take whole utterances."
        )
    axes = _layout(kind, len(states))
    if axes is None:
        raise ValueError(
            f"{encoder.path}: `model_type` {kind!r} with {len(states)} states is unknown; "
            "known are zipformer2 (6 per layer and 2), zipformer (7 per stack), conformer (3)."
        )
    num_new = len(states) - (kind == "conformer")
    if encoder.num_outputs != 1 + num_new:
        raise ValueError(
            f"{encoder.path}: must give encoder_out and {num_new} states, but has {encoder.num_outputs} outputs."
        )
    for declared, axis in zip(states, axes, strict=True):
        sizes = list(declared.shape)
        if len(sizes) <= axis or isinstance(sizes.pop(axis), int) and declared.shape[axis] != 1:
            raise ValueError(f"{encoder.path}: axis {axis} of {declared.name} {declared.shape} must be the batch.")
        if not all(isinstance(size, int) for size in sizes):
            raise ValueError(
                f"{encoder.path}: {declared.name} {declared.shape} needs known sizes, except for the batch."
            )
        if math.prod(sizes) > _MOST_STATE:
            raise ValueError(
                f"{encoder.path}: {declared.name} {declared.shape} must have at most {_MOST_STATE} elements per stream."
            )
    return axes


def _layout(kind: str, num_states: int) -> list[int] | None:
    if kind == "zipformer2" and num_states % 6 == 2:
        # per layer: key, nonlin_attn, val1, val2, conv1, conv2; then embed_states, processed_lens
        return [1, 1, 1, 1, 0, 0] * (num_states // 6) + [0, 0]
    if kind == "zipformer" and num_states % 7 == 0:
        # len of every stack, then avg of every stack, then key, val, val2, conv1, conv2
        return [axis for axis in (1, 1, 2, 2, 2, 1, 1) for _ in range(num_states // 7)]
    if kind == "conformer" and num_states == 3:
        # attn, conv, processed_lens
        return [2, 2, 0]
    return None


def _stack(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)


def _unstack(array: np.ndarray, axis: int) -> list[np.ndarray]:
    """Return N arrays with a batch axis of 1 that share no memory."""
    if array.shape[axis] == 1:
        return [array]
    # a part along the first axis is contiguous already, and would keep the arrays of the whole batch in memory
    return [part.copy() for part in np.split(array, array.shape[axis], axis)]
