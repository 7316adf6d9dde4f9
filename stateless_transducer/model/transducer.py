"""Stateless transducer: encoder, decoder, joiner, and the loss that trains them.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, U tokens, V vocabulary, D joiner width,
E width of the encoder's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stateless_transducer.model.chunks import ChunkChoices
from stateless_transducer.model.config import ConformerConfig, ModelConfig, ZipformerConfig
from stateless_transducer.model.conformer import Conformer
from stateless_transducer.model.decoder import StatelessDecoder
from stateless_transducer.model.encoder import Encoder
from stateless_transducer.model.feature_norm import FeatureNormalizer
from stateless_transducer.model.joiner import Joiner
from stateless_transducer.model.zipformer import StackSizes, Zipformer
from stateless_transducer.model.zipformer_layer import LayerSizes
from stateless_transducer.ops.cells import list_cells
from stateless_transducer.ops.joiner_scores import JoinerInputs, arc_scores
from stateless_transducer.ops.joint_loss import joint_transducer_loss
from stateless_transducer.ops.lattice import sum_over_paths
from stateless_transducer.ops.subsampling import Subsampling

TOKEN_ROWS = ("decoder.embedding.weight", "joiner.output_linear.weight", "joiner.output_linear.bias")
"""Parameters of a `Transducer` with a row for each token."""


class Transducer(nn.Module):
    """Stateless transducer. Training calls `forward`, which gives the nll; searches use `encode`, `predict`, `join`.

    Example:
        >>> model = build_model(ModelConfig(500, ConformerConfig(num_layers=1, attention_dim=32, num_heads=2)))
        >>> features, tokens = torch.randn(2, 100, 80), torch.randint(1, 500, (2, 5))
        >>> nll = model(features, torch.tensor([100, 80]), tokens, torch.tensor([5, 3]))
        >>> nll.sum().backward()
        >>> nll.shape
        torch.Size([2])
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: StatelessDecoder,
        joiner: Joiner,
        *,
        normalizer: FeatureNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.decoder: StatelessDecoder = decoder
        self.joiner: Joiner = joiner
        self.normalizer: FeatureNormalizer = normalizer or FeatureNormalizer("none", 0)
        self.blank_id: int = decoder.blank_id
        self.context_size: int = decoder.context_size

    @property
    def subsampling(self) -> Subsampling:
        """Subsampling from feature frames to encoder frames."""
        return self.encoder.subsampling

    @property
    def vocab_size(self) -> int:
        """Number of tokens, blank included."""
        return self.decoder.embedding.num_embeddings

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.joiner.device

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        tokens: Tensor,
        token_lens: Tensor,
        *,
        max_symbols_per_frame: Literal[1] | None = None,
    ) -> Tensor:
        """Compute the negative log-likelihood of each utterance, (N,).

        Args:
            features: (N, T_in, F).
            feature_lens: (N,).
            tokens: (N, U), without blanks.
            token_lens: (N,).
            max_symbols_per_frame: see `joint_transducer_loss`.
        """
        encoder_out, encoder_out_lens = self.encode(features, feature_lens)
        return self.nll(encoder_out, encoder_out_lens, tokens, token_lens, max_symbols_per_frame=max_symbols_per_frame)

    def nll(
        self,
        encoder_out: Tensor,
        encoder_out_lens: Tensor,
        tokens: Tensor,
        token_lens: Tensor,
        *,
        max_symbols_per_frame: Literal[1] | None = None,
        band: tuple[Tensor, int] | None = None,
        rows: Tensor | None = None,
        delay_penalty: float = 0.0,
    ) -> Tensor:
        """Compute the nll (N,) from encoder output (N, T, D) and tokens (N, U), with the lengths of both, (N,).

        With a band (see `joint_transducer_loss`), only paths within it count. Tokens, lengths and band may be on the
        CPU. ``rows`` is what ``decoder.all_prefixes`` returned for the tokens, if the caller has it. The nll of an
        utterance without a path is infinite, so that the caller can name the utterance. ``delay_penalty`` is that of
        `joint_transducer_loss`.
        """
        if rows is None:
            rows = self.decoder.all_prefixes(tokens.to(encoder_out.device, non_blocking=True))
        return joint_transducer_loss(
            encoder_out,
            encoder_out_lens,
            self.joiner.decoder_proj(rows),
            tokens,
            token_lens,
            self.joiner.output_linear.weight,
            self.joiner.output_linear.bias,
            blank=self.blank_id,
            max_symbols_per_frame=max_symbols_per_frame,
            band=band,
            delay_penalty=delay_penalty,
            inf_is="inf",
        )

    def occupations(
        self, encoder_out: Tensor, tokens: Tensor, *, max_symbols_per_frame: Literal[1] | None = None
    ) -> Tensor:
        """Compute the probability that a path goes through each cell of an utterance's lattice.

        Args:
            encoder_out: (1, T, D).
            tokens: (1, U).
            max_symbols_per_frame: see `joint_transducer_loss`.

        Returns:
            (U+1, T), float32, 0..1; NaN where the topology has no cell.
        """
        (_, T, _), U = encoder_out.shape, tokens.shape[1]
        topology = "standard" if max_symbols_per_frame is None else "modified"
        device = encoder_out.device
        lens, token_lens = torch.tensor([T], device=device), torch.tensor([U], device=device)
        cells = list_cells(lens, token_lens, T, topology, device)
        following = nn.functional.pad(tokens, (0, 1))
        # avoid holding the logits of a long utterance
        inputs = JoinerInputs(
            encoder_out,
            self.predict_all(tokens),
            following,
            self.joiner.output_linear.weight,
            self.joiner.output_linear.bias,
            self.blank_id,
        )
        blank, symbol, _ = arc_scores(inputs, cells)
        sums = sum_over_paths(cells, blank, symbol)
        lattice = torch.full((U + 1, T), torch.nan, device=device)
        lattice[cells.u, cells.frame] = (sums[1] + sums[2]).float()
        return lattice

    def encode(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features (N, T_in, F) of lengths (N,): encoder_out (N, T, D) and encoder_out_lens (N,)."""
        frames, lens = self.encode_frames(features, feature_lens)
        return self.joiner.encoder_proj(frames), lens

    def encode_frames(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the encoder's output (N, T, E) before the joiner's projection to encoder_out, and its lengths."""
        return self.encoder(self.normalizer(features, feature_lens), feature_lens)

    def predict(self, contexts: Tensor) -> Tensor:
        """Map contexts (N, context_size) to decoder outputs (N, D)."""
        return self.joiner.decoder_proj(self.decoder.step(contexts))

    def predict_all(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, U) to decoder outputs (N, U+1, D), of which row u has seen the first u tokens."""
        return self.joiner.decoder_proj(self.decoder.all_prefixes(tokens))

    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Map encoder and decoder outputs, (N, D) each, to logits (N, V)."""
        return self.joiner(encoder_out, decoder_out)


def _build_conformer(config: ConformerConfig, feature_dim: int, output_dim: int) -> Conformer:
    return Conformer(
        feature_dim=feature_dim,
        num_layers=config.num_layers,
        dim=config.attention_dim,
        num_heads=config.num_heads,
        feedforward_dim=config.feedforward_dim,
        conv_kernel=config.conv_kernel,
        conv_past=config.conv_past,
        subsampling_channels=config.subsampling_channels or config.attention_dim,
        output_dim=output_dim,
        dropout=config.dropout,
        is_causal=config.causal,
        chunk_choices=ChunkChoices(config.chunk_size, config.left_context_frames),
        chunk_factor=config.chunk_factor,
        subsampling=config.subsampling,
    )


def _build_zipformer(config: ZipformerConfig, feature_dim: int, output_dim: int) -> Zipformer:
    """Build the encoder; its output is as wide as its widest stack, and the joiner projects it."""
    stacks = [
        StackSizes(
            num_layers=config.num_encoder_layers[i],
            factor=config.downsampling_factor[i],
            unmasked_dim=config.encoder_unmasked_dim[i],
            layer=LayerSizes(
                dim=config.encoder_dim[i],
                num_heads=config.num_heads[i],
                query_dim=config.query_head_dim[i],
                position_query_dim=config.pos_head_dim[i],
                value_dim=config.value_head_dim[i],
                positions_dim=config.pos_dim,
                feedforward_dim=config.feedforward_dim[i],
                kernel=config.cnn_module_kernel[i],
                is_causal=config.causal,
            ),
        )
        for i in range(len(config.encoder_dim))
    ]
    return Zipformer(
        feature_dim=feature_dim,
        stacks=stacks,
        dropout=config.dropout,
        chunk_choices=ChunkChoices(config.chunk_size, config.left_context_frames),
        chunk_factor=config.chunk_factor,
        subsampling_channels=config.subsampling_channels,
        pads_like_icefall=config.pads_like_icefall,
        subsampling=config.subsampling,
    )


ENCODER_BUILDERS: dict[type, Callable[[Any, int, int], Encoder]] = {
    ConformerConfig: _build_conformer,
    ZipformerConfig: _build_zipformer,
}
"""Builder of each encoder by configuration class; it takes the configuration, the feature and the joiner dimension."""


def build_model(config: ModelConfig) -> Transducer:
    """Build a network of the given sizes, with weights drawn from torch's generator.

    Example:
        >>> model = build_model(ModelConfig(500, ConformerConfig(num_layers=1, attention_dim=32, num_heads=2)))
        >>> isinstance(model, Transducer), model.vocab_size
        (True, 500)
    """
    joiner_dim, decoder_dim = config.joiner.joiner_dim, config.decoder_dim
    encoder = ENCODER_BUILDERS[type(config.encoder)](config.encoder, config.feature_dim, joiner_dim)
    decoder = StatelessDecoder(
        config.vocab_size,
        decoder_dim,
        config.blank_id,
        config.decoder.context_size,
        is_grouped=config.decoder.decoder_conv == "grouped",
    )
    input_dims = (encoder.output_dim, decoder_dim) if config.joiner.joiner_proj else None
    joiner = Joiner(joiner_dim, config.vocab_size, input_dims)
    normalizer = FeatureNormalizer(config.feature_norm, config.feature_dim)
    return Transducer(encoder, decoder, joiner, normalizer=normalizer)
