"""Batches from cuts: selection of utterances, shares of the processes, padding.

Letters: N utterances, T_in feature frames, F mel bins, U tokens.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from stateless_transducer.data.augment import Augment, training_augment
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.cutting import features_from_sound
from stateless_transducer.data.index import CutIndex, JoinedIndex, open_index
from stateless_transducer.data.manifests import manifest_path
from stateless_transducer.data.plan import BatchLimits, Lengths, join, mix, plan_epoch
from stateless_transducer.data.stored_features import load_features
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.ops.subsampling import Subsampling
from stateless_transducer.processes import CarriedError, end_with_parent, signals_blocked, unblock_signals
from stateless_transducer.text.tokens import TokenTable
from stateless_transducer.wording import counted

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
    """Ids of the utterances; those of joined utterances with a + between them."""
    texts: tuple[str, ...]
    """Transcripts."""
    frame_shift_s: float
    """Seconds from one feature frame to the next."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=True),
            feature_lens=self.feature_lens.to(device, non_blocking=True),
            tokens=self.tokens.to(device, non_blocking=True),
            token_lens=self.token_lens.to(device, non_blocking=True),
        )

    @property
    def seconds(self) -> float:
        """Seconds of speech in the batch, without padding."""
        return float(self.feature_lens.sum()) * self.frame_shift_s


@dataclass(frozen=True)
class Piece:
    """Utterances to load as one batch."""

    epoch: int
    chains: Sequence[np.ndarray]
    """Numbers of utterances in the index; those of a chain are joined into one utterance."""


class TransducerDataset(Dataset["Batch"]):
    """Dataset of batches, indexed by pieces of an epoch."""

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
            transcripts = [cut.supervisions[0].text or "" for cut in cuts]
            texts.append(transcripts[0] if len(transcripts) == 1 else self._token_table.join(transcripts))
            ids.append("+".join(cut.id for cut in cuts))
        return make_batch(features, tuple(texts), tuple(ids), self._token_table, self._index.frame_shift_s)

    def _features(self, cut: Cut, epoch: int) -> Tensor:
        """Load or compute the features of a cut, (T_in, F), augmented."""
        features = torch.from_numpy(features_from_sound(cut) if self._on_the_fly else load_features(cut))
        return features if self._augment is None else self._augment(features, cut.id, epoch)


def make_batch(
    features: list[Tensor],
    texts: tuple[str, ...],
    ids: tuple[str, ...],
    token_table: TokenTable,
    frame_shift_s: float,
) -> Batch:
    """Pad the features of utterances, (T_in, F) each, and the tokens of their texts."""
    tokens = [torch.tensor(token_table.encode(text), dtype=torch.int64) for text in texts]
    return Batch(
        features=pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE),
        feature_lens=torch.tensor([len(frames) for frames in features]),
        tokens=pad_sequence(tokens, batch_first=True, padding_value=1),
        token_lens=torch.tensor([len(ids) for ids in tokens]),
        ids=ids,
        texts=texts,
        frame_shift_s=frame_shift_s,
    )


def load_index(manifest_dir: Path, prefix: str, split: str, *, option: str = "prefix") -> CutIndex:
    """Open the prepared cuts of a split.

    Args:
        manifest_dir: folder with the cuts.
        prefix: name of the corpus.
        split: name of the split.
        option: name of the argument that names the corpus.

    Raises:
        ValueError: the split is not prepared; the message lists the prepared ones.
    """
    path = cuts_path(manifest_dir, prefix, split)
    if path is None:
        missing = manifest_path(manifest_dir, prefix, "cuts", split)
        existing = ", ".join(sorted(p.name for p in manifest_dir.glob("*_cuts_*.jsonl.gz"))) or "nothing"
        tail = f"_cuts_{split}.jsonl.gz"
        prefixes = sorted(path.name.removesuffix(tail) for path in manifest_dir.glob(f"*{tail}"))
        way_out = f"pass `{option}={prefixes[0]}`, or " if prefixes else ""
        raise ValueError(
            f"{missing} is missing (found in `manifest_dir`: {existing}); {way_out}run `transducer prepare` first."
        )
    return open_index(path)


