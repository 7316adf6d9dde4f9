"""Conformer encoder (Gulati et al. 2020, arXiv 2005.08100), as in icefall: LayerNorm in the convolution module.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, C channels, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stateless_transducer.model.attention import RelativeSelfAttention, relative_positions
from stateless_transducer.model.encoder import Encoder
from stateless_transducer.ops.masks import padding_mask
from stateless_transducer.ops.subsampling import Subsampling


class Conformer(Encoder):
    """Conformer encoder: subsampling by 4, ``num_layers`` layers, and a linear map."""

    def __init__(
        self,
        *,
        feature_dim: int,
        num_layers: int,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        conv_kernel: int,
        subsampling_channels: int,
        output_dim: int,
        dropout: float,
        subsampling: Subsampling,
    ) -> None:
        super().__init__()
        self.width: int = dim
        self.output_dim: int = output_dim
        self.subsampling: Subsampling = subsampling
        self.embed: Conv2dSubsampling = Conv2dSubsampling(feature_dim, subsampling_channels, dim)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.layers: nn.ModuleList = nn.ModuleList(
            ConformerLayer(dim, num_heads, feedforward_dim, conv_kernel, dropout) for _ in range(num_layers)
        )
        self.after_norm: nn.LayerNorm = nn.LayerNorm(dim)
        self.output: nn.Sequential = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, output_dim))

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The subsampling and the layers."""
        return [self.embed, *self.layers]

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder.forward`."""
        x = self.embed(features)
        lens = self.subsampling.lens(feature_lens)
        # attention to no frame at all would give NaN
        padding = padding_mask(lens.clamp(min=1), x.shape[1])
        positions = self.dropout(relative_positions(x.shape[1], self.width, like=x))
        x = self.dropout(x * self.width**0.5)
        for layer in self.layers:
            if self.recompute_stages and self.training:
                x = checkpoint(layer, x, positions, padding, use_reentrant=False)
            else:
                x = layer(x, positions, padding)
        return self.output(self.after_norm(x)), lens


class Conv2dSubsampling(nn.Module):
    """Map (N, T_in, F) to (N, T, D), with T = (T_in - 7) // 4 + 1.

    Without padding, frame t sees exactly the feature frames 4t .. 4t+6, so the padding frames after an utterance never
    affect it.
    """

    def __init__(self, feature_dim: int, num_channels: int, output_dim: int) -> None:
        super().__init__()
        self.conv: nn.Sequential = nn.Sequential(
            nn.Conv2d(1, num_channels, kernel_size=3, stride=2),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, kernel_size=3, stride=2),
            nn.ReLU(),
        )
        self.out: nn.Linear = nn.Linear(num_channels * (((feature_dim - 1) // 2 - 1) // 2), output_dim)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        x = self.conv(features[:, None])  # (N, C, T, F')
        return self.out(x.transpose(1, 2).flatten(2))  # (N, T, C * F')


class ConformerLayer(nn.Module):
    """Conformer layer: half a feed-forward, attention, convolution, half a feed-forward; pre-norm and residual."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, conv_kernel: int, dropout: float) -> None:
        super().__init__()
        self.feed_forward_macaron: nn.Sequential = _feed_forward(dim, feedforward_dim, dropout)
        self.self_attn: RelativeSelfAttention = RelativeSelfAttention(dim, num_heads)
        self.conv_module: ConvolutionModule = ConvolutionModule(dim, conv_kernel)
        self.feed_forward: nn.Sequential = _feed_forward(dim, feedforward_dim, dropout)
        self.norm_ff_macaron: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_mha: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_conv: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_ff: nn.LayerNorm = nn.LayerNorm(dim)
        self.norm_final: nn.LayerNorm = nn.LayerNorm(dim)
        self.dropout: nn.Dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D); ``positions`` and ``padding`` are those of `RelativeSelfAttention`."""
        x = x + 0.5 * self.dropout(self.feed_forward_macaron(self.norm_ff_macaron(x)))
        x = x + self.dropout(self.self_attn(self.norm_mha(x), positions, padding))
        x = x + self.dropout(self.conv_module(self.norm_conv(x), padding))
        x = x + 0.5 * self.dropout(self.feed_forward(self.norm_ff(x)))
        return self.norm_final(x)


class ConvolutionModule(nn.Module):
    """Convolution module: gated pointwise, depthwise over time, pointwise; padding is zeroed before the depthwise."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1: nn.Conv1d = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise_conv: nn.Conv1d = nn.Conv1d(dim, dim, kernel, padding=(kernel - 1) // 2, groups=dim)
        self.norm: nn.LayerNorm = nn.LayerNorm(dim)
        self.pointwise_conv2: nn.Conv1d = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D); ``padding``: (N, T), True after the end of an utterance."""
        x = F.glu(_pointwise(self.pointwise_conv1, x))
        # otherwise, the convolution would mix padding frames into the utterance
        x = x.masked_fill(padding[:, :, None], 0.0)
        x = self.depthwise_conv(x.transpose(1, 2)).transpose(1, 2)
        return _pointwise(self.pointwise_conv2, F.silu(self.norm(x)))


def _pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution of kernel 1 to (N, T, D), without the two transpositions that `conv` itself needs."""
    return F.linear(x, conv.weight[:, :, 0], conv.bias)


def _feed_forward(dim: int, hidden_dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden_dim), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim))
