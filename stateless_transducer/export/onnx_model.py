"""Transducers for whole utterances as ONNX graphs, ours and others', in icefall's layout; no torch.

Graphs are known by the order of their inputs and outputs, as sherpa-onnx knows them. Letters: N utterances, T_in
feature frames, F mel bins, T encoder frames, C tokens of context, D joiner width, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from stateless_transducer.export.onnx_graph import Graph, feature_dim, find_graph, is_int8, is_streaming
from stateless_transducer.features import PADDING_VALUE, SILENCE_VALUE, FbankConfig
from stateless_transducer.model.config import ConformerConfig
from stateless_transducer.ops.subsampling import Subsampling

Precision = Literal["fp32", "int8"]
GRAPHS = {role: f"{role}.onnx" for role in ("encoder", "decoder", "joiner")}
"""Names of our graphs by role."""
INT8_GRAPHS = {role: f"{role}.int8.onnx" for role in GRAPHS}
"""The same, quantized."""
FRONT_END = "fbank"
"""Where the encoder's metadata have the front end, as JSON; others' graphs have none."""
SUBSAMPLING = "subsampling"
"""Where the encoder's metadata have the subsampling, as JSON; earlier graphs of ours and others' have none."""

# fewer frames are too few for the subsampling of conformers and zipformers
_FEWEST_FRAMES = 9
# for the first try: the longest stride of a zipformer
_TRY_FRAMES = 32


class OnnxTransducer:
    """Encodes, predicts and joins in NumPy arrays; never changes, so threads may share it."""

    blank_id = 0

    def __init__(self, encoder: Path, decoder: Path, joiner: Path, *, num_threads: int | None = None) -> None:
        """Open three graphs and try them on a moment of silence.

        Args:
            encoder: takes (N, T_in, F) and (N,), gives (N, T, D) and (N,).
            decoder: (N, C) -> (N, D).
            joiner: (N, D) and (N, D) -> logits (N, V).
            num_threads: inside a graph; None: as many as there are cores.

        Raises:
            ValueError: not ONNX, not for whole utterances, or they do not fit together.
        """
        self._encoder, self._decoder, self._joiner = (Graph(path, num_threads) for path in (encoder, decoder, joiner))
        _check(self._encoder, self._decoder, self._joiner)
        self.context_size, self.vocab_size = (self._decoder.number(key) for key in ("context_size", "vocab_size"))
        self.fbank_config = _front_end(self._encoder)
        """What the encoder hears."""
        self.subsampling = _subsampling(self._encoder)
        """Encoder frames for feature frames."""
        self.is_ours = FRONT_END in self._encoder.metadata
        """Written by this project: takes utterances of any length, 0 included."""
        self._try()

    @classmethod
    def open(cls, folder: Path, *, precision: Precision = "fp32", num_threads: int | None = None) -> OnnxTransducer:
        """Open a folder with encoder*.onnx, decoder*.onnx and joiner*.onnx; they may lie one level deeper.

        Args:
            folder: where they lie.
            precision: int8 takes the graphs named x.int8.onnx, the encoder's for certain.
            num_threads: see the constructor.

        Raises:
            ValueError: a file is missing, ambiguous or not what it should be.
        """
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; an ONNX model is a folder with three graphs and tokens.txt.")
        wants_int8 = precision == "int8"
        paths = {role: find_graph(folder, role, wants_int8) for role in GRAPHS}
        found = "int8" if is_int8(paths["encoder"]) else "fp32"
        if found != precision:
            _refuse_streaming(Graph(paths["encoder"], 1))
            raise ValueError(
                f"{folder}: holds no encoder of `precision` {precision}, but {paths['encoder'].name}: "
                f"`precision={found}`."
            )
        return cls(**paths, num_threads=num_threads)

    @property
    def metadata(self) -> dict[str, str]:
        """Of the three graphs, without front end and subsampling."""
        graphs = (self._encoder, self._decoder, self._joiner)
        return {
            key: value
            for graph in graphs
            for key, value in sorted(graph.metadata.items())
            if key not in (FRONT_END, SUBSAMPLING)
        }

    def encode(self, features: np.ndarray, feature_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, T_in, F), float32, and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,).

        An utterance gives the same alone and in a batch: a graph that quantizes as it runs gets one at a time.
        """
        if len(features) > 1 and self._encoder.is_single:
            return self._encode_each(features, feature_lens)
        if self.is_ours:
            encoder_out, lens = self._encoder.run(features, feature_lens)[:2]
            return encoder_out, lens
        # others' masks are as wide as the longest utterance, and their subsampling cannot take a few frames
        wanted = max(int(feature_lens.max(initial=0)), _FEWEST_FRAMES)
        encoder_out, lens = self._encoder.run(
            _of_width(features, wanted, PADDING_VALUE), feature_lens.clip(_FEWEST_FRAMES)
        )[:2]
        return encoder_out, np.where(feature_lens < _FEWEST_FRAMES, 0, lens)

    def _encode_each(self, features: np.ndarray, feature_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = zip(features, feature_lens, strict=True)
        found = [self.encode(each[None, :length], np.array([length])) for each, length in pairs]
        longest = max(encoder_out.shape[1] for encoder_out, _ in found)
        parts = [_of_width(encoder_out, longest, 0.0) for encoder_out, _ in found]
        return np.concatenate(parts), np.concatenate([lens for _, lens in found])

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        """(N, C), int64, blanks before the first token -> decoder_out (N, D)."""
        is_blank = contexts == self.blank_id
        # they were trained with one blank before the first token, and before that with nothing, which is -1
        is_nothing = is_blank[:, :-1] & is_blank[:, 1:]
        if is_nothing.any():
            contexts = contexts.copy()
            contexts[:, :-1][is_nothing] = -1
        return self._decoder.run_rows(contexts)

    def join(self, encoder_out: np.ndarray, decoder_out: np.ndarray) -> np.ndarray:
        """(N, D) and (N, D) -> logits (N, V)."""
        return self._joiner.run_rows(encoder_out, decoder_out)

    def _try(self) -> None:
        """Run once, so that what does not fit is found at once."""
        silence = np.full((1, _TRY_FRAMES, self.fbank_config.num_mel_bins), SILENCE_VALUE, np.float32)
        encoder_out, lens = self.encode(silence, np.array([_TRY_FRAMES]))
        if encoder_out.ndim != 3 or lens.shape != (1,) or not 0 < lens[0] <= encoder_out.shape[1]:
            raise ValueError(
                f"{self._encoder.path}: must give (N, T, D) and (N,), but {_TRY_FRAMES} frames give "
                f"{encoder_out.shape} and {lens.tolist()}."
            )
        logits = self.join(encoder_out[:, 0], self.predict(np.zeros((1, self.context_size), np.int64)))
        if logits.shape != (1, self.vocab_size):
            raise ValueError(
                f"{self._joiner.path}: gives {logits.shape[-1]} logits, but `vocab_size` of {self._decoder.path} "
                f"is {self.vocab_size}; the graphs are not of one model."
            )


def _check(encoder: Graph, decoder: Graph, joiner: Graph) -> None:
    """Numbers of inputs and outputs."""
    _refuse_streaming(encoder)
    for graph, takes, gives in ((encoder, "x and x_lens", 2), (decoder, "y", 1), (joiner, "two rows", 1)):
        num_inputs = 1 if graph is decoder else 2
        if (len(graph.inputs), graph.num_outputs) != (num_inputs, gives):
            names = ", ".join(declared.name for declared in graph.inputs)
            raise ValueError(
                f"{graph.path}: must take {takes} and give {gives} output{'s' * (gives > 1)}, but takes {names} and "
                f"gives {graph.num_outputs}; is it of a transducer?"
            )


def _refuse_streaming(encoder: Graph) -> None:
    if is_streaming(encoder):
        raise ValueError(
            f"{encoder.path}: is a streaming encoder, which goes on from chunk to chunk; use `transducer stream`."
        )


def _front_end(encoder: Graph) -> FbankConfig:
    """Ours says which; others' is icefall's."""
    num_mel_bins = feature_dim(encoder)
    if FRONT_END not in encoder.metadata:
        return FbankConfig(num_mel_bins=num_mel_bins)
    try:
        config = FbankConfig(**json.loads(encoder.metadata[FRONT_END]))
    except (ValueError, TypeError) as err:
        raise ValueError(f"{encoder.path}: `{FRONT_END}` of its metadata is no front end: {err}") from err
    if config.num_mel_bins != num_mel_bins:
        raise ValueError(f"{encoder.path}: takes {num_mel_bins} mel bins, but its front end has {config.num_mel_bins}.")
    return config


def _subsampling(encoder: Graph) -> Subsampling:
    if SUBSAMPLING not in encoder.metadata:
        # icefall's encoders all subsample by four
        return ConformerConfig().subsampling
    try:
        return Subsampling(**json.loads(encoder.metadata[SUBSAMPLING]))
    except (ValueError, TypeError) as err:
        raise ValueError(f"{encoder.path}: `{SUBSAMPLING}` of its metadata is invalid: {err}") from err


def _of_width(x: np.ndarray, width: int, value: float) -> np.ndarray:
    """(N, T, F) -> (N, width, F), cut or padded."""
    missing = width - x.shape[1]
    return x[:, :width] if missing <= 0 else np.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=value)
