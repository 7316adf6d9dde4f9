"""Somebody else's tiny transducer for whole utterances, with icefall's names and habits, and random weights.

The mask is as wide as the longest utterance says, the subsampling takes 9 frames at least, the embedding of the blank
is not zero, tokens are pieces of words, none is ``<unk>``. Letters: N utterances, T feature frames, n encoder frames.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

WIDTH, JOINER_DIM, VOCAB_SIZE = 8, 12, 20
SYMBOLS = ["<blk>", *("\u2581" * (i % 3 == 0) + chr(97 + i) for i in range(VOCAB_SIZE - 1)), "#0"]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.output = nn.Conv1d(80, WIDTH, 9, stride=4), nn.Linear(WIDTH, JOINER_DIM)

    def forward(self, x: Tensor, x_lens: Tensor):
        lens = torch.div(x_lens - 9, 4, rounding_mode="floor") + 1
        x = torch.tanh(self.embed((x.transpose(1, 2) + 6) / 2).transpose(1, 2))
        padding = torch.arange(lens.max()) >= lens[:, None]  # (N, n)
        # the mean of what is heard: padding that is not masked would show
        kept = x.masked_fill(padding[:, :, None], 0.0)
        return self.output(x + kept.sum(1, keepdim=True) / lens[:, None, None]), lens


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(VOCAB_SIZE, WIDTH), nn.Conv1d(WIDTH, WIDTH, 2, bias=False)
        self.proj = nn.Linear(WIDTH, JOINER_DIM)

    def forward(self, y: Tensor) -> Tensor:
        x = self.embedding(y.clamp(min=0)) * (y >= 0)[:, :, None]
        return self.proj(torch.relu(self.conv(x.transpose(1, 2))[:, :, 0]))


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(JOINER_DIM, VOCAB_SIZE)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.output(torch.tanh(encoder_out + decoder_out))


def write_offline(folder: Path, name: str = "-epoch-99-avg-1") -> Path:
    """Write the model as icefall does."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder, decoder, joiner = (kind().eval() for kind in (Encoder, Decoder, Joiner))
        for each in [*encoder.parameters(), *decoder.parameters(), *joiner.parameters()]:
            # it should matter what was heard and what was said
            each.data *= 3 if each.dim() > 1 else 1
        joiner.output.bias.data[0] += 0.5
    lines = (f"{symbol} {i}\n" for i, symbol in enumerate(SYMBOLS))
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    sizes = {"context_size": "2", "vocab_size": str(VOCAB_SIZE)}
    rows = {"encoder_out": torch.zeros(1, JOINER_DIM), "decoder_out": torch.zeros(1, JOINER_DIM)}
    x = {"x": torch.zeros(1, 100, 80), "x_lens": torch.tensor([100])}
    outputs = ["encoder_out", "encoder_out_lens"]
    _write(folder / f"encoder{name}.onnx", encoder, x, outputs, {"model_type": "zipformer2", "version": "1"})
    _write(folder / f"decoder{name}.onnx", decoder, {"y": torch.zeros(1, 2, dtype=torch.int64)}, ["decoder_out"], sizes)
    _write(folder / f"joiner{name}.onnx", joiner, rows, ["logit"], {"joiner_dim": str(JOINER_DIM)})
    return folder


def _write(path, module, inputs, outputs, metadata):
    axes = {name: {0: "N", 1: "T"} if name in ("x", "encoder_out") and "x" in inputs else {0: "N"} for name in inputs}
    axes |= {name: {0: "N", 1: "T"} if name == "encoder_out" else {0: "N"} for name in outputs}
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=13,
        dynamo=False,
    )
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, path)
