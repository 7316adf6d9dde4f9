"""Cuts -> batches: samplers, loaders, padding.

Letters: N utterances, T_in feature frames, F mel bins, U tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler
from lhotse.dataset.sampling.base import CutSampler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from stateless_transducer.data.augment import Augment, training_augment
from stateless_transducer.data.config import DataConfig
from stateless_transducer.data.cutting import features_from_sound
from stateless_transducer.data.manifests import manifest_path
from stateless_transducer.features import PADDING_VALUE
from stateless_transducer.ops.masks import MIN_FEATURE_FRAMES, subsampled_lens
from stateless_transducer.text.tokens import TokenTable


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
    """Of the utterances."""
    texts: tuple[str, ...]
    """Transcripts."""

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
        """Speech in the batch, padding not counted, at 100 frames a second."""
        return float(self.feature_lens.sum()) / 100


class TransducerDataset(Dataset):
    """Turns the cuts that a sampler chose into a `Batch`."""

    def __init__(self, token_table: TokenTable, augment: Augment | None = None, *, on_the_fly: bool = False) -> None:
        self._token_table, self._augment, self._on_the_fly = token_table, augment, on_the_fly
        # shared with the processes that load batches
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Augmentation draws anew for each."""
        self._epoch.fill_(epoch)

    def __getitem__(self, cuts: CutSet) -> Batch:  # noqa: D105
        in_order = sorted(_each(cuts), key=lambda cut: cut.duration, reverse=True)
        texts = tuple(_text(cut) for cut in in_order)
        ids = tuple(cut.id for cut in in_order)
        return make_batch([self._features(cut) for cut in in_order], texts, ids, self._token_table)

    def _features(self, cut: Cut) -> Tensor:
        """(T_in, F)."""
        features = torch.from_numpy(features_from_sound(cut) if self._on_the_fly else cut.load_features())
        return features if self._augment is None else self._augment(features, cut.id, int(self._epoch))


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the dataset of a training loader; before it is iterated."""
    loader.dataset.set_epoch(epoch)  # pyright: ignore


def make_batch(features: list[Tensor], texts: tuple[str, ...], ids: tuple[str, ...], token_table: TokenTable) -> Batch:
    """Pad features (T_in, F) each, and the tokens of the texts."""
    tokens = [torch.tensor(token_table.encode(text), dtype=torch.int64) for text in texts]
    return Batch(
        features=pad_sequence(features, batch_first=True, padding_value=PADDING_VALUE),
        feature_lens=torch.tensor([len(each) for each in features]),
        tokens=pad_sequence(tokens, batch_first=True, padding_value=1),
        token_lens=torch.tensor([len(each) for each in tokens]),
        ids=ids,
        texts=texts,
    )


def load_cuts(manifest_dir: Path, prefix: str, split: str) -> CutSet:
    """The prepared cuts of a split, read as they are needed.

    Raises:
        ValueError: not prepared; the message lists what is.
    """
    path = manifest_path(manifest_dir, prefix, "cuts", split)
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in manifest_dir.glob("*_cuts_*.jsonl.gz"))) or "nothing"
        raise ValueError(f"{path} is missing (found in `--manifest-dir`: {there}); run `transducer prepare` first.")
    return CutSet.from_jsonl_lazy(path)


def num_cuts(cuts: CutSet) -> int:
    """How many there are; reads the manifest."""
    return sum(1 for _ in _each(cuts))


def _text(cut: Cut) -> str:
    return cut.supervisions[0].text or ""


def _each(cuts: CutSet) -> Iterator[Cut]:
    """The cuts of a set; lhotse's own annotation says that it has none."""
    return iter(cuts)  # pyright: ignore


@dataclass(frozen=True)
class TrainingSet:
    """The cuts that training can use."""

    cuts: CutSet
    """Read from the manifest as they are needed."""
    num_utterances: int
    """That are left."""
    seconds: float
    """Of speech."""
    left_out: dict[str, int]
    """Why utterances cannot be used -> how many."""


def trainable(cuts: CutSet, token_table: TokenTable, config: DataConfig) -> TrainingSet:
    """Leave out what training cannot use; reads the manifest once.

    Raises:
        ValueError: nothing is left.
    """
    usable = _Usable(token_table, config)
    left_out: Counter[str] = Counter()
    seconds, count = 0.0, 0
    for cut in _each(cuts):
        reason = usable.why_not(cut)
        if reason is None:
            seconds, count = seconds + cut.duration, count + 1
        else:
            left_out[reason] += 1
    if count < 2:
        reasons = "; ".join(f"{number} {reason}" for reason, number in left_out.items()) or "there are no others"
        raise ValueError(f"{count} utterances are left for training, but 2 are the least: {reasons}.")
    return TrainingSet(cuts.filter(usable), count, seconds, dict(left_out))


@dataclass(frozen=True)
class _Usable:
    """Whether training can use a cut; an object, since loaders' processes cannot be sent a lambda."""

    token_table: TokenTable
    config: DataConfig

    def __call__(self, cut: Cut) -> bool:
        return self.why_not(cut) is None

    def why_not(self, cut: Cut) -> str | None:
        if cut.duration < self.config.min_utterance_s:
            return f"shorter than {self.config.min_utterance_s:g} s"
        if cut.duration > self.config.max_utterance_s:
            return f"longer than {self.config.max_utterance_s:g} s"
        num_tokens, num_frames = len(self.token_table.encode(_text(cut))), cut.num_frames or 0
        if num_frames < MIN_FEATURE_FRAMES:
            return f"of fewer than {MIN_FEATURE_FRAMES} feature frames"
        if int(subsampled_lens(torch.tensor(num_frames))) <= num_tokens:
            # the modified loss says one token a frame and ends with a blank
            return "with as many tokens as encoder frames or more"
        return None


def training_loader(
    training_set: TrainingSet, token_table: TokenTable, config: DataConfig, *, seed: int, rank: int, world_size: int
) -> tuple[DataLoader, CutSampler]:
    """Shuffled batches of utterances of like length; the sampler is for `set_epoch` and its state."""
    # lhotse wants two buckets at least, and an utterance in each
    num_buckets = max(2, min(config.num_buckets, training_set.num_utterances))
    sampler = DynamicBucketingSampler(
        training_set.cuts,
        max_duration=config.max_duration,
        num_buckets=num_buckets,
        buffer_size=num_buckets * 5000,
        shuffle=config.shuffle,
        drop_last=config.drop_last,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    dataset = TransducerDataset(token_table, training_augment(config, seed), on_the_fly=config.on_the_fly_feats)
    return _loader(dataset, sampler, config.num_workers), sampler


def evaluation_loader(cuts: CutSet, token_table: TokenTable, config: DataConfig) -> DataLoader:
    """All utterances in their order, none left out, nothing augmented; on one rank."""
    sampler = SimpleCutSampler(cuts, max_duration=config.max_duration, shuffle=False, rank=0, world_size=1)
    return _loader(TransducerDataset(token_table, on_the_fly=config.on_the_fly_feats), sampler, config.num_workers)


def _loader(dataset: TransducerDataset, sampler: CutSampler, num_workers: int) -> DataLoader:
    # batch_size=None: the sampler has made the batches already
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        # new processes each epoch: they are seeded from torch's generator, which a resumed run has as it was
        num_workers=num_workers,
        worker_init_fn=_one_thread if num_workers else None,
    )


def _one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)


def batches_of(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches, typed."""
    yield from loader
