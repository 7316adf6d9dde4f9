"""Cuts -> batches: what is usable, who loads what, padding.

Letters: N utterances, T_in feature frames, F mel bins, U tokens.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut, MonoCut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from stateless_transducer.data.augment import Augment, training_augment
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.cutting import features_from_sound
from stateless_transducer.data.index import CutIndex, JoinedIndex, open_index
from stateless_transducer.data.manifests import manifest_path
from stateless_transducer.data.plan import BatchLimits, Lengths, join, mix, plan_epoch
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.processes import CarriedError, end_with_parent
from stateless_transducer.text.tokens import TokenTable

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Batch:
    """Utterances padded to a common length."""

    features: Tensor
    """(N, T_in, F), float32, padded with log(1e-10)."""
    feature_lens: Tensor
    """(N,), int64."""
    tokens: Tensor
    """(N, U), int64, without blanks, padded with 1."""
    token_lens: Tensor
    """(N,), int64."""
    ids: tuple[str, ...]
    """Of the utterances; of those that are joined, with a + between them."""
    texts: tuple[str, ...]
    """Transcripts."""
    frame_shift_s: float
    """Seconds from one feature frame to the next."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=True),
            feature_lens=self.feature_lens.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            token_lens=self.token_lens.to(device, non_blocking=True),
        )

    @property
    def seconds(self) -> float:
        """Speech in the batch, padding not counted."""
        return float(self.feature_lens.sum()) * self.frame_shift_s


@dataclass(frozen=True)
class Piece:
    """What is loaded at once."""

    epoch: int
    chains: Sequence[np.ndarray]
    """Utterances by their number in the index; those of a chain become one."""


class TransducerDataset(Dataset):
    """Turns pieces of an epoch into batches."""

    def __init__(
        self,
        index: CutIndex | JoinedIndex,
        token_table: TokenTable,
        augment: Augment | None = None,
        *,
        on_the_fly: bool = False,
    ) -> None:
        self._index, self._token_table, self._augment, self._on_the_fly = index, token_table, augment, on_the_fly

    def __getitem__(self, piece: Piece) -> Batch:  # noqa: D105
        features, texts, ids = [], [], []
        for chain in piece.chains:
            cuts = [self._index.cut(number) for number in chain]
            features.append(torch.cat([self._features(cut, piece.epoch) for cut in cuts]))
            spoken = [cut.supervisions[0].text or "" for cut in cuts]
            texts.append(spoken[0] if len(spoken) == 1 else self._token_table.join(spoken))
            ids.append("+".join(cut.id for cut in cuts))
        return make_batch(features, tuple(texts), tuple(ids), self._token_table, self._index.frame_shift_s)

    def _features(self, cut: Cut, epoch: int) -> Tensor:
        """(T_in, F)."""
        features = torch.from_numpy(features_from_sound(cut) if self._on_the_fly else _stored_features(cut))
        return features if self._augment is None else self._augment(features, cut.id, epoch)


def make_batch(
    features: list[Tensor],
    texts: tuple[str, ...],
    ids: tuple[str, ...],
    token_table: TokenTable,
    frame_shift_s: float,
) -> Batch:
    """Pad features (T_in, F) each, and the tokens of the texts."""
    tokens = [torch.tensor(token_table.encode(text), dtype=torch.int64) for text in texts]
    return Batch(
        features=pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE),
        feature_lens=torch.tensor([len(each) for each in features]),
        tokens=pad_sequence(tokens, batch_first=True, padding_value=1),
        token_lens=torch.tensor([len(each) for each in tokens]),
        ids=ids,
        texts=texts,
        frame_shift_s=frame_shift_s,
    )


