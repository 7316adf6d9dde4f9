"""What an encoder must offer, whatever its layers are made of.

CONTRIBUTING.md lists the files that a new encoder touches. Letters: N utterances, T_in feature frames, F mel bins,
T encoder frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stateless_transducer.ops.subsampling import Subsampling


class Encoder(nn.Module):
    """Features to encoder output. Subclasses set the attributes and override `stages` and `forward`."""

    output_dim: int
    """D."""
    width: int
    """Width of the layers, on which noam's learning rate depends."""
    subsampling: Subsampling
    """Encoder frames for feature frames."""
    recompute_stages: bool = False
    """In training, keep no activations inside the stages but compute them again for the gradient."""

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Parts of the encoder from its input to its output.

        The first one takes features to the width of the encoder. Training freezes stages, gives each a learning rate of
        its own, compiles and recomputes them. Parameters outside of all stages belong to the top of the encoder.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            features: (N, T_in, F), padded with anything finite; T_in is at least ``subsampling.min_frames``.
            feature_lens: (N,).

        Returns:
            encoder_out (N, T, D), where padding frames are undefined, and encoder_out_lens (N,), which are
            ``subsampling.lens(feature_lens)``: 0 for an utterance that is too short for a frame.
        """
        raise NotImplementedError
