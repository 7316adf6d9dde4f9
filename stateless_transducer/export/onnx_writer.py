"""A checkpoint as three ONNX graphs and their tokens: the layout of icefall, which sherpa-onnx and onnx-asr read.

`docs/export.md` lists what the clients expect. Letters: N utterances, T_in feature frames, F mel bins, T encoder
frames, C tokens of context, D joiner width, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.export.card import CARD
from stateless_transducer.export.onnx_graph import FRONT_END, SUBSAMPLING
from stateless_transducer.export.onnx_model import GRAPHS, INT8_GRAPHS
from stateless_transducer.export.streaming_layouts import streaming_layout
from stateless_transducer.export.traceable import OfflineEncoder, StreamingEncoder, TraceableDecoder
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.live import live_encoder
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.text.tokens import SCORES_FILE

# the oldest onnxruntime among the clients in use (1.17) reads IR 9
_OPSET, _NEWEST_IR = 17, 9
FOLDER_FILES = (*GRAPHS.values(), *INT8_GRAPHS.values(), "tokens.txt", "lang.json", SCORES_FILE, CARD)
"""Files that a folder of an exported model may hold."""
_MODEL_TYPES = {"zipformer": "zipformer2"}
"""Names by which sherpa-onnx knows encoders, where they differ."""


def write_onnx(folder: Path, checkpoint: Checkpoint) -> None:
    """Write encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt, lang.json and, for BPE, bpe.vocab into a folder.

    Args:
        folder: An existing folder, as from `files.filling`.
        checkpoint: A model whose blank is token 0.

    Raises:
        ValueError: The clients cannot run the model.
    """
    config, model = checkpoint.model_config, _model(checkpoint)
    _write(
        folder / GRAPHS["encoder"],
        OfflineEncoder(model),
        {"x": torch.zeros(2, 40, config.feature_dim), "x_lens": torch.tensor([40, 30])},
        ["encoder_out", "encoder_out_lens"],
        {"x": {0: "N", 1: "T_in"}, "x_lens": {0: "N"}, "encoder_out": {0: "N", 1: "T"}, "encoder_out_lens": {0: "N"}},
        _facts(checkpoint, model),
    )
    _write_rest(folder, checkpoint, model)


def write_streaming_onnx(
    folder: Path, checkpoint: Checkpoint, *, chunk_ms: int | None = None, left_ms: int | None = None
) -> None:
    """Write the files of `write_onnx` with an encoder for live sound, as sherpa-onnx's `OnlineRecognizer` runs it.

    Args:
        folder: An existing folder, as from `files.filling`.
        checkpoint: A causal model whose blank is token 0.
        chunk_ms: Milliseconds of a chunk, see `live_encoder`.
        left_ms: Milliseconds before a chunk that it sees, see `live_encoder`.

    Raises:
        ValueError: The client cannot run the model, it needs whole utterances, or a duration does not fit its frames.
    """
    config, model = checkpoint.model_config, _model(checkpoint)
    encoder = live_encoder(model, chunk_ms=chunk_ms, left_ms=left_ms)
    layout = streaming_layout(encoder, config.encoder)
    arrays = dict(zip(layout.axes, layout.to_arrays(encoder.initial_state(2)), strict=True))
    outputs = {f"new_{name}": {axis: "N"} for name, axis in list(layout.axes.items())[: layout.num_outputs]}
    axes = {name: {axis: "N"} for name, axis in layout.axes.items()}
    _write(
        folder / GRAPHS["encoder"],
        StreamingEncoder(model, encoder, layout),
        {"x": torch.zeros(2, encoder.chunk_frames, config.feature_dim), **arrays},
        ["encoder_out", *outputs],
        {"x": {0: "N"}, "encoder_out": {0: "N"}} | axes | outputs,
        layout.metadata | _facts(checkpoint, model),
    )
    _write_rest(folder, checkpoint, model)


def _model(checkpoint: Checkpoint) -> Transducer:
    if checkpoint.model_config.blank_id != 0:
        raise ValueError(
            f"The blank of an exported model must be token 0, but here it is {checkpoint.model_config.blank_id}."
        )
    return checkpoint.model()


def _facts(checkpoint: Checkpoint, model: Transducer) -> dict[str, str]:
    """Return entries of the encoder's metadata that do not depend on its layout."""
    kind = checkpoint.model_config.encoder.kind
    return {
        "model_type": _MODEL_TYPES.get(kind, kind),
        "version": "1",
        "model_author": "stateless-transducer",
        "comment": "stateless transducer",
        FRONT_END: json.dumps(asdict(checkpoint.fbank_config)),
        SUBSAMPLING: json.dumps(asdict(model.subsampling)),
    }


def _write_rest(folder: Path, checkpoint: Checkpoint, model: Transducer) -> None:
    """Write decoder, joiner and tokens."""
    config = checkpoint.model_config
    context_size, joiner_dim = config.decoder.context_size, config.joiner.joiner_dim
    _write(
        folder / GRAPHS["decoder"],
        TraceableDecoder(model),
        {"y": torch.zeros(2, context_size, dtype=torch.int64)},
        ["decoder_out"],
        {"y": {0: "N"}, "decoder_out": {0: "N"}},
        {"context_size": context_size, "vocab_size": config.vocab_size},
    )
    rows = torch.zeros(2, joiner_dim)
    _write(
        folder / GRAPHS["joiner"],
        model.joiner,
        {"encoder_out": rows, "decoder_out": rows},
        ["logit"],
        {name: {0: "N"} for name in ("encoder_out", "decoder_out", "logit")},
        {"joiner_dim": joiner_dim},
    )
    checkpoint.token_table.write(folder, mark_words=True)


def differs_from_clients(config: FbankConfig) -> str:
    """Return the settings in which a front end differs from that of sherpa-onnx and onnx-asr; empty if none."""
    defaults = asdict(FbankConfig())
    return ", ".join(f"{name} {value}" for name, value in asdict(config).items() if value != defaults[name])


def _write(
    path: Path,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str | int],
) -> None:
    """Trace a module, and add metadata to the graph; ``axes`` names the axes of inputs and outputs that vary."""
    with torch.no_grad(), warnings.catch_warnings():
        # the newer exporter writes IR 10; the older one warns of its age
        warnings.simplefilter("ignore", DeprecationWarning)
        # of paddings, which stay as they are
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    assert model.ir_version <= _NEWEST_IR, model.ir_version
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.save(model, str(path))
