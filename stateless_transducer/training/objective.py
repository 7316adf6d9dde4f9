"""What training differentiates: the transducer's nll, whole or pruned, and for a while a CTC nll beside it.

Letters: N utterances, T encoder frames, U tokens, V vocabulary, D joiner width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from stateless_transducer.data.batches import Batch
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.ops.pruned_loss import PruneRanges, prune_ranges, simple_transducer_loss
from stateless_transducer.training.config import PruneConfig


class Losses(NamedTuple):
    """Of the utterances of a batch, each (N,)."""

    nll: Tensor
    """Transducer: of all paths, or of those in the band."""
    encoder_lens: Tensor
    """Encoder frames."""
    ctc_nll: Tensor | None
    """None: not asked for."""
    simple_nll: Tensor | None
    """What the band was chosen by; None: nothing is pruned."""

    @property
    def is_finite(self) -> Tensor:
        """Whether training can use the utterance."""
        return self.nll.isfinite() if self.simple_nll is None else self.nll.isfinite() & self.simple_nll.isfinite()

    def detach(self) -> Losses:
        """The numbers alone."""
        ctc_nll, simple_nll = (each if each is None else each.detach() for each in (self.ctc_nll, self.simple_nll))
        return Losses(self.nll.detach(), self.encoder_lens, ctc_nll, simple_nll)


class Objective(nn.Module):
    """Model and what only training needs under one `forward`, so that DDP sees one module.

    A transducer started from nothing first learns to say blank, and stays there for long. CTC (Graves 2006) on a linear
    head over the encoder finds the alignment sooner. The pruned loss needs logits of encoder and decoder apart, two
    linear maps. Neither is part of the model; both are thrown away.

    Args:
        model: what is trained.
        config: its sizes.
        has_ctc_head: whether there is a CTC nll.
        prune: how to prune; without a range, nothing is.
    """

    def __init__(
        self, model: Transducer, config: ModelConfig, *, has_ctc_head: bool, prune: PruneConfig | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.ctc_head = nn.Linear(config.joiner.joiner_dim, config.vocab_size) if has_ctc_head else None
        self.simple_joiner = None
        if prune is not None and prune.prune_range:
            self.simple_joiner = SimpleJoiner(config.joiner.joiner_dim, config.vocab_size, prune)

    def forward(self, batch: Batch, max_symbols_per_frame: Literal[1] | None, with_ctc: bool) -> Losses:
        """The losses of a batch, in the standard (None) or the modified (1) topology.

        The batch may be on the CPU: lengths and tokens are looked at, for which a GPU's would have to be waited for.
        """
        there = batch.to(self.model.device)
        encoder_out, _ = self.model.encode(there.features, there.feature_lens)
        lens = self.model.subsampling.lens(batch.feature_lens)
        simple_nll, band = None, None
        if self.simple_joiner is not None:
            decoder_out = self.model.decoder.all_prefixes(there.tokens)
            simple_nll, band = self.simple_joiner(
                encoder_out,
                lens,
                decoder_out,
                batch,
                blank=self.model.blank_id,
                max_symbols_per_frame=max_symbols_per_frame,
            )
        nll = self.model.nll(
            encoder_out, lens, batch.tokens, batch.token_lens, max_symbols_per_frame=max_symbols_per_frame, band=band
        )
        ctc_nll = (
            self._ctc_nll(encoder_out, lens, there.tokens, batch.token_lens)
            if with_ctc and self.ctc_head is not None
            else None
        )
        return Losses(nll, lens, ctc_nll, simple_nll)

    def _ctc_nll(self, encoder_out: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor) -> Tensor:
        assert self.ctc_head is not None
        log_probs = self.ctc_head(encoder_out).float().log_softmax(-1).transpose(0, 1)  # (T, N, V)
        return torch.nn.functional.ctc_loss(
            log_probs,
            tokens,
            lens,
            token_lens,
            blank=self.model.blank_id,
            reduction="none",
            # repeated tokens need a frame between them, so that CTC may have no path where the transducer has one
            zero_infinity=True,
        )


class SimpleJoiner(nn.Module):
    """The sum of two linear maps in the joiner's place: its loss, and the rows of each frame that matter to it."""

    def __init__(self, dim: int, vocab_size: int, config: PruneConfig) -> None:
        super().__init__()
        self.from_encoder, self.from_decoder = nn.Linear(dim, vocab_size), nn.Linear(dim, vocab_size)
        self._config = config

    def forward(
        self,
        encoder_out: Tensor,
        lens: Tensor,
        decoder_out: Tensor,
        batch: Batch,
        *,
        blank: int,
        max_symbols_per_frame: Literal[1] | None,
    ) -> tuple[Tensor, PruneRanges]:
        """(N, T, D), (N,) and (N, U+1, D) -> simple nll (N,), and the band."""
        simple = simple_transducer_loss(
            self.from_encoder(encoder_out),
            lens,
            self.from_decoder(decoder_out),
            batch.tokens,
            batch.token_lens,
            blank=blank,
            max_symbols_per_frame=max_symbols_per_frame,
            lm_only_scale=self._config.lm_scale,
            am_only_scale=self._config.am_scale,
            inf_is="inf",
        )
        band = prune_ranges(
            simple.blank_occupation,
            simple.symbol_occupation,
            lens,
            batch.token_lens,
            width=self._config.prune_range,
            max_symbols_per_frame=max_symbols_per_frame,
        )
        # the band's cells are counted on the CPU: one wait instead of several
        return simple.nll, band._replace(starts=band.starts.cpu())
