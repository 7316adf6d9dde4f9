"""Which utterances make a batch: a whole epoch is planned at once, from lengths alone.

The plan follows from the seed, the number of the epoch and the lengths, so that every process makes the same one, and
going on in the middle of an epoch costs nothing. A batch is planned for all processes together and then dealt out,
longest first, one to each in turn: all have as many batches, of like lengths, and what is learnt does not depend on how
many they are, unless utterances are joined: each process joins its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stateless_transducer.ops.subsampling import Subsampling

_JOINED_SHARE = 0.5
"""Of the batches, those whose utterances are joined."""


@dataclass(frozen=True)
class Lengths:
    """Of utterances, by number."""

    seconds: np.ndarray
    """(M,)."""
    num_frames: np.ndarray
    """(M,): feature frames."""
    num_tokens: np.ndarray
    """(M,)."""
    frame_shift_s: float
    """Seconds from one feature frame to the next."""
    subsampling: Subsampling
    """Encoder frames for feature frames."""

    def __len__(self) -> int:
        return len(self.seconds)

    def of(self, numbers: np.ndarray) -> Lengths:
        """Of some of them."""
        return replace(
            self,
            seconds=self.seconds[numbers],
            num_frames=self.num_frames[numbers],
            num_tokens=self.num_tokens[numbers],
        )

    def then(self, other: Lengths) -> Lengths:
        """Of these, and behind them of others."""
        return replace(
            self,
            seconds=np.concatenate([self.seconds, other.seconds]),
            num_frames=np.concatenate([self.num_frames, other.num_frames]),
            num_tokens=np.concatenate([self.num_tokens, other.num_tokens]),
        )

    def longer(self, seconds: float) -> Lengths:
        """Each by so many seconds."""
        num_frames = self.num_frames + round(seconds / self.frame_shift_s)
        return replace(self, seconds=self.seconds + seconds, num_frames=num_frames)

    @property
    def num_encoder_frames(self) -> np.ndarray:
        """(M,)."""
        return self.subsampling.lens(self.num_frames.astype(np.int64))

    @property
    def num_cells(self) -> np.ndarray:
        """(M,): places in the lattice of each, T (U + 1)."""
        return self.num_encoder_frames * (self.num_tokens + 1)


@dataclass(frozen=True)
class BatchLimits:
    """What a batch of one process keeps to; padding counts."""

    max_duration: float
    """Seconds: utterances times the longest one."""
    max_cells: int = 0
    """Places in the lattices: utterances times the most frames times the most tokens and one; 0: any number."""

    def times(self, factor: int) -> BatchLimits:
        """Of so many processes together."""
        return BatchLimits(self.max_duration * factor, self.max_cells * factor)


def plan_epoch(
    lengths: Lengths,
    limits: BatchLimits,
    *,
    num_buckets: int,
    parts: int = 1,
    drop_last: bool = False,
    random: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """Batches of utterances of like length: numbers of utterances, longest first.

    Args:
        lengths: of all utterances.
        limits: of one part.
        num_buckets: groups of like length, of about as many seconds each, that batches are drawn from.
        parts: processes, times the pieces that each adds up to one update.
        drop_last: leave out the batches at the end of each group that are not full.
        random: order of the utterances and the batches; None: from long to short, as evaluation wants it.
    """
    by_length = np.lexsort((lengths.num_tokens, lengths.seconds))
    groups = [by_length[::-1]]
    if random is not None:
        heard = np.cumsum(lengths.seconds[by_length])
        ends = np.searchsorted(heard, heard[-1] * np.arange(1, num_buckets) / num_buckets) if len(heard) else []
        groups = [random.permutation(bucket) for bucket in np.split(by_length, ends)]
    batches = [batch for group in groups for batch in _filled(group, lengths, limits.times(parts), drop_last)]
    batches = [_longest_first(batch, lengths) for batch in _wide_enough(batches, parts)]
    if random is None:
        return sorted(batches, key=lambda batch: -lengths.seconds[batch[0]])
    return [batches[i] for i in random.permutation(len(batches))]


def join(
    numbers: np.ndarray, lengths: Lengths, limits: BatchLimits, up_to_s: float, random: np.random.Generator
) -> list[np.ndarray]:
    """The utterances of a batch in chains, each to become one, or every one alone; longest first.

    Args:
        numbers: of the utterances, longest first.
        lengths: of all utterances.
        limits: of the batch.
        up_to_s: seconds of a chain, at most.
        random: which batches, how long, who with whom.
    """
    counts = chain_counts(lengths.of(numbers), limits, up_to_s)
    if random.random() >= _JOINED_SHARE or not counts:
        return [numbers[i : i + 1] for i in range(len(numbers))]
    chains = np.array_split(random.permutation(numbers), counts[random.integers(len(counts))])
    return sorted(chains, key=lambda chain: -lengths.seconds[chain].sum())


def chain_counts(lengths: Lengths, limits: BatchLimits, up_to_s: float) -> list[int]:
    """How many chains the utterances of a batch may become, as many to each as can be.

    Of what does not divide evenly, padding may be an utterance more than the seconds that the batch has or may have. A
    lattice grows with the square of its chain, and keeps to its limit.
    """
    count, found = len(lengths), set()
    if count < 2:
        return []
    seconds, frames, tokens = (values.max() for values in (lengths.seconds, lengths.num_frames, lengths.num_tokens))
    longest_s = max(limits.max_duration, count * seconds) + seconds
    for wanted in range(2, min(count, int(up_to_s / seconds)) + 1):
        rows = math.ceil(count / wanted)
        size = math.ceil(count / rows)
        cells = rows * int(lengths.subsampling.lens(np.array(size * int(frames)))) * (size * int(tokens) + 1)
        if rows * size * seconds <= longest_s + 1e-6 and (not limits.max_cells or cells <= limits.max_cells):
            found.add(rows)
    return sorted(found)


def mix(first: list[np.ndarray], second: list[np.ndarray], random: np.random.Generator | None) -> list[np.ndarray]:
    """The batches of two plans together: in any order, or each plan in its own and both from beginning to end."""
    together = first + second
    if random is not None:
        return [together[i] for i in random.permutation(len(together))]
    places = [(i + 0.5) / len(plan) for plan in (first, second) for i in range(len(plan))]
    return [together[i] for i in np.argsort(places, kind="stable")]


def _wide_enough(batches: list[np.ndarray], parts: int) -> list[np.ndarray]:
    """No process may be without an utterance: batches of fewer than there are parts are put together.

    One utterance a process always fits. Fewer than ``parts`` utterances may be left out at the end.
    """
    wide = [batch for batch in batches if len(batch) >= parts]
    narrow = [number for batch in batches if len(batch) < parts for number in batch.tolist()]
    return wide + [np.array(narrow[i : i + parts]) for i in range(0, len(narrow) - parts + 1, parts)]


def _filled(numbers: np.ndarray, lengths: Lengths, limits: BatchLimits, drop_last: bool) -> Iterator[np.ndarray]:
    """Utterances in their order, as many to a batch as fit; one that is too long for any batch is alone."""
    chosen = lengths.of(numbers)
    frames = chosen.num_encoder_frames.tolist()
    rows = zip(chosen.seconds.tolist(), frames, (chosen.num_tokens + 1).tolist(), strict=True)
    start, longest, most_frames, most_tokens = 0, 0.0, 0, 0
    for i, (seconds, num_frames, num_tokens) in enumerate(rows):
        wider = max(longest, seconds), max(most_frames, num_frames), max(most_tokens, num_tokens)
        count = i - start + 1
        is_long = count * wider[0] > limits.max_duration + 1e-6
        is_large = limits.max_cells > 0 and count * wider[1] * wider[2] > limits.max_cells
        if (is_long or is_large) and count > 1:
            yield numbers[start:i]
            start, wider = i, (seconds, num_frames, num_tokens)
        longest, most_frames, most_tokens = wider
    if start < len(numbers) and not drop_last:
        yield numbers[start:]


def _longest_first(batch: np.ndarray, lengths: Lengths) -> np.ndarray:
    return batch[np.argsort(-lengths.seconds[batch], kind="stable")]
