"""Subsampling by 4: two strided convolutions over time and frequency.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn


class Conv2dSubsampling(nn.Module):
    """(N, T_in, F) -> (N, T, D), with T = (T_in - 7) // 4 + 1.

    No padding: frame t sees exactly the feature frames 4t .. 4t+6, so an utterance is never touched by what
    is padded behind it.
    """

    def __init__(self, feature_dim: int, num_channels: int, output_dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, num_channels, kernel_size=3, stride=2),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, kernel_size=3, stride=2),
            nn.ReLU(),
        )
        self.out = nn.Linear(num_channels * (((feature_dim - 1) // 2 - 1) // 2), output_dim)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        x = self.conv(features[:, None])  # (N, C, T, F')
        return self.out(x.transpose(1, 2).flatten(2))  # (N, T, C * F')
