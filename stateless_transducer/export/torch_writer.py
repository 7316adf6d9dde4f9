"""A model as a torch.export program or TorchScript, for C++ and for Python without this package.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, C tokens of context, D joiner width,
V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from stateless_transducer.checkpoint import Checkpoint
from stateless_transducer.export.traceable import OfflineEncoder
from stateless_transducer.files import replacing
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.text.tokens import SCORES_FILE

# frames after every utterance, for at least three encoder frames: the exporter proves shapes from that length on
_PADDING = 15
_MOST_UTTERANCES, _MOST_FRAMES = 4096, 1_000_000


def write_program(path: Path, checkpoint: Checkpoint) -> None:
    """Write the encoder by ``torch.export``: x (N, T_in, F) and x_lens (N,) -> encoder_out and encoder_out_lens.

    N and T_in are arbitrary; encoder_out has a few frames after the end of the longest utterance.

    Raises:
        ValueError: torch.export cannot write this kind of encoder.
    """
    encoder = checkpoint.model_config.encoder
    if not encoder.can_export_program:
        raise ValueError(f"{path}: torch.export cannot write a {encoder.kind}. Write ONNX, or TorchScript (.jit.pt).")
    N = torch.export.Dim("N", min=1, max=_MOST_UTTERANCES)
    T_in = torch.export.Dim("T_in", min=0, max=_MOST_FRAMES)
    program = torch.export.export(
        _PaddingEncoder(checkpoint.model()),
        _example(checkpoint),
        dynamic_shapes={"x": {0: N, 1: T_in}, "x_lens": {0: N}},
        # until torch 2.7, strict mode does not support views with custom strides
        strict=False,
    )
    with replacing(path) as temporary:
        torch.export.save(program, temporary, extra_files=_facts(checkpoint))


def write_script(path: Path, checkpoint: Checkpoint) -> None:
    """Write TorchScript with the methods encode, predict and join, with the meaning of this package's model."""
    rows = torch.zeros(2, checkpoint.model_config.joiner.joiner_dim)
    contexts = torch.zeros(2, checkpoint.model_config.decoder.context_size, dtype=torch.int64)
    with warnings.catch_warnings():
        # torch's deprecation warning, which is shown by default from 2.14 on
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        script = torch.jit.trace_module(
            _Methods(checkpoint.model()),
            {"encode": _example(checkpoint), "predict": (contexts,), "join": (rows, rows)},
            check_trace=False,
        )
        with replacing(path) as temporary:
            torch.jit.save(script, str(temporary), _extra_files=_facts(checkpoint))


def _example(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 40, checkpoint.model_config.feature_dim), torch.tensor([40, 30])


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the extra files of the archive: tokens, sizes and front end."""
    lines = (f"{symbol} {i}\n" for i, symbol in enumerate(checkpoint.token_table.symbols))
    settings = {
        "sizes": checkpoint.model_config.sizes(),
        "fbank": asdict(checkpoint.fbank_config),
        "unit": checkpoint.token_table.unit,
    }
    scores = {SCORES_FILE: checkpoint.token_table.scores_text()} if checkpoint.token_table.scores else {}
    return {"tokens.txt": "".join(lines), **scores, "config.json": json.dumps(settings, indent=2)}


class _PaddingEncoder(nn.Module):
    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode(nn.functional.pad(x, (0, 0, 0, _PADDING)), x_lens)


class _Methods(nn.Module):
    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model, self.encoder = model, OfflineEncoder(model)
        self.eval().requires_grad_(False)

    def encode(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x, x_lens)

    def predict(self, contexts: Tensor) -> Tensor:
        return self.model.predict(contexts)

    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.model.join(encoder_out, decoder_out)
