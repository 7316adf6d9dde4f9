"""A folder of ONNX graphs as a checkpoint: a Zipformer that can be trained on, and how far it equals its graphs.

Letters: N streams, T feature frames, F mel bins, C tokens of context, D joiner width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError

from stateless_transducer import __version__
from stateless_transducer.audio import read_audio
from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.export.onnx_graph import DTYPES, RUNS_QUANTIZED, is_int8
from stateless_transducer.export.onnx_model import OnnxTransducer
from stateless_transducer.export.onnx_streaming import OnnxStreamingTransducer
from stateless_transducer.features import fbank
from stateless_transducer.files import check_file, refuse_pointer, sha256
from stateless_transducer.icefall import from_icefall
from stateless_transducer.icefall_layouts import Sizes
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.model.zipformer import Zipformer
from stateless_transducer.model_files import ROLES, Listing
from stateless_transducer.onnx_import.dataflow import Dataflow
from stateless_transducer.onnx_import.dequantize import dequantize
from stateless_transducer.onnx_import.estimates import estimate_positions, split_edges
from stateless_transducer.onnx_import.zipformer_weights import (
    EdgeSums,
    FoldedPositions,
    Weight,
    Weights,
    read_decoder,
    read_encoder,
    read_joiner,
)
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.wording import counted

_LARGEST_ERROR, _LARGEST_ERROR_OF_ESTIMATES = 1e-3, 1e-2
"""See `Errors`; rounding in float32 gives 1e-6."""
_CHECKED_SECONDS = 5
_CHECKED_CONTEXTS = 64
_PROBE_FRAMES = 100
_KIND = "zipformer2"
NOTES = ("difference", "positions", "edges", "rounded", "unknown")
"""Entries of the provenance that say how far a rebuilt model equals its graphs."""


_Model = OnnxTransducer | OnnxStreamingTransducer


class Errors(NamedTuple):
    """Differences between the outputs of a model and of its graphs, relative to the root mean square of the latter."""

    encoder: float
    decoder: float
    joiner: float


class _Graphs(NamedTuple):
    """The graphs of a model in floating point."""

    paths: dict[str, Path]
    weights: Weights
    num_heads: tuple[int, ...]
    num_rounded: int
    """Number of weights that were rounded to 8 bits."""
    is_streaming: bool


def rebuild(
    folder: Path, *, sizes: Sizes | None = None, lang_dir: Path | None = None, bpe_model: Path | None = None
) -> Checkpoint:
    """Rebuild a Zipformer transducer from its ONNX graphs, streaming or offline, in fp32 or int8.

    The rebuilt model runs on the same sound as the graphs, and its outputs are compared with theirs. The provenance of
    the checkpoint names what the graphs do not show exactly.

    Args:
        folder: folder of the graphs and of tokens.txt; fp32 graphs are preferred to int8 ones.
        sizes: see `icefall.load_icefall`; the graphs show ``num_heads`` and, if streaming, the chunk that they run on.
        lang_dir: folder of tokens.txt, or that file, if it is not the one beside the graphs.
        bpe_model: sentencepiece's model of the tokens, if it is elsewhere.

    Raises:
        ValueError: a file is missing or invalid, the graphs are no Zipformer, or the rebuilt model is not equal to
            them.
    """
    files = Listing.of_folder(folder).choose(("graphs",))
    published = {role: folder / name for role, name in zip(ROLES, files.model, strict=True)}
    with _in_floats(published) as graphs:
        opened = _open(graphs.paths, is_streaming=graphs.is_streaming)
        chunks = _chunks(opened)
        weights, notes = _complete(graphs.weights, chunks.get("chunk_size", (-1,))[0])
        tensors = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
        all_sizes = {**_chunks_by_default(weights, chunks), **(sizes or {}), "num_heads": graphs.num_heads}
        _check_chunks(all_sizes, chunks)
        try:
            our_weights, config = from_icefall(tensors, all_sizes)
        except ValueError as err:
            raise ValueError(f"{folder}: {err}") from err
        table = _token_table(lang_dir or folder / files.tokens, bpe_model, config.vocab_size)
        checkpoint = Checkpoint(our_weights, config, opened.fbank_config, table)
        notes = {**_checked(checkpoint, opened, published, folder, chunks, is_exact=not notes), **notes}
    if graphs.num_rounded:
        notes["rounded"] = f"{counted(graphs.num_rounded, 'weight')}, to 8 bits"
    notes["unknown"] = "encoder_unmasked_dim, dropout, heads of the losses"
    provenance = {
        "version": __version__,
        "command": "transducer import --onnx",
        "imported": {path.name: sha256(path) for path in published.values()},
        **notes,
    }
    return replace(checkpoint, provenance=provenance)


def _token_table(path: Path, bpe_model: Path | None, vocab_size: int) -> TokenTable:
    table = TokenTable.read(path, bpe_model=bpe_model)
    if len(table) != vocab_size:
        raise ValueError(f"{path}: has {len(table)} tokens, but the graphs have {vocab_size}.")
    return table


def _checked(
    checkpoint: Checkpoint,
    graphs: _Model,
    published: Mapping[str, Path],
    folder: Path,
    chunks: Mapping[str, tuple[int]],
    *,
    is_exact: bool,
) -> dict[str, str]:
    """Compare a rebuilt model with its graphs, and return the differences in words.

    Raises:
        ValueError: a difference is too large, or a chunk longer than the sound to compare on.
    """
    features = fbank(_sound(folder, checkpoint.fbank_config.sample_rate), checkpoint.fbank_config)
    if isinstance(graphs, OnnxStreamingTransducer) and graphs.chunk_frames > len(features):
        raise ValueError(
            f"{published['encoder']}: a chunk has {graphs.chunk_frames} feature frames, but at most {len(features)} "
            "can be compared with the rebuilt model. Export it with shorter chunks."
        )
    model = checkpoint.model()
    errors = _compare(model, graphs, features, chunks)
    limit = _LARGEST_ERROR if is_exact else _LARGEST_ERROR_OF_ESTIMATES
    # not a number is no small difference, either: `max` would pass over it
    if not all(error <= limit for error in errors):
        raise ValueError(
            f"{folder}: the outputs of the rebuilt model differ by more than {limit:g} from those of its graphs "
            f"({_spelled(errors)}). {_WAY_OUT}"
        )
    difference = f"{_spelled(errors)}, relative to the outputs of the graphs"
    if is_int8(published["encoder"]):
        rounded = _compare(
            model, _open(published, is_streaming=isinstance(graphs, OnnxStreamingTransducer)), features, chunks
        )
        difference += f" in floating point; {_spelled(rounded)} with integer products"
    return {"difference": difference}


def _spelled(errors: Errors) -> str:
    return f"encoder {errors.encoder:.1e}, decoder {errors.decoder:.1e}, joiner {errors.joiner:.1e}"


_WAY_OUT = (
    "If the model is causal and its graphs are not streaming, set `chunk_size` and `left_context_frames` to those of "
    "the export."
)


@contextmanager
def _in_floats(published: Mapping[str, Path]) -> Iterator[_Graphs]:
    """Read the weights of the graphs, and write graphs in floating point into a temporary folder."""
    with TemporaryDirectory() as folder:
        paths = {role: Path(folder) / f"{role}.onnx" for role in ROLES}
        weights: dict[str, Weight] = {}
        num_rounded, num_heads, is_streaming = 0, (), False
        for role, path in published.items():
            model = _load(path)
            try:
                steps = dequantize(model)
                flow = Dataflow(model)
                if role == "encoder":
                    encoder = read_encoder(flow, steps)
                    weights |= encoder.weights
                    num_heads = _num_heads(model, encoder.attention)
                    # an offline one takes features and their lengths
                    is_streaming = len(model.graph.input) > 2
                else:
                    weights |= read_decoder(flow) if role == "decoder" else read_joiner(flow)
            except ValueError as err:
                raise ValueError(f"{path}: no Zipformer can be rebuilt from the graph: {err}") from err
            num_rounded += len(steps)
            onnx.save(model, str(paths[role]))
        yield _Graphs(paths, weights, num_heads, num_rounded, is_streaming)


def _load(path: Path) -> onnx.ModelProto:
    check_file(path)
    refuse_pointer(path)
    try:
        model = onnx.load(str(path))
    except DecodeError as err:
        raise ValueError(f"{path}: is no ONNX graph, or is damaged ({err}).") from err
    properties = {entry.key: entry.value for entry in model.metadata_props}
    kind = properties.get("model_type", _KIND)
    if kind != _KIND:
        raise ValueError(f"{path}: is a {kind}, from which no model can be rebuilt; {_KIND} is supported.")
    onnx.helper.set_model_props(model, dict(pair for pair in properties.items() if pair != RUNS_QUANTIZED))
    return model


def _num_heads(model: onnx.ModelProto, attention: list[str]) -> tuple[int, ...]:
    """Run an encoder once, and return the number of rows of each of its attention weights."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in attention)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    declared = session.get_inputs()
    shapes = [[size if isinstance(size, int) else 1 for size in tensor.shape] for tensor in declared]
    inputs = {tensor.name: np.zeros(shape, DTYPES[tensor.type]) for tensor, shape in zip(declared, shapes, strict=True)}
    if len(declared) == 2:
        # an offline encoder, which takes sound of any length
        inputs[declared[0].name] = np.zeros([1, _PROBE_FRAMES, shapes[0][2]], np.float32)
        inputs[declared[1].name] = np.full(1, _PROBE_FRAMES, DTYPES[declared[1].type])
    scores = (np.asarray(score) for score in session.run(attention, inputs))
    return tuple(int(np.prod(score.shape[:-2])) for score in scores)


