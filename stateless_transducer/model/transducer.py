"""The stateless transducer: encoder, decoder, joiner, and the loss that trains them.

Letters: N utterances, T_in feature frames, F mel bins, T encoder frames, U tokens, V vocabulary, D joiner width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.conformer import Conformer
from stateless_transducer.model.decoder import StatelessDecoder
from stateless_transducer.model.joiner import Joiner
from stateless_transducer.ops.joint_loss import joint_transducer_loss


class Transducer(nn.Module):
    """Training calls it (`forward` gives the nll); the searches use `encode`, `predict` and `join`."""

    def __init__(self, encoder: Conformer, decoder: StatelessDecoder, joiner: Joiner) -> None:
        super().__init__()
        self.encoder, self.decoder, self.joiner = encoder, decoder, joiner
        self.blank_id, self.context_size = decoder.blank_id, decoder.context_size

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        tokens: Tensor,
        token_lens: Tensor,
        *,
        max_symbols_per_frame: Literal[1] | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each utterance, (N,).

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
    ) -> Tensor:
        """`forward` from the encoder's output on: (N, T, D) and (N,) with tokens (N, U) and (N,) -> (N,).

        With a band (see `joint_transducer_loss`), of the paths within it. Tokens, lengths and band may be on the CPU.

        Infinite for an utterance without a path: the caller knows its name.
        """
        return joint_transducer_loss(
            encoder_out,
            encoder_out_lens,
            self.decoder.all_prefixes(tokens.to(encoder_out.device, non_blocking=True)),
            tokens,
            token_lens,
            self.joiner.output_linear.weight,
            self.joiner.output_linear.bias,
            blank=self.blank_id,
            max_symbols_per_frame=max_symbols_per_frame,
            band=band,
            inf_is="inf",
        )

    def encode(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, T_in, F) and (N,) -> encoder_out (N, T, D) and encoder_out_lens (N,)."""
        return self.encoder(features, feature_lens)

    def predict(self, contexts: Tensor) -> Tensor:
        """(N, context_size) -> (N, D)."""
        return self.decoder.step(contexts)

    def join(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """(N, D) and (N, D) -> logits (N, V)."""
        return self.joiner(encoder_out, decoder_out)


def build_model(config: ModelConfig) -> Transducer:
    """The network of the given sizes, with fresh weights drawn from torch's generator."""
    encoder = Conformer(
        feature_dim=config.feature_dim,
        feature_norm=config.feature_norm,
        num_layers=config.num_layers,
        dim=config.attention_dim,
        num_heads=config.num_heads,
        feedforward_dim=config.feedforward_dim,
        conv_kernel=config.conv_kernel,
        subsampling_channels=config.subsampling_channels or config.attention_dim,
        output_dim=config.joiner_dim,
        dropout=config.dropout,
    )
    decoder = StatelessDecoder(config.vocab_size, config.joiner_dim, config.blank_id, config.context_size)
    return Transducer(encoder, decoder, Joiner(config.joiner_dim, config.vocab_size))
