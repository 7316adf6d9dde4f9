"""Validation on the dev set: the loss, the results for a few utterances, and a picture of one lattice.

Letters: N utterances, T encoder frames, U tokens.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

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
_MIN_OCCUPATION = 1e-6
"""Cells with a smaller occupation are skipped by the loss."""


@dataclass(frozen=True)
class Samples:
    """A few utterances of the dev set."""

    texts: tuple[tuple[str, str, str], ...]
    """Id, transcript and result of greedy search of each utterance."""
    occupations: np.ndarray
    """(U+1, T), 0..1: occupations of the lattice of the first utterance, that is, the model's alignment."""
    share_of_cells: float
    """Share of the cells of this lattice that carry more than a millionth of the probability."""


class TransducerValidation:
    """Validation of a transducer on the dev set; each process computes its share of the loss.

    Args:
        dev_set: utterances that have a loss.
        token_table: tokens of the model.
        data_config: size of batches.
        rank: rank of this process.
        objective: objective of the training.
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
    def loss(self, autocast: contextlib.AbstractContextManager[Any]) -> tuple[float, float]:
        """Return the loss per frame over the utterances whose loss is finite, and their number of frames."""
        self._objective.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self._rank.device)
        with autocast:
            for batch in self._batches(self._rank):
                sums += torch.stack(self._objective.evaluate(batch))
        total, weight = sum_over_ranks(sums).tolist()
        return (total / weight if weight else float("nan")), weight

    @torch.no_grad()
    def samples(self) -> Samples:
        """Return the results for the first utterances of the dev set."""
        self._objective.eval()
        model = self._objective.model
        first = TrainingSet(self._set.index, self._set.numbers[:_NUM_SAMPLES], self._set.lengths, {})
        texts: list[tuple[str, str, str]] = []
        picture: tuple[np.ndarray, float] | None = None
        frozen = FrozenTransducer(model)
        for batch in self._batches(Rank(0, 1, self._rank.device), first):
            # the text is empty where the encoder output is not finite
            hypotheses = decode_features_nbest(frozen, batch.features, batch.feature_lens, SearchConfig())
            results = (self._token_table.decode(ranked[0].tokens) for ranked in hypotheses)
            texts += list(zip(batch.ids, batch.texts, results, strict=True))
            picture = picture or occupations(model, batch, self._objective.validation_topology)
        assert picture is not None
        return Samples(tuple(sorted(texts)), *picture)

    def _batches(self, rank: Rank, utterances: TrainingSet | None = None):
        utterances = utterances or self._set
        batches = evaluation_batches(
            utterances.index,
            self._token_table,
            self._config,
            numbers=utterances.numbers,
            rank=rank.rank,
            world_size=rank.world_size,
        )
        return (batch.to(rank.device) for batch in batches)


def occupations(model: Transducer, batch: Batch, topology: Topology) -> tuple[np.ndarray, float]:
    """Return the occupations (U+1, T) of the lattice of the first utterance, and the share of cells that count."""
    encoder_out, lens = model.encode(batch.features[:1, : batch.feature_lens[0]], batch.feature_lens[:1])
    lattice = model.occupations(
        encoder_out[:, : int(lens)],
        batch.tokens[:1, : batch.token_lens[0]],
        max_symbols_per_frame=topology,
    )
    occupied = lattice[lattice.isfinite()]
    return lattice.nan_to_num().cpu().numpy(), (occupied > _MIN_OCCUPATION).float().mean().item()
