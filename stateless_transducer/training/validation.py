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
from stateless_transducer.decoding.search import search_nbest
from stateless_transducer.model.frozen import FrozenTransducer
from stateless_transducer.model.transducer import Transducer
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.training.distributed import Rank, sum_over_ranks

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


class Validation:
    """The dev set; each process computes its share of the loss.

    Args:
        dev_set: utterances that have a loss.
        token_table: of the model.
        data_config: size of batches.
        rank: of this process.
        modified: which of the two losses, always the same.
    """

    def __init__(
        self, dev_set: TrainingSet, token_table: TokenTable, data_config: DataConfig, rank: Rank, *, modified: bool
    ) -> None:
        self._set, self._token_table, self._config = dev_set, token_table, data_config
        self._rank, self._modified = rank, modified

    @torch.no_grad()
    def loss(self, model: Transducer, autocast: contextlib.AbstractContextManager) -> tuple[float, float]:
        """Nll a frame over the whole dev set, and how many frames that are."""
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self._rank.device)
        with autocast:
            for batch in self._batches(self._rank):
                encoder_out, lens = model.encode(batch.features, batch.feature_lens)
                nll = model.nll(
                    encoder_out,
                    lens,
                    batch.tokens,
                    batch.token_lens,
                    max_symbols_per_frame=1 if self._modified else None,
                )
                # an utterance of numbers too large would hide all others
                fine = nll.isfinite()
                total += torch.stack([nll[fine].double().sum(), lens[fine].sum().double()])
        nll, num_frames = sum_over_ranks(total).tolist()
        return (nll / num_frames if num_frames else float("nan")), num_frames

    @torch.no_grad()
    def samples(self, model: Transducer) -> Samples:
        """The first utterances of the set, in its order."""
        model.eval()
        first = TrainingSet(self._set.index, self._set.numbers[:_NUM_SAMPLES], self._set.lengths, {})
        texts: list[tuple[str, str, str]] = []
        drawn: tuple[np.ndarray, float] | None = None
        frozen = FrozenTransducer(model)
        for batch in self._batches(Rank(0, 1, self._rank.device), first):
            # an utterance without numbers is empty, as it does not count in the loss
            found = search_nbest(frozen, batch.features, batch.feature_lens, SearchConfig())
            decoded = (self._token_table.decode(ranked[0].tokens) for ranked in found)
            texts += list(zip(batch.ids, batch.texts, decoded, strict=True))
            drawn = drawn or _occupations(model, batch, modified=self._modified)
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


def _occupations(model: Transducer, batch: Batch, *, modified: bool) -> tuple[np.ndarray, float]:
    """Of the first utterance: how likely a path goes through each cell, (U+1, T), and the share of cells that count."""
    encoder_out, lens = model.encode(batch.features[:1, : batch.feature_lens[0]], batch.feature_lens[:1])
    lattice = model.occupations(
        encoder_out[:, : int(lens)],
        batch.tokens[:1, : batch.token_lens[0]],
        max_symbols_per_frame=1 if modified else None,
    )
    occupied = lattice[lattice.isfinite()]
    return lattice.nan_to_num().cpu().numpy(), (occupied > _CARRIES_SOMETHING).float().mean().item()
