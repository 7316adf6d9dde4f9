"""Offline transducers as ONNX graphs in icefall's layout, exported by this project or another; no torch.

Inputs and outputs are identified by their order, as in sherpa-onnx. Letters: N utterances, T_in
feature frames, F mel bins, T encoder frames, C tokens of context, D joiner width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from stateless_transducer.export.card import check_files
from stateless_transducer.export.onnx_graph import (
    FRONT_END,
    Graph,
    TransducerGraphs,
    find_graph,
    front_end,
    is_int8,
    is_streaming,
    subsampling,
)
from stateless_transducer.features import PADDING_VALUE, SILENCE_VALUE, FbankConfig
from stateless_transducer.model.config import ConformerConfig
from stateless_transducer.ops.subsampling import Subsampling

Precision = Literal["fp32", "int8"]
GRAPHS = {role: f"{role}.onnx" for role in ("encoder", "decoder", "joiner")}
"""File names of the exported graphs by role."""
INT8_GRAPHS = {role: f"{role}.int8.onnx" for role in GRAPHS}
"""File names of the quantized graphs by role."""

# fewest frames for the subsampling of conformers and zipformers
_FEWEST_FRAMES = 9
# frames of the trial run: the longest stride of a zipformer
_TRY_FRAMES = 32


class OnnxTransducer(TransducerGraphs):
    """An offline transducer on NumPy arrays."""

    def __init__(self, encoder: Path, decoder: Path, joiner: Path, *, num_threads: int | None = None) -> None:
        """Open three graphs and run them once on silence.

        Args:
            encoder: (N, T_in, F) and (N,) -> (N, T, D) and (N,).
            decoder: (N, C) -> (N, D).
            joiner: (N, D) and (N, D) -> logits (N, V).
            num_threads: Threads inside a graph; None: one per core.

        Raises:
            ValueError: A graph is not ONNX or is a streaming encoder, or the graphs do not match.
        """
        super().__init__(encoder, decoder, joiner, num_threads)
        _refuse_streaming(self._encoder)
        self._encoder.check_arguments("x", "x_lens", num_outputs=2)
        self.fbank_config: FbankConfig = front_end(self._encoder)
        """Front end of the encoder."""
        # icefall's encoders all subsample by four
        self.subsampling: Subsampling = subsampling(self._encoder, default=ConformerConfig().subsampling)
        """Subsampling of the encoder."""
        self.is_ours: bool = FRONT_END in self._encoder.metadata
        """Whether this project exported the encoder, which then accepts utterances of any length, 0 included."""
        self._try()

    @classmethod
    def open(cls, folder: Path, *, precision: Precision = "fp32", num_threads: int | None = None) -> OnnxTransducer:
        """Open a folder with encoder*.onnx, decoder*.onnx and joiner*.onnx; they may lie in a direct subfolder.

        Args:
            folder: Folder of the graphs.
            precision: int8 prefers the graphs named x.int8.onnx, and requires the encoder's.
            num_threads: See the constructor.

        Raises:
            ValueError: A file is missing, ambiguous, invalid or damaged.
        """
        prefers_int8 = precision == "int8"
        paths = {role: find_graph(folder, role, prefers_int8) for role in GRAPHS}
        check_files(paths.values())
        encoder_precision = "int8" if is_int8(paths["encoder"]) else "fp32"
        if encoder_precision != precision:
            _refuse_streaming(Graph(paths["encoder"], 1))
            raise ValueError(
                f"{folder}: holds no encoder of `precision` {precision}, but {paths['encoder'].name}: "
                f"`precision={encoder_precision}`."
            )
        return cls(**paths, num_threads=num_threads)

    def encode(self, features: np.ndarray, feature_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, T_in, F), float32, and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,).

        The result of an utterance does not depend on its batch: dynamically quantized graphs run one at a time.
        """
        if len(features) > 1 and self._encoder.is_single:
            return self._encode_one_by_one(features, feature_lens)
        if self.is_ours:
            encoder_out, lens = self._encoder.run(features, feature_lens)[:2]
            return encoder_out, lens
        # graphs of other projects: masks as wide as the longest utterance, and a minimum length for the subsampling
        num_frames = max(int(feature_lens.max(initial=0)), _FEWEST_FRAMES)
        padded = _resized(features, num_frames, PADDING_VALUE)
        encoder_out, lens = self._encoder.run(padded, feature_lens.clip(_FEWEST_FRAMES))[:2]
        return encoder_out, np.where(feature_lens < _FEWEST_FRAMES, 0, lens)

    def _encode_one_by_one(self, features: np.ndarray, feature_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = zip(features, feature_lens, strict=True)
        results = [self.encode(utterance[None, :length], np.array([length])) for utterance, length in pairs]
        longest = max(encoder_out.shape[1] for encoder_out, _ in results)
        parts = [_resized(encoder_out, longest, 0.0) for encoder_out, _ in results]
        return np.concatenate(parts), np.concatenate([lens for _, lens in results])

    def _try(self) -> None:
        """Run once, so that graphs that do not match are refused at once."""
        silence = np.full((1, _TRY_FRAMES, self.fbank_config.num_mel_bins), SILENCE_VALUE, np.float32)
        encoder_out, lens = self.encode(silence, np.array([_TRY_FRAMES]))
        if encoder_out.ndim != 3 or lens.shape != (1,) or not 0 < lens[0] <= encoder_out.shape[1]:
            raise ValueError(
                f"{self._encoder.path}: must give (N, T, D) and (N,), but {_TRY_FRAMES} frames give "
                f"{encoder_out.shape} and {lens.tolist()}."
            )
        self._check_logits(encoder_out[:, 0])


def _refuse_streaming(encoder: Graph) -> None:
    if is_streaming(encoder):
        raise ValueError(f"{encoder.path} is a streaming encoder, which runs chunk by chunk. Use `transducer stream`.")


def _resized(x: np.ndarray, width: int, value: float) -> np.ndarray:
    """Cut or pad: (N, T, F) -> (N, width, F)."""
    missing = width - x.shape[1]
    return x[:, :width] if missing <= 0 else np.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=value)