def cuts_path(manifest_dir: Path, prefix: str, split: str) -> Path | None:
    """Return the path of a split: a manifest, or ``<prefix>_shar_<split>``, a folder of shards or a .txt of folders."""
    shards = manifest_dir / f"{prefix}_shar_{split}"
    candidates = (manifest_path(manifest_dir, prefix, "cuts", split), shards, shards.with_name(f"{shards.name}.txt"))
    return next((path for path in candidates if path.exists()), None)


@dataclass(frozen=True)
class TrainingSet:
    """Cuts for which a loss can be computed."""

    index: CutIndex
    numbers: np.ndarray
    """Numbers of the usable utterances in the index."""
    lengths: Lengths
    """Lengths of the usable utterances."""
    left_out: dict[str, np.ndarray]
    """Numbers in the index of the skipped utterances, by reason."""

    def __len__(self) -> int:
        return len(self.numbers)


def trainable(index: CutIndex, token_table: TokenTable, config: DataConfig, subsampling: Subsampling) -> TrainingSet:
    """Skip the utterances that training cannot use.

    Raises:
        ValueError: fewer than two utterances remain.
    """
    usable = with_loss(index, token_table, subsampling, shortest=config.min_utterance_s, longest=config.max_utterance_s)
    if len(usable) < 2:
        skipped = usable.left_out.items()
        reasons = "; ".join(f"{len(numbers)} {reason}: {index.name_some(numbers)}" for reason, numbers in skipped)
        raise ValueError(
            f"{counted(len(usable), 'utterance')} left for training, which needs at least 2: "
            f"{reasons or 'none was skipped'}."
        )
    return usable


def with_loss(
    index: CutIndex,
    token_table: TokenTable,
    subsampling: Subsampling,
    *,
    shortest: float = 0.0,
    longest: float = 1e9,
) -> TrainingSet:
    """Skip utterances without a path through the lattice, and those outside the given lengths in seconds."""
    lengths = _lengths(index, index.num_tokens(token_table), subsampling)
    reasons = {
        f"shorter than {shortest:g} s": lengths.seconds < shortest,
        f"longer than {longest:g} s": lengths.seconds > longest,
        f"of fewer than {subsampling.min_frames} feature frames": lengths.num_frames < subsampling.min_frames,
        # the modified loss emits at most one token per frame, and ends with a blank
        "with as many tokens as encoder frames or more": lengths.num_encoder_frames <= lengths.num_tokens,
    }
    is_usable, skipped = np.ones(len(index), bool), {}
    for reason, applies in reasons.items():
        (numbers,) = (is_usable & applies).nonzero()
        if len(numbers):
            skipped[reason] = numbers
        is_usable &= ~applies
    (numbers,) = is_usable.nonzero()
    return TrainingSet(index, numbers, lengths.of(numbers), skipped)


def _lengths(index: CutIndex, num_tokens: np.ndarray, subsampling: Subsampling) -> Lengths:
    return Lengths(index.seconds, index.num_frames, num_tokens, index.frame_shift_s, subsampling)


@dataclass(frozen=True)
class Update:
    """Data of one step of the optimizer."""

    batches: list[Batch]
    """Batches of this process; their gradients are summed."""
    seconds: float
    """Seconds of speech of all processes."""
    num_tokens: int
    """Number of tokens of all processes."""


