"""Objectives: the losses that training differentiates, their weights, and the metrics for the log.

The learner and the trainer know an `Objective` alone. `TransducerObjective` is the transducer's nll, whole or pruned,
and for the first epochs a CTC nll beside it.

Letters: N utterances, T encoder frames, U tokens, V vocabulary, D joiner width.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from stateless_transducer.data.batches import Batch
from stateless_transducer.data.config import SpecAugmentConfig
from stateless_transducer.model.encoder import CausalEncoder
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.ops.pruned_loss import PruneRanges, prune_ranges, simple_transducer_loss
from stateless_transducer.training.config import PruneConfig, TrainConfig
from stateless_transducer.training.consistency import WARM_STEP, consistency, two_copies

Topology = Literal[1] | None
"""Symbols per frame: any number (None, the standard transducer), or at most one (1, the modified transducer)."""


class Losses(NamedTuple):
    """Losses of a batch."""

    loss: Tensor
    """(), the weighted sum to differentiate, over the utterances whose loss is finite."""
    utterance_losses: Tensor
    """(N,), float64, detached. The log shows their sum; an update with a loss that is not finite is skipped."""
    weight: Tensor
    """(), the divisor of that sum in the log: encoder frames, for example."""
    metrics: dict[str, Tensor]
    """Further sums for the log by name, (), float64."""


class Objective(nn.Module, ABC):
    """A model and the losses that train it, under one forward, so that DDP sees one module.

    A subclass sets the model and overrides the methods below. Parameters outside of ``model`` are heads: training saves
    them in its checkpoints; a released model has none.
    """

    model: nn.Module
    """The model to release."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """Parts of the model from its input to its output; see `Encoder.stages`."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the model, on which noam's learning rate depends."""

    @property
    def has_idle_parameters(self) -> bool:
        """Whether some parameters get no gradient in some updates."""
        return False

    @property
    def options_of_heads(self) -> dict[str, bool | int | str]:
        """Options on which the set of parameters depends, by the user's name; a resumed run must have the same."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, step: int, epoch: int) -> Losses:
        """Compute the losses of a batch.

        Args:
            batch: the batch, on the CPU or the device. Reading lengths and tokens on a GPU would synchronize.
            step: number of the update over all epochs, from 1.
            epoch: number of the epoch, from 0.
        """

    @abstractmethod
    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the validation loss, which is the same function in every epoch.

        Returns:
            The sum over the utterances whose loss is finite, and the number of their encoder frames: (), float64 each.
        """

    @abstractmethod
    def extra_bytes(self, N: int, T: int, U: int) -> float:
        """Estimate the memory of the losses, without the activations of the model."""

    def head_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers of the heads by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the heads that the objective has; drop those of an earlier run that it lacks."""
        names = self.head_state().keys()
        self.load_state_dict({name: value for name, value in state.items() if name in names}, strict=False)


class UtteranceLosses(NamedTuple):
    """Losses of the utterances of a batch, each (N,)."""

    nll: Tensor
    """Transducer loss over all paths, or over those in the band."""
    encoder_lens: Tensor
    """Number of encoder frames."""
    ctc_nll: Tensor | None
    """CTC loss; None if it was not requested."""
    simple_nll: Tensor | None
    """Loss of the simple joiner that selects the band; None without pruning."""
    divergence: Tensor | None = None
    """Divergence of the CTC output from that for the other copy; None without copies."""

    def mean_of_copies(self) -> UtteranceLosses:
        """Return the losses (N,) of utterances from those of their two copies, (2N,)."""

        def mean(values: Tensor) -> Tensor:
            return values.unflatten(0, (2, -1)).mean(0)

        auxiliary = {name: getattr(self, name) for name in ("ctc_nll", "simple_nll", "divergence")}
        means = {name: mean(values) for name, values in auxiliary.items() if values is not None}
        return self._replace(nll=mean(self.nll), encoder_lens=self.encoder_lens.chunk(2)[0], **means)

    @property
    def is_finite(self) -> Tensor:
        """Whether training can use the utterance."""
        return self.nll.isfinite() if self.simple_nll is None else self.nll.isfinite() & self.simple_nll.isfinite()


class TransducerObjective(Objective):
    """Transducer nll, at random standard or modified, optionally pruned, optionally with an auxiliary CTC nll.

    An untrained transducer first learns to emit blanks, and stays there for long. CTC (Graves 2006) on a linear head
    over the encoder finds the alignment sooner. The pruned loss needs separate logits of encoder and decoder, from two
    linear maps. Both are heads.

    Args:
        model: model to train.
        config: weights of the losses.
        masks: masks of the two copies of each batch, for the consistency of the CTC outputs.

    Raises:
        ValueError: the CTC loss, and with it the copies and their masks, would end before training does.
    """

    def __init__(self, model: Transducer, config: TrainConfig, masks: SpecAugmentConfig | None = None) -> None:
        super().__init__()
        optim = config.optim
        if optim.cr_loss_scale and optim.ctc_epochs < config.num_epochs:
            raise ValueError(
                f"`ctc_epochs` must be at least `num_epochs` {config.num_epochs} with `cr_loss_scale`, but is "
                f"{optim.ctc_epochs}: only the copies of a batch are masked."
            )
        self.masks = (masks or SpecAugmentConfig()) if config.optim.cr_loss_scale else None
        self.model: Transducer = model  # pyright: ignore[reportIncompatibleVariableOverride]
        self.config = config
        dims, vocab_size = (model.encoder.output_dim, model.decoder.output_dim), model.vocab_size
        self.ctc_head: nn.Linear | None = nn.Linear(dims[0], vocab_size) if config.optim.ctc_loss_scale > 0 else None
        self.simple_joiner = SimpleJoiner(dims, vocab_size, config.prune) if config.prune.prune_range else None

    @property
    def stages(self) -> Sequence[nn.Module]:
        """Stages of the encoder."""
        return self.model.encoder.stages

    @property
    def width(self) -> int:
        """Width of the encoder."""
        return self.model.encoder.width

    @property
    def has_idle_parameters(self) -> bool:
        """Whether there is a CTC head, which gets no gradient once its epochs are over."""
        return self.ctc_head is not None

    @property
    def options_of_heads(self) -> dict[str, bool | int | str]:
        """Options that add a head."""
        return {
            "--ctc-loss-scale above 0": self.ctc_head is not None,
            "--prune-range above 0": self.simple_joiner is not None,
        }

    def forward(self, batch: Batch, step: int, epoch: int) -> Losses:
        """See `Objective.forward`. The topology is drawn from the seed and the step: the same on all ranks."""
        optim, delay_penalty = self.config.optim, self.config.delay_penalty_at(step, epoch)
        if isinstance(self.model.encoder, CausalEncoder):
            self.model.encoder.draws_chunks = epoch >= optim.whole_epochs
        draw = random.Random(f"{self.config.seed} {step}").random()
        topology: Topology = 1 if draw < optim.modified_transducer_prob else None
        with_ctc = epoch < optim.ctc_epochs
        if self.masks is not None and with_ctc:
            copies = two_copies(batch, self.masks)
            losses = self.unweighted_losses(
                copies, topology, with_ctc=True, delay_penalty=delay_penalty
            ).mean_of_copies()
        else:
            losses = self.unweighted_losses(batch, topology, with_ctc=with_ctc, delay_penalty=delay_penalty)
        loss, metrics = losses.nll, {}
        if losses.simple_nll is not None:
            pruned_weight, simple_weight = self.config.prune.weights(step)
            loss = pruned_weight * loss + simple_weight * losses.simple_nll
            metrics["simple_loss"] = torch.where(losses.is_finite, losses.simple_nll.detach(), 0).double().sum()
        # a loss that is not finite must not reach the other utterances
        loss = torch.where(losses.is_finite, loss, 0).sum()
        if losses.ctc_nll is not None:
            loss = loss + optim.ctc_loss_scale * losses.ctc_nll.sum()
            metrics["ctc_loss"] = losses.ctc_nll.detach().double().sum()
        if losses.divergence is not None:
            loss = loss + optim.cr_loss_scale * min(1.0, step / WARM_STEP) * losses.divergence.sum()
            metrics["cr_loss"] = losses.divergence.detach().double().sum()
        utterance_losses = torch.where(losses.is_finite, losses.nll.detach(), torch.nan).double()
        return Losses(loss, utterance_losses, losses.encoder_lens.sum(), metrics)

    @property
    def validation_topology(self) -> Topology:
        """Topology of the validation loss: modified if all training is, else standard."""
        return 1 if self.config.optim.modified_transducer_prob == 1 else None

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective.evaluate`: the nll of all paths in one topology."""
        batch = batch.to(self.model.device)
        encoder_out, lens = self.model.encode(batch.features, batch.feature_lens)
        nll = self.model.nll(
            encoder_out, lens, batch.tokens, batch.token_lens, max_symbols_per_frame=self.validation_topology
        )
        # an utterance whose numbers overflow would hide all others
        is_finite = nll.isfinite()
        return nll[is_finite].double().sum(), lens[is_finite].sum().double()

    def unweighted_losses(
        self, batch: Batch, topology: Topology, *, with_ctc: bool, delay_penalty: float = 0.0
    ) -> UtteranceLosses:
        """Compute the unweighted losses of each utterance."""
        on_device = batch.to(self.model.device)
        frames, _ = self.model.encode_frames(on_device.features, on_device.feature_lens)
        encoder_out = self.model.joiner.encoder_proj(frames)
        lens = self.model.subsampling.lens(batch.feature_lens)
        simple_nll, band = None, None
        rows = self.model.decoder.all_prefixes(on_device.tokens)
        if self.simple_joiner is not None:
            simple_nll, band = self.simple_joiner(
                frames, lens, rows, batch, self.model.blank_id, topology, delay_penalty=delay_penalty
            )
        nll = self.model.nll(
            encoder_out,
            lens,
            batch.tokens,
            batch.token_lens,
            max_symbols_per_frame=topology,
            band=band,
            rows=rows,
            delay_penalty=delay_penalty,
        )
        ctc_nll, divergence = None, None
        if with_ctc and self.ctc_head is not None:
            log_probs = self.ctc_head(frames).float().log_softmax(-1)
            if self.masks is not None:
                divergence = consistency(log_probs, lens)
            ctc_nll = nn.functional.ctc_loss(
                log_probs.transpose(0, 1),
                on_device.tokens,
                lens,
                batch.token_lens,
                blank=self.model.blank_id,
                reduction="none",
                # repeated tokens need a frame between them: CTC may have no path where the transducer has one
                zero_infinity=True,
            )
        return UtteranceLosses(nll, lens, ctc_nll, simple_nll, divergence)

    @property
    def num_copies(self) -> int:
        """Copies of each utterance in a batch."""
        return 1 if self.masks is None else 2

    def extra_bytes(self, N: int, T: int, U: int) -> float:
        """Bytes of scores, sums and occupations per cell in float64; with a band, of two logits and their gradients."""
        N *= self.num_copies
        lattice = N * T * (U + 1) * 80
        return lattice + (N * (T + U + 1) * self.model.vocab_size * 8 if self.simple_joiner is not None else 0)


