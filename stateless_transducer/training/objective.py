"""What training differentiates: the transducer's nll, and for a while a CTC nll beside it.

Letters: N utterances, T encoder frames, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stateless_transducer.data.batches import Batch
from stateless_transducer.model.config import ModelConfig
from stateless_transducer.model.transducer import Transducer


class Objective(nn.Module):
    """Model and CTC head under one `forward`, so that DDP sees one module.

    A transducer started from nothing first learns to say blank, and stays there for long. CTC (Graves 2006) on a linear
    head over the encoder finds the alignment sooner. The head is no part of the model and is thrown away.
    """

    def __init__(self, model: Transducer, config: ModelConfig, *, has_ctc_head: bool) -> None:
        super().__init__()
        self.model = model
        self.ctc_head = nn.Linear(config.joiner_dim, config.vocab_size) if has_ctc_head else None

    def forward(
        self, batch: Batch, max_symbols_per_frame: Literal[1] | None, with_ctc: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Transducer nll (N,), CTC nll (N,) or None, and the number of encoder frames (N,)."""
        encoder_out, lens = self.model.encode(batch.features, batch.feature_lens)
        nll = self.model.nll(
            encoder_out, lens, batch.tokens, batch.token_lens, max_symbols_per_frame=max_symbols_per_frame
        )
        if self.ctc_head is None or not with_ctc:
            return nll, None, lens
        log_probs = self.ctc_head(encoder_out).float().log_softmax(-1).transpose(0, 1)  # (T, N, V)
        ctc_nll = torch.nn.functional.ctc_loss(
            log_probs,
            batch.tokens,
            lens,
            batch.token_lens,
            blank=self.model.blank_id,
            reduction="none",
            # repeated tokens need a frame between them, so that CTC may have no path where the transducer has one
            zero_infinity=True,
        )
        return nll, ctc_nll, lens
