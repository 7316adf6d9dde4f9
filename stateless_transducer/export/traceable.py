"""The network for tracing exporters: without branches and sizes that a trace would freeze.

Letters: N utterances or streams, T_in feature frames, F mel bins, T encoder frames, C tokens of context, D joiner
width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stateless_transducer.export.streaming_layouts import StreamingLayout
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.transducer import Transducer


class OfflineEncoder(nn.Module):
    """The encoder for utterances of any length: one too short for a frame gives none, without an error."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.model = model
        # the traced attention needs two encoder frames
        self.fewest_frames: int = model.subsampling.min_frames + model.subsampling.factor
        self.eval()

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T_in, F) and (N,) -> (N, T, D) and (N,)."""
        silence = x.new_zeros(x.shape[0], self.fewest_frames, x.shape[2])
        num_frames = torch._shape_as_tensor(x)[1]  # pyright: ignore[reportPrivateImportUsage]
        padded_frames = num_frames.clamp(min=self.fewest_frames)
        return self.model.encode(torch.cat([x, silence], dim=1)[:, :padded_frames], x_lens)


class StreamingEncoder(nn.Module):
    """The encoder for a chunk of streams, with its state in the arrays of another program."""

    def __init__(self, model: Transducer, encoder: CausalEncoder, layout: StreamingLayout) -> None:
        super().__init__()
        self.normalizer, self.encoder, self.projection = model.normalizer, encoder, model.joiner.encoder_proj
        self.layout = layout
        self.eval()

    def forward(self, x: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
        """(N, T_in, F) and the arrays of the state -> (N, T, D) and the next arrays."""
        frames, state = self.encoder.encode_chunk(self.normalizer(x), self.layout.from_arrays(arrays))
        return self.projection(frames), *self.layout.to_arrays(state)[: self.layout.num_outputs]


class TraceableDecoder(nn.Module):
    """The decoder, projected, for contexts with -1 at positions before the first blank."""

    def __init__(self, model: Transducer) -> None:
        super().__init__()
        self.decoder, self.projection = model.decoder, model.joiner.decoder_proj
        self.eval()

    def forward(self, y: Tensor) -> Tensor:
        """(N, C) -> (N, D)."""
        if self.decoder.is_grouped:
            return self.projection(self.decoder(y)[:, 0])
        # -1 means blank, as in this package's searches; a gather would read the last row of the table
        x = self.decoder.embedding(y.clamp(min=0))
        x = x[:, 0] if self.decoder.context_size == 1 else (x * self.decoder.conv.weight[:, 0].T).sum(1)
        return self.projection(x)