def _open(paths: Mapping[str, Path], *, is_streaming: bool) -> _Model:
    return (OnnxStreamingTransducer if is_streaming else OnnxTransducer)(**paths, num_threads=1)


def _chunks(model: _Model) -> dict[str, tuple[int]]:
    """Return the chunk size and the left context that graphs run with, in frames of 20 ms; {}: whole utterances."""
    if isinstance(model, OnnxTransducer):
        return {}
    # the keys (L, N, C) of the first stack, whose frames are those of 20 ms in all published models
    left_frames = model.initial_state()[0].shape[0]
    return {"chunk_size": (model.chunk_shift // 2,), "left_context_frames": (left_frames,)}


def _chunks_by_default(weights: Mapping[str, np.ndarray], chunks: Mapping[str, tuple[int]]) -> Mapping[str, tuple[int]]:
    is_causal = any("chunkwise_conv" in name for name in weights)
    return chunks or ({"chunk_size": (-1,), "left_context_frames": (-1,)} if is_causal else {})


def _check_chunks(sizes: Sizes, chunks: Mapping[str, tuple[int]]) -> None:
    for name, (number,) in chunks.items():
        if number not in sizes[name]:
            known = ",".join(map(str, sizes[name]))
            raise ValueError(f"`{name}` must contain {number}, with which the graphs run, but is {known}.")


def _complete(weights: Weights, chunk: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Replace what an exporter folded by estimates; return the weights, and what was estimated in words."""
    factors = {
        match[1]: len(value)
        for name, value in weights.items()
        if (match := re.match(r"(encoder\.encoders\.\d+\.)downsample\.bias", name)) and isinstance(value, np.ndarray)
    }
    complete = {name: value for name, value in weights.items() if isinstance(value, np.ndarray)}
    folded = {name: value for name, value in weights.items() if isinstance(value, FoldedPositions)}
    edges = {name: value for name, value in weights.items() if isinstance(value, EdgeSums)}
    notes = {}
    if folded:
        stack = re.compile(r"encoder\.encoders\.\d+\.")
        prefixes = {name: match[0] for name in folded if (match := stack.match(name))}
        complete |= estimate_positions(
            {name: (table, chunk // factors.get(prefixes[name], 1)) for name, table in folded.items()}
        )
        notes["positions"] = (
            f"linear_pos of {counted(len(folded), 'layer')} is estimated, from its effect in chunks of {chunk} frames"
        )
    if edges:
        complete |= {name: split_edges(value) for name, value in edges.items()}
        notes["edges"] = (
            f"chunkwise_conv_scale of {counted(len(edges), 'convolution')} is estimated, from the sum of both edges"
        )
    return complete, notes


def _sound(folder: Path, sample_rate: int) -> np.ndarray:
    """Return sound to compare on: a recording that came with the model and is long enough, or a synthetic voice."""
    num_samples = round(_CHECKED_SECONDS * sample_rate)
    for path in sorted(folder.glob("test_wavs/*.wav")):
        samples = read_audio(path, sample_rate)
        if len(samples) >= num_samples:
            return samples[:num_samples]
    t = np.arange(num_samples) / sample_rate
    # a voice of changing pitch whose level and timbre change four times a second
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / sample_rate
    formants = 500 + 300 * np.sin(2 * np.pi * 2.1 * t), 1500 + 700 * np.sin(2 * np.pi * 1.3 * t)
    harmonics = np.arange(1, 30)[:, None]
    levels = sum(np.exp(-(((harmonics * 120 - formant) / 200) ** 2)) for formant in formants)
    voice = (levels * np.sin(harmonics * phase)).sum(0) * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * t)) ** 2
    noise = np.random.default_rng(0).standard_normal(len(t))
    return (0.1 * voice + 0.003 * noise).astype(np.float32)


@torch.inference_mode()
def _compare(
    model: Transducer,
    graphs: _Model,
    features: np.ndarray,
    chunks: Mapping[str, tuple[int]],
) -> Errors:
    """Return the differences between a model and its graphs.

    Args:
        model: the rebuilt model.
        graphs: the graphs.
        features: (T, F).
        chunks: see `_chunks`.
    """
    if isinstance(graphs, OnnxStreamingTransducer):
        theirs, features = _encode_chunks(graphs, features)
        assert isinstance(model.encoder, Zipformer)
        model.encoder.use_chunks(chunks["chunk_size"][0], chunks["left_context_frames"][0])
    else:
        theirs = graphs.encode(features[None], np.array([len(features)]))[0][0]
    # chunk by chunk equals the whole utterance with masks, but for the frames after the last chunk
    ours = model.encode(torch.from_numpy(features)[None], torch.tensor([len(features)]))[0][0, : len(theirs)].numpy()
    generator = np.random.default_rng(0)
    contexts = generator.integers(1, graphs.vocab_size, (_CHECKED_CONTEXTS, graphs.context_size))
    decoder_out = graphs.predict(contexts)
    rows = theirs[generator.integers(len(theirs), size=_CHECKED_CONTEXTS)]
    logits = graphs.join(rows, decoder_out)
    our_decoder_out = model.predict(torch.from_numpy(contexts)).numpy()
    our_logits = model.join(torch.from_numpy(rows), torch.from_numpy(decoder_out)).numpy()
    return Errors(_relative(ours, theirs), _relative(our_decoder_out, decoder_out), _relative(our_logits, logits))


def _encode_chunks(graphs: OnnxStreamingTransducer, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode the whole chunks of a sound; return the output (T', D), and the features (T, F) that they have seen."""
    num_chunks = (len(features) - graphs.chunk_frames) // graphs.chunk_shift + 1
    encoder_out, _ = graphs.encode(features[None], np.array([len(features)]))
    num_seen = (num_chunks - 1) * graphs.chunk_shift + graphs.chunk_frames
    return encoder_out[0, : num_chunks * graphs.encoder_frames], features[:num_seen]


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.sqrt(np.square(ours - theirs).mean() / np.square(theirs).mean()))
