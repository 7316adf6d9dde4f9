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
from stateless_transducer.export.onnx_model import FRONT_END, GRAPHS
from stateless_transducer.features import FbankConfig
from stateless_transducer.model.conformer import Conformer
from stateless_transducer.model.decoder import StatelessDecoder

# of the clients that are in use, the oldest onnxruntime (1.17) takes IR 9
_OPSET, _NEWEST_IR = 17, 9
# two encoder frames, below which the traced attention cannot go
_FEWEST_FRAMES = 11


def write_onnx(folder: Path, checkpoint: Checkpoint) -> None:
    """Write encoder.onnx, decoder.onnx, joiner.onnx, tokens.txt and lang.json into a folder.

    Args:
        folder: there already; `files.filling` gives one.
        checkpoint: whose blank is token 0.

    Raises:
        ValueError: the clients could not run such a model.
    """
    config, model = checkpoint.model_config, checkpoint.model()
    if config.blank_id != 0:
        raise ValueError(f"The blank of an exported model must be token 0, but here it is {config.blank_id}.")
    sizes = {"context_size": config.context_size, "vocab_size": config.vocab_size}
    _write(
        folder / GRAPHS["encoder"],
        OfflineEncoder(model.encoder),
        {"x": torch.zeros(2, 40, config.feature_dim), "x_lens": torch.tensor([40, 30])},
        {"encoder_out": {0: "N", 1: "T"}, "encoder_out_lens": {0: "N"}},
        {
            "model_type": "conformer",
            "version": "1",
            "model_author": "stateless-transducer",
            "comment": "stateless transducer",
            FRONT_END: json.dumps(asdict(checkpoint.fbank_config)),
        },
    )
    contexts = torch.zeros(2, config.context_size, dtype=torch.int64)
    _write(folder / GRAPHS["decoder"], _Decoder(model.decoder), {"y": contexts}, {"decoder_out": {0: "N"}}, sizes)
    rows = torch.zeros(2, config.joiner_dim)
    _write(
        folder / GRAPHS["joiner"],
        model.joiner,
        {"encoder_out": rows, "decoder_out": rows},
        {"logit": {0: "N"}},
        {"joiner_dim": config.joiner_dim},
    )
    checkpoint.token_table.write(folder, mark_words=True)


def differs_from_clients(config: FbankConfig) -> str:
    """What sherpa-onnx and onnx-asr would compute otherwise than this front end; empty if nothing."""
    wanted = asdict(FbankConfig())
    return ", ".join(f"{name} {value}" for name, value in asdict(config).items() if value != wanted[name])


class OfflineEncoder(nn.Module):
    """The encoder for utterances of any length: what is too short for a frame gives none, and is no error."""

    def __init__(self, encoder: Conformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.eval()

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T_in, F) and (N,) -> (N, T, D) and (N,)."""
        silence = x.new_zeros(x.shape[0], _FEWEST_FRAMES, x.shape[2])
        num_frames = torch._shape_as_tensor(x)[1]  # pyright: ignore[reportPrivateImportUsage]
        wanted = num_frames.clamp(min=_FEWEST_FRAMES)
        return self.encoder(torch.cat([x, silence], dim=1)[:, :wanted], x_lens)


class _Decoder(nn.Module):
    """The decoder for contexts that begin with -1 where nothing stands, not even the first blank."""

    def __init__(self, decoder: StatelessDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.eval()

    def forward(self, y: Tensor) -> Tensor:
        """(N, C) -> (N, D)."""
        # a gather would take -1 for the last row of the table
        x = self.decoder.embedding(y.clamp(min=0)) * (y >= 0)[:, :, None]
        return x[:, 0] if self.decoder.context_size == 1 else (x * self.decoder.conv.weight[:, 0].T).sum(1)


def _write(
    path: Path,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str | int],
) -> None:
    """Trace a module, and add metadata to the graph; the first axis of all inputs is N, the second of x is T_in."""
    axes = {name: {0: "N", 1: "T_in"} if name == "x" else {0: "N"} for name in inputs}
    with torch.no_grad(), warnings.catch_warnings():
        # the newer exporter writes IR 10; this one says that it is the older one
        warnings.simplefilter("ignore", DeprecationWarning)
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
