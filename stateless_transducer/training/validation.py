"""How training goes, seen on the dev set: its loss, a few utterances as text, one of them as a picture of its lattice.

Letters: N utterances, T encoder frames, U tokens.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import torch

from stateless_transducer.data.batches import Batch, TrainingSet, evaluation_batches
from stateless_transducer.data.config import DataConfig
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.decoding.search import decode_features_nbest
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training.distributed import Rank, sum_over_ranks
from stateless_transducer.training.objective import Topology, TransducerObjective

_NUM_SAMPLES = 4
_CARRIES_SOMETHING = 1e-6
"""The loss skips cells of less occupation."""


@dataclass(frozen=True)
class Samples:
    """A few utterances of the dev set."""

    texts: tuple[tuple[str, str, str], ...]
    """(Id, what is said, what greedy search finds)."""
    occupations: np.ndarray
    """(U+1, T), 0..1, of the first one: the alignment as the model sees it."""
    share_of_cells: float
    """Of its lattice, that carry more than a millionth of the probability."""


class TransducerValidation:
    """The dev set; each process computes its share of the loss.

    Args:
        dev_set: utterances that have a loss.
        token_table: of the model.
        data_config: size of batches.
        rank: of this process.
        objective: of the training.
    """

    def __init__(
        self,
        dev_set: TrainingSet,
        token_table: TokenTable,
        data_config: DataConfig,
        rank: Rank,
        objective: TransducerObjective,
    ) -> None:
        self._set, self._token_table, self._config = dev_set, token_table, data_config
        self._rank, self._objective = rank, objective

    @torch.no_grad()
    def loss(self, autocast: contextlib.AbstractContextManager) -> tuple[float, float]:
        """Loss per frame over the utterances of the dev set whose loss is finite, and their number of frames."""
        self._objective.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self._rank.device)
        with autocast:
            for batch in self._batches(self._rank):
                losses = self._objective.evaluate(batch)
                # an utterance of numbers too large would hide all others
                is_finite = losses.utterance_losses.isfinite()
                sums += torch.stack([losses.utterance_losses[is_finite].sum(), losses.weight.double()])
        total, weight = sum_over_ranks(sums).tolist()
        return (total / weight if weight else float("nan")), weight

    @torch.no_grad()
    def samples(self) -> Samples:
        """The first utterances of the set, in its order."""
        self._objective.eval()
        model = self._objective.model
        first = TrainingSet(self._set.index, self._set.numbers[:_NUM_SAMPLES], self._set.lengths, {})
        texts: list[tuple[str, str, str]] = []
        drawn: tuple[np.ndarray, float] | None = None
        frozen = FrozenTransducer(model)
        for batch in self._batches(Rank(0, 1, self._rank.device), first):
            # an utterance without numbers is empty, as it does not count in the loss
            found = decode_features_nbest(frozen, batch.features, batch.feature_lens, SearchConfig())
            decoded = (self._token_table.decode(ranked[0].tokens) for ranked in found)
            texts += list(zip(batch.ids, batch.texts, decoded, strict=True))
            drawn = drawn or occupations(model, batch, self._objective.validation_topology)
        assert drawn is not None
        return Samples(tuple(sorted(texts)), *drawn)

    def _batches(self, rank: Rank, chosen: TrainingSet | None = None):
        chosen = chosen or self._set
        found = evaluation_batches(
            chosen.index,
            self._token_table,
            self._config,
            numbers=chosen.numbers,
            rank=rank.rank,
            world_size=rank.world_size,
        )
        return (batch.to(rank.device) for batch in found)


def occupations(model: Transducer, batch: Batch, topology: Topology) -> tuple[np.ndarray, float]:
    """Of the first utterance: how likely a path goes through each cell, (U+1, T), and the share of cells that count."""
    encoder_out, lens = model.encode(batch.features[:1, : batch.feature_lens[0]], batch.feature_lens[:1])
    lattice = model.occupations(
        encoder_out[:, : int(lens)],
        batch.tokens[:1, : batch.token_lens[0]],
        max_symbols_per_frame=topology,
    )
    occupied = lattice[lattice.isfinite()]
    return lattice.nan_to_num().cpu().numpy(), (occupied > _CARRIES_SOMETHING).float().mean().item()
