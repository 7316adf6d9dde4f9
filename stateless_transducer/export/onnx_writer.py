"""A checkpoint as three ONNX graphs and their tokens: the layout of icefall, which sherpa-onnx and onnx-asr read.

`docs/export.md` lists what the clients expect. Letters: N utterances, T_in feature frames, F mel bins, T encoder
frames, C tokens of context, D joiner width, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.export.card import CARD
from stateless_transducer.export.onnx_graph import FRONT_END, SUBSAMPLING
from stateless_transducer.export.onnx_model import GRAPHS, INT8_GRAPHS
from stateless_transducer.export.traceable import OfflineDecoder, OfflineEncoder
from stateless_transducer.features import FbankConfig
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
    config, model = checkpoint.model_config, checkpoint.model()
    if config.blank_id != 0:
        raise ValueError(f"The blank of an exported model must be token 0, but here it is {config.blank_id}.")
    context_size, joiner_dim = config.decoder.context_size, config.joiner.joiner_dim
    sizes = {"context_size": context_size, "vocab_size": config.vocab_size}
    _write(
        folder / GRAPHS["encoder"],
        OfflineEncoder(model),
        {"x": torch.zeros(2, 40, config.feature_dim), "x_lens": torch.tensor([40, 30])},
        {"encoder_out": {0: "N", 1: "T"}, "encoder_out_lens": {0: "N"}},
        {
            "model_type": _MODEL_TYPES.get(config.encoder.kind, config.encoder.kind),
            "version": "1",
            "model_author": "stateless-transducer",
            "comment": "stateless transducer",
            FRONT_END: json.dumps(asdict(checkpoint.fbank_config)),
            SUBSAMPLING: json.dumps(asdict(model.subsampling)),
        },
    )
    contexts = torch.zeros(2, context_size, dtype=torch.int64)
    _write(folder / GRAPHS["decoder"], OfflineDecoder(model), {"y": contexts}, {"decoder_out": {0: "N"}}, sizes)
    rows = torch.zeros(2, joiner_dim)
    _write(
        folder / GRAPHS["joiner"],
        model.joiner,
        {"encoder_out": rows, "decoder_out": rows},
        {"logit": {0: "N"}},
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
    outputs: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str | int],
) -> None:
    """Trace a module and add metadata to the graph; the first axis of all inputs is N, the second of x is T_in."""
    axes = {name: {0: "N", 1: "T_in"} if name == "x" else {0: "N"} for name in inputs}
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
            dynamic_axes={**axes, **outputs},
            opset_version=_OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    assert model.ir_version <= _NEWEST_IR, model.ir_version
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.save(model, str(path))
