"""Interface of the encoders.

CONTRIBUTING.md lists the files that a new encoder touches. Letters: N utterances, T_in feature frames, F mel bins,
T encoder frames, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from stateless_transducer.ops.subsampling import Subsampling


class Encoder(nn.Module, ABC):
    """Encoder from features to encoder output. Subclasses set the attributes and override `stages` and `forward`."""

    output_dim: int
    """Width of the encoder output, D."""
    width: int
    """Width of the layers, on which noam's learning rate depends."""
    subsampling: Subsampling
    """Subsampling from feature frames to encoder frames."""
    recompute_stages: bool = False
    """Whether training recomputes the activations inside the stages for the gradient instead of storing them."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """Parts of the encoder from its input to its output.

        The first stage maps features to the width of the encoder. Training can freeze, compile and recompute stages,
        and set a learning rate per stage. Parameters outside of all stages belong to the top of the encoder.
        """

    @abstractmethod
    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features.

        Args:
            features: (N, T_in, F), padded with anything finite; T_in is at least ``subsampling.min_frames``.
            feature_lens: (N,).

        Returns:
            encoder_out (N, T, D), with undefined padding frames, and encoder_out_lens (N,), equal to
            ``subsampling.lens(feature_lens)``: 0 for an utterance that is too short for a frame.
        """