def load_index(manifest_dir: Path, prefix: str, split: str, *, option: str = "prefix") -> CutIndex:
    """The prepared cuts of a split.

    Args:
        manifest_dir: folder with the cuts.
        prefix: name of the corpus.
        split: name of the split.
        option: name of the argument that names the corpus.

    Raises:
        ValueError: not prepared; the message lists what is.
    """
    path = cuts_path(manifest_dir, prefix, split)
    if path is None:
        wanted = manifest_path(manifest_dir, prefix, "cuts", split)
        there = ", ".join(sorted(p.name for p in manifest_dir.glob("*_cuts_*.jsonl.gz"))) or "nothing"
        tail = f"_cuts_{split}.jsonl.gz"
        others = sorted(path.name.removesuffix(tail) for path in manifest_dir.glob(f"*{tail}"))
        way_out = f"pass `{option}={others[0]}`, or " if others else ""
        raise ValueError(
            f"{wanted} is missing (found in `manifest_dir`: {there}); {way_out}run `transducer prepare` first."
        )
    return open_index(path)


def cuts_path(manifest_dir: Path, prefix: str, split: str) -> Path | None:
    """The cuts of a split: a manifest, or ``<prefix>_shar_<split>``, a folder of shards or a .txt of such folders."""
    shards = manifest_dir / f"{prefix}_shar_{split}"
    candidates = (manifest_path(manifest_dir, prefix, "cuts", split), shards, shards.with_name(f"{shards.name}.txt"))
    return next((path for path in candidates if path.exists()), None)


@dataclass(frozen=True)
class TrainingSet:
    """The cuts that a loss can be computed of."""

    index: CutIndex
    numbers: np.ndarray
    """In the index, of those that are left."""
    lengths: Lengths
    """Of those."""
    left_out: dict[str, np.ndarray]
    """Why utterances cannot be used -> their numbers in the index."""

    def __len__(self) -> int:
        return len(self.numbers)


def trainable(index: CutIndex, token_table: TokenTable, config: DataConfig, subsampling: Subsampling) -> TrainingSet:
    """Leave out what training cannot use.

    Raises:
        ValueError: nothing is left.
    """
    found = with_loss(index, token_table, subsampling, shortest=config.min_utterance_s, longest=config.max_utterance_s)
    if len(found) < 2:
        reasons = "; ".join(f"{len(them)} {reason}: {index.name_some(them)}" for reason, them in found.left_out.items())
        raise ValueError(
            f"{len(found)} utterances are left for training, but 2 are the least: {reasons or 'there are no others'}."
        )
    return found


def with_loss(
    index: CutIndex,
    token_table: TokenTable,
    subsampling: Subsampling,
    *,
    shortest: float = 0.0,
    longest: float = 1e9,
) -> TrainingSet:
    """Leave out what has no path through the lattice, or is not of the wanted length in seconds."""
    lengths = _lengths(index, index.num_tokens(token_table), subsampling)
    reasons = {
        f"shorter than {shortest:g} s": lengths.seconds < shortest,
        f"longer than {longest:g} s": lengths.seconds > longest,
        f"of fewer than {subsampling.min_frames} feature frames": lengths.num_frames < subsampling.min_frames,
        # the modified loss says one token a frame and ends with a blank
        "with as many tokens as encoder frames or more": lengths.num_encoder_frames <= lengths.num_tokens,
    }
    is_left, left_out = np.ones(len(index), bool), {}
    for reason, holds in reasons.items():
        (numbers,) = (is_left & holds).nonzero()
        if len(numbers):
            left_out[reason] = numbers
        is_left &= ~holds
    (numbers,) = is_left.nonzero()
    return TrainingSet(index, numbers, lengths.of(numbers), left_out)


def _lengths(index: CutIndex, num_tokens: np.ndarray, subsampling: Subsampling) -> Lengths:
    return Lengths(index.seconds, index.num_frames, num_tokens, index.frame_shift_s, subsampling)


@dataclass(frozen=True)
class Update:
    """What one step of the optimizer learns from."""

    batches: list[Batch]
    """Of this process, each small enough to be computed at once; their gradients are added up."""
    seconds: float
    """Of speech, of all processes."""
    num_tokens: int
    """Of all processes."""


