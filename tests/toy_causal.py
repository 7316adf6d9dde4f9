"""A small causal encoder: each frame is mixed with the mean of the frames that it sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stateless_transducer.model.chunks import WHOLE, ChunkChoices, chunk_mask
from stateless_transducer.model.decoder import StatelessDecoder
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.joiner import Joiner
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.ops.subsampling import Subsampling

DIM, VOCAB_SIZE = 12, 9


class ToyState(NamedTuple):
    frames: Tensor
    """(N, L, D)."""
    num_frames: Tensor
    """(N,)."""


class ToyEncoder(CausalEncoder):
    def __init__(self):
        super().__init__()
        self.output_dim = self.width = DIM
        self.subsampling = Subsampling(4, 7)
        self.is_causal, self.chunk_choices, self.chunk_factor, self.look_ahead = True, ChunkChoices((-1,), (-1,)), 2, 3
        self.embed, self.mix = nn.Conv1d(80, DIM, 7, stride=4), nn.Linear(DIM, DIM)

    @property
    def stages(self):
        return [self.embed, self.mix]

    def _embedded(self, features):
        return torch.tanh(self.embed((features.transpose(1, 2) + 8) / 4)).transpose(1, 2)

    def _mixed(self, x, seen, sees):
        weights = sees / sees.sum(-1, keepdim=True)
        return torch.tanh(x + 2 * self.mix(weights @ seen))

    def forward(self, features, feature_lens):
        x, lens = self._embedded(features), self.subsampling.lens(feature_lens)
        T = x.shape[1]
        sees = torch.arange(T) < lens[:, None, None].clamp(min=1)
        chunks = self.batch_chunks()
        if chunks != WHOLE:
            halved = chunks.divided(2)
            sees = sees & chunk_mask(T, halved, x.device)
        return self._mixed(x, x, sees.float()), lens

    def initial_state(self, num_streams):
        L = self.evaluation_chunks.cached_frames // 2
        return ToyState(torch.zeros(num_streams, L, DIM), torch.zeros(num_streams, dtype=torch.int64))

    def encode_chunk(self, features, state):
        x, L = self._embedded(features), state.frames.shape[1]
        seen = torch.cat([state.frames, x], 1)
        sees = torch.arange(seen.shape[1]) >= (L - state.num_frames)[:, None]
        out = self._mixed(x, seen, sees[:, None].float())
        return out, ToyState(seen[:, seen.shape[1] - L :], state.num_frames + x.shape[1])


def toy_model() -> Transducer:
    """A causal transducer with random weights, which emits a token on about every third frame."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Transducer(
            ToyEncoder(), StatelessDecoder(VOCAB_SIZE, DIM, 0, 2), Joiner(DIM, VOCAB_SIZE, (DIM, DIM))
        ).eval()
        for weight in model.parameters():
            weight.data *= 3
        model.joiner.output_linear.bias.data[0] += 2
    return model