class TrainingLoader:
    """Loader of the updates of each epoch, for one process.

    With a second corpus, an epoch has all updates of the first corpus and, between them, updates of the second one, up
    to its share of the batches. The latter differ from epoch to epoch.

    Args:
        training_set: utterances to train on.
        token_table: tokens of the model.
        config: sizes of batches, augmentation, loading.
        seed: seed of the order and of augmentation.
        rank: rank of this process.
        world_size: number of processes.
        accumulate: batches per process and update.
        mixed: second corpus.
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

    @property
    def update_s(self) -> float:
        """Seconds of speech of an update that the options ask for, all processes together."""
        return self._config.max_duration * self._world_size * self._accumulate

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Plan the utterances of each update, of all processes.

        The utterances are numbered within the training set; those of the second corpus follow.
        """
        shuffle, prob = self._config.shuffle, self._config.mix_prob
        lengths = self._lengthened(epoch)
        first = self._plan(lengths, 0, self._num_first, (self._seed, epoch))
        if not first:
            raise ValueError(
                f"An epoch has no batch: `max_duration` {self._config.max_duration:g} s is more than the training "
                "set fills. Lower it, or pass `drop_last=False`."
            )
        if len(self._lengths) == self._num_first:
            return first
        num_second, second = round(len(first) * prob / (1 - prob)), []
        for time in count(1):
            batches = self._plan(lengths, self._num_first, len(lengths), (self._seed, epoch, time))
            if not batches:
                raise ValueError(f"`mix_prefix` {self._config.mix_prefix} does not fill a batch; lower `max_duration`.")
            second += batches
            if len(second) >= num_second:
                break
        # the seed ends with 1, as NumPy ignores zeros at the end of a seed
        return mix(first, second[:num_second], np.random.default_rng((self._seed, epoch, 0, 1)) if shuffle else None)

    def _lengthened(self, epoch: int) -> Lengths:
        """Return the largest lengths of the utterances in an epoch, with silence."""
        config = self._config
        return self._lengths if epoch < config.lengthen_from_epoch else self._lengths.longer(2 * config.silence_s)

    def _plan(self, lengths: Lengths, begin: int, end: int, seed: tuple[int, ...]) -> list[np.ndarray]:
        """Plan the batches of the utterances ``begin`` to ``end``."""
        config = self._config
        batches = plan_epoch(
            lengths.of(np.arange(begin, end)),
            BatchLimits(config.max_duration, config.max_cells),
            num_buckets=config.num_buckets,
            parts=self._world_size * self._accumulate,
            drop_last=config.drop_last,
            random=np.random.default_rng(seed) if config.shuffle else None,
        )
        return [begin + batch for batch in batches]

    @property
    def contents(self) -> dict[str, Any]:
        """Inputs of the plans by the names that users know; equal contents give equal plans."""
        config, digest = self._config, hashlib.sha256()
        for values in (self._numbers, self._lengths.seconds, self._lengths.num_frames, self._lengths.num_tokens):
            digest.update(np.ascontiguousarray(values).tobytes())
        names = ("max_duration", "max_cells", "num_buckets", "shuffle", "drop_last", "mix_prob")
        # these options change the plan only with silence
        names += ("silence_s", "lengthen_from_epoch") if config.silence_s else ()
        return {
            **{f"--{name.replace('_', '-')}": getattr(config, name) for name in names},
            "--seed": self._seed,
            "processes times --accumulate-grad": self._world_size * self._accumulate,
            "utterances to learn from": f"{len(self._lengths)} ({digest.hexdigest()[:8]})",
        }

    def seconds(self, plan: Sequence[np.ndarray]) -> float:
        """Return the seconds of speech in a plan, or in some updates of it."""
        return float(sum(self._lengths.seconds[utterances].sum() for utterances in plan))

    def updates(self, epoch: int, *, first: int = 0, plan: Sequence[np.ndarray] | None = None) -> Iterator[Update]:
        """Load the updates of an epoch from number ``first`` on.

        Args:
            epoch: number of the epoch, from 0.
            first: number of the first update to load.
            plan: result of `plan` for the epoch; None: plan it.
        """
        plan = self.plan(epoch) if plan is None else plan
        lengths, parts = self._lengths, self._world_size * self._accumulate
        rank_parts = range(self._rank * self._accumulate, (self._rank + 1) * self._accumulate)
        pieces = [
            Piece(epoch, [self._numbers[chain] for chain in self._chains(utterances[part::parts], epoch, number, part)])
            for number, utterances in enumerate(plan[first:], start=first)
            for part in rank_parts
        ]
        batches = iter(_loader(self._dataset, pieces, self._config.num_workers))
        for utterances in plan[first:]:
            rank_batches = list(islice(batches, self._accumulate))
            seconds, num_tokens = lengths.seconds[utterances].sum(), lengths.num_tokens[utterances].sum()
            yield Update(rank_batches, float(seconds), int(num_tokens))

    def _chains(self, numbers: np.ndarray, epoch: int, update: int, part: int) -> list[np.ndarray]:
        """Split the utterances of a batch into chains to join, or into single utterances; the part seeds the choice."""
        config = self._config
        if not config.join_up_to_s or epoch < config.lengthen_from_epoch:
            return list(numbers[:, None])
        # the seed ends with 1, as NumPy ignores zeros at the end of a seed
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
    """Load all utterances without augmentation, from long to short.

    Args:
        index: index of the cuts.
        token_table: tokens of the model.
        config: size of batches, loading.
        numbers: numbers of the utterances to load; None: all.
        rank: rank of this process, which loads its share.
        world_size: number of processes.
    """
    numbers = np.arange(len(index)) if numbers is None else numbers
    # without a limit on cells, neither tokens nor encoder frames count
    lengths = _lengths(index, np.zeros(len(index), np.int64), Subsampling(factor=1, min_frames=1)).of(numbers)
    plan = plan_epoch(lengths, BatchLimits(config.max_duration), num_buckets=1)
    dataset = TransducerDataset(index, token_table, on_the_fly=config.on_the_fly_feats)
    pieces = [Piece(0, list(numbers[batch][:, None])) for batch in plan[rank::world_size]]
    yield from _loader(dataset, pieces, config.num_workers)