class TrainingLoader:
    """The updates of each epoch, for one process.

    With a second corpus, an epoch has all updates of the first one and, between them, as many of the second as its
    share of the batches asks for: others in each epoch.

    Args:
        training_set: what to learn from.
        token_table: of the model.
        config: sizes of batches, augmentation, loading.
        seed: of the order and of augmentation.
        rank: of this process.
        world_size: processes.
        accumulate: batches of each process that make an update.
        mixed: the second corpus.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        token_table: TokenTable,
        config: DataConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        mixed: TrainingSet | None = None,
    ) -> None:
        self._config, self._seed = config, seed
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate
        self._num_first = len(training_set)
        index, self._lengths, self._numbers = training_set.index, training_set.lengths, training_set.numbers
        if mixed is not None:
            self._numbers = np.concatenate([self._numbers, len(index) + mixed.numbers])
            index, self._lengths = JoinedIndex(index, mixed.index), self._lengths.then(mixed.lengths)
        augment = training_augment(config, seed, self._lengths.frame_shift_s)
        self._dataset = TransducerDataset(index, token_table, augment, on_the_fly=config.on_the_fly_feats)

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Utterances of each update, of all processes; numbers within the training set, those mixed in behind it."""
        shuffle, prob = self._config.shuffle, self._config.mix_prob
        lengths = self._lengthened(epoch)
        first = self._plan(lengths, 0, self._num_first, (self._seed, epoch))
        if not first:
            raise ValueError(
                f"An epoch has no batch: `max_duration` {self._config.max_duration:g} s is more than the training "
                "set fills; lower it, or pass `drop_last=False`."
            )
        if len(self._lengths) == self._num_first:
            return first
        wanted, second = round(len(first) * prob / (1 - prob)), []
        for time in count(1):
            again = self._plan(lengths, self._num_first, len(lengths), (self._seed, epoch, time))
            if not again:
                raise ValueError(f"`mix_prefix` {self._config.mix_prefix} does not fill a batch; lower `max_duration`.")
            second += again
            if len(second) >= wanted:
                break
        # NumPy takes a zero at the end for nothing
        return mix(first, second[:wanted], np.random.default_rng((self._seed, epoch, 0, 1)) if shuffle else None)

    def _lengthened(self, epoch: int) -> Lengths:
        """What the utterances may be in an epoch."""
        config = self._config
        return self._lengths if epoch < config.lengthen_from_epoch else self._lengths.longer(2 * config.silence_s)

    def _plan(self, lengths: Lengths, begin: int, end: int, seed: tuple[int, ...]) -> list[np.ndarray]:
        """Of the utterances from one number to another."""
        config = self._config
        planned = plan_epoch(
            lengths.of(np.arange(begin, end)),
            BatchLimits(config.max_duration, config.max_cells),
            num_buckets=config.num_buckets,
            parts=self._world_size * self._accumulate,
            drop_last=config.drop_last,
            random=np.random.default_rng(seed) if config.shuffle else None,
        )
        return [begin + batch for batch in planned]

    @property
    def contents(self) -> dict[str, Any]:
        """What the plans follow from, by the name that a user knows it by; equal ones give equal plans."""
        config, digest = self._config, hashlib.sha256()
        for values in (self._numbers, self._lengths.seconds, self._lengths.num_frames, self._lengths.num_tokens):
            digest.update(np.ascontiguousarray(values).tobytes())
        names = ("max_duration", "max_cells", "num_buckets", "shuffle", "drop_last", "mix_prob")
        # of an epoch's batches, silence alone changes the utterances
        names += ("silence_s", "lengthen_from_epoch") if config.silence_s else ()
        return {
            **{f"--{name.replace('_', '-')}": getattr(config, name) for name in names},
            "--seed": self._seed,
            "processes times --accumulate-grad": self._world_size * self._accumulate,
            "utterances to learn from": f"{len(self._lengths)} ({digest.hexdigest()[:8]})",
        }

    def seconds(self, plan: Sequence[np.ndarray]) -> float:
        """Of speech in a plan, or in some updates of it."""
        return float(sum(self._lengths.seconds[chosen].sum() for chosen in plan))

    def updates(self, epoch: int, *, first: int = 0, plan: Sequence[np.ndarray] | None = None) -> Iterator[Update]:
        """All updates of an epoch from one on.

        Args:
            epoch: from 0.
            first: number of the first update that is wanted.
            plan: what `plan` gave.
        """
        plan = self.plan(epoch) if plan is None else plan
        lengths, parts = self._lengths, self._world_size * self._accumulate
        mine = range(self._rank * self._accumulate, (self._rank + 1) * self._accumulate)
        pieces = [
            Piece(epoch, [self._numbers[chain] for chain in self._chains(chosen[part::parts], epoch, number, part)])
            for number, chosen in enumerate(plan[first:], start=first)
            for part in mine
        ]
        batches = iter(_loader(self._dataset, pieces, self._config.num_workers))
        for chosen in plan[first:]:
            own = list(islice(batches, self._accumulate))
            yield Update(own, float(lengths.seconds[chosen].sum()), int(lengths.num_tokens[chosen].sum()))

    def _chains(self, numbers: np.ndarray, epoch: int, update: int, part: int) -> list[np.ndarray]:
        """The utterances of a batch as they are joined, or each alone; who is with whom depends on the parts."""
        config = self._config
        if not config.join_up_to_s or epoch < config.lengthen_from_epoch:
            return list(numbers[:, None])
        # NumPy takes a zero at the end for nothing
        random = np.random.default_rng((self._seed, epoch, update, part, 1))
        limits = BatchLimits(config.max_duration, config.max_cells)
        return join(numbers, self._lengthened(epoch), limits, config.join_up_to_s, random)