class SimpleJoiner(nn.Module):
    """Joiner that adds two linear maps; its loss selects the lattice rows of each frame for the pruned loss."""

    def __init__(self, dims: tuple[int, int], vocab_size: int, config: PruneConfig) -> None:
        super().__init__()
        self.from_encoder, self.from_decoder = (nn.Linear(dim, vocab_size) for dim in dims)
        self._config = config

    def forward(
        self,
        frames: Tensor,
        lens: Tensor,
        decoder_out: Tensor,
        batch: Batch,
        blank: int,
        topology: Topology,
        *,
        delay_penalty: float,
    ) -> tuple[Tensor, PruneRanges]:
        """Map outputs of encoder and decoder, (N, T, E), (N,) and (N, U+1, P), to the simple nll (N,) and the band."""
        simple = simple_transducer_loss(
            self.from_encoder(frames),
            lens,
            self.from_decoder(decoder_out),
            batch.tokens,
            batch.token_lens,
            blank=blank,
            max_symbols_per_frame=topology,
            lm_only_scale=self._config.lm_scale,
            am_only_scale=self._config.am_scale,
            delay_penalty=delay_penalty,
            inf_is="inf",
        )
        band = prune_ranges(
            simple.blank_occupation,
            simple.symbol_occupation,
            lens,
            batch.token_lens,
            width=self._config.prune_range,
            max_symbols_per_frame=topology,
        )
        # the cells of the band are counted on the CPU: one synchronization instead of several
        return simple.nll, band._replace(starts=band.starts.cpu())