def _loader(dataset: TransducerDataset, pieces: Sequence[Piece], num_workers: int) -> Iterator[Batch]:
    """Load pieces as batches, in order.

    Raises:
        Exception: the error of loading a piece, the same with and without workers.
    """
    # batch_size=None: batches are already planned
    loader = DataLoader(
        _CarryingErrors(dataset) if num_workers else dataset,
        batch_size=None,
        sampler=pieces,  # pyright: ignore
        num_workers=num_workers,
        worker_init_fn=_start_worker if num_workers else None,
    )
    # a signal that arrives while workers start must wait, as they must not see it
    with signals_blocked(_SIGNALS):
        batches = iter(loader)
    try:
        for batch in _received(batches):
            if isinstance(batch, CarriedError):
                raise batch.unpack()
            yield batch
    finally:
        # whatever still refers to the iterator would keep it until garbage collection. That closes the queues first, so
        # the workers would not receive the request to end, and this process would wait for them
        shut_down = getattr(batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


def _received(batches: Iterator[Batch | CarriedError]) -> Iterator[Batch | CarriedError]:
    """Yield the batches, and name a worker that dies while it hands one over: torch names those that died before."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as err:
            workers = {worker.sentinel: worker.pid for worker in getattr(batches, "_workers", ())}
            died = ", ".join(str(workers[sentinel]) for sentinel in wait(list(workers), timeout=1))
            if not died:
                raise
            raise RuntimeError(f"DataLoader worker (pid(s) {died}) exited unexpectedly") from err
        yield batch


class _CarryingErrors(Dataset["Batch | CarriedError"]):
    """Dataset that returns exceptions instead of raising them: the DataLoader turns those of its workers into text."""

    def __init__(self, dataset: TransducerDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, piece: Piece) -> Batch | CarriedError:  # noqa: D105
        try:
            return self._dataset[piece]
        except Exception as err:
            return CarriedError.of(err)


def _start_worker(worker_id: int) -> None:
    torch.set_num_threads(1)
    # both signals reach all processes of a terminal or a job; the parent stops its workers
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unblock_signals(_SIGNALS)
    end_with_parent()