def evaluation_batches(
    index: CutIndex,
    token_table: TokenTable,
    config: DataConfig,
    *,
    numbers: np.ndarray | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """All utterances, from long to short, none left out, nothing augmented.

    Args:
        index: of the cuts.
        token_table: of the model.
        config: size of batches, loading.
        numbers: utterances; None: all.
        rank: of this process, which gets its share.
        world_size: processes.
    """
    numbers = np.arange(len(index)) if numbers is None else numbers
    # without a limit on cells, neither tokens nor encoder frames count
    lengths = _lengths(index, np.zeros(len(index), np.int64), Subsampling(factor=1, min_frames=1)).of(numbers)
    plan = plan_epoch(lengths, BatchLimits(config.max_duration), num_buckets=1)
    dataset = TransducerDataset(index, token_table, on_the_fly=config.on_the_fly_feats)
    pieces = [Piece(0, list(numbers[chosen][:, None])) for chosen in plan[rank::world_size]]
    yield from _loader(dataset, pieces, config.num_workers)


def _loader(dataset: TransducerDataset, pieces: Sequence[Piece], num_workers: int) -> Iterator[Batch]:
    """The pieces as batches, in order.

    Raises:
        Exception: from loading a piece; the same with and without workers.
    """
    # batch_size=None: what makes a batch is planned already
    loader = DataLoader(
        _CarryingErrors(dataset) if num_workers else dataset,
        batch_size=None,
        sampler=pieces,  # pyright: ignore
        num_workers=num_workers,
        worker_init_fn=_start_worker if num_workers else None,
    )
    # a signal that arrives while workers start waits: they must not see it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for batch in batches:
        if isinstance(batch, CarriedError):
            raise batch.unpack()
        yield batch


def _stored_features(cut: Cut) -> np.ndarray:
    """(T_in, F)."""
    try:
        return cut.load_features()
    except (AssertionError, OSError, ValueError) as err:
        # lhotse adds lines that describe the cut
        cause = (str(err).strip() or type(err).__name__).splitlines()[0]
        path = f" in {cut.features.storage_path}" if isinstance(cut, MonoCut) and cut.features is not None else ""
        raise ValueError(
            f"The stored features of {cut.id}{path} cannot be read: {cause} Run `transducer prepare` again."
        ) from err


class _CarryingErrors(Dataset):
    """Batches of a dataset, or the exceptions from loading them: the DataLoader makes texts of those in its workers."""

    def __init__(self, dataset: TransducerDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, piece: Piece) -> Batch | CarriedError:  # noqa: D105
        try:
            return self._dataset[piece]
        except Exception as err:
            return CarriedError.of(err)


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    # both reach all processes of a terminal or a job; the parent stops its workers when it needs no more batches
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    end_with_parent()
