"""Plan of the batches of an epoch, made at once from the lengths of the utterances.

The plan depends on the seed, the number of the epoch and the lengths. So every process makes the same plan, and
resuming in the middle of an epoch costs nothing. A batch is planned for all processes together, and its utterances are
dealt out in turn, longest first. So all processes have the same number of batches, of similar lengths, and the updates
do not depend on the number of processes. Only joining depends on it: each process joins its utterances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stateless_transducer.ops.subsampling import Subsampling

_JOINED_SHARE = 0.5
"""Share of batches whose utterances are joined."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of M utterances."""

    seconds: np.ndarray
    """(M,): seconds of sound."""
    num_frames: np.ndarray
    """(M,): feature frames."""
    num_tokens: np.ndarray
    """(M,): tokens of the transcripts."""
    frame_shift_s: float
    """Seconds from one feature frame to the next."""
    subsampling: Subsampling
    """Subsampling from feature frames to encoder frames."""

    def __len__(self) -> int:
        return len(self.seconds)

    def of(self, numbers: np.ndarray) -> Lengths:
        """Return the lengths of some of the utterances."""
        return replace(
            self,
            seconds=self.seconds[numbers],
            num_frames=self.num_frames[numbers],
            num_tokens=self.num_tokens[numbers],
        )

    def then(self, other: Lengths) -> Lengths:
        """Return the lengths of these utterances, followed by those of ``other``."""
        return replace(
            self,
            seconds=np.concatenate([self.seconds, other.seconds]),
            num_frames=np.concatenate([self.num_frames, other.num_frames]),
            num_tokens=np.concatenate([self.num_tokens, other.num_tokens]),
        )

    def longer(self, seconds: float) -> Lengths:
        """Return the lengths with ``seconds`` added to each utterance."""
        num_frames = self.num_frames + round(seconds / self.frame_shift_s)
        return replace(self, seconds=self.seconds + seconds, num_frames=num_frames)

    @property
    def num_encoder_frames(self) -> np.ndarray:
        """(M,): encoder frames."""
        return self.subsampling.lens(self.num_frames.astype(np.int64))

    @property
    def num_cells(self) -> np.ndarray:
        """(M,): cells of the lattices, T (U + 1)."""
        return self.num_encoder_frames * (self.num_tokens + 1)


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch of one process, padding included."""

    max_duration: float
    """Seconds: number of utterances times the longest one."""
    max_cells: int = 0
    """Lattice cells: number of utterances times the most encoder frames times (the most tokens + 1); 0: no limit."""

    def times(self, factor: int) -> BatchLimits:
        """Return the limits of ``factor`` processes together."""
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
    """Plan batches of utterances of similar length: numbers of utterances, longest first.

    Args:
        lengths: lengths of all utterances.
        limits: limits of one part.
        num_buckets: number of groups of similar length and about equal duration, from which batches are drawn.
        parts: number of processes times the batches that each accumulates.
        drop_last: drop the last batch of each group if it is not full.
        random: generator for the order of utterances and batches; None: from long to short, for evaluation.
    """
    by_length = np.lexsort((lengths.num_tokens, lengths.seconds))
    groups = [by_length[::-1]]
    if random is not None:
        sums = np.cumsum(lengths.seconds[by_length])
        ends = np.searchsorted(sums, sums[-1] * np.arange(1, num_buckets) / num_buckets) if len(sums) else []
        groups = [random.permutation(bucket) for bucket in np.split(by_length, ends)]
    batches = [batch for group in groups for batch in _filled(group, lengths, limits.times(parts), drop_last)]
    batches = [_longest_first(batch, lengths) for batch in _wide_enough(batches, parts)]
    if random is None:
        return sorted(batches, key=lambda batch: -lengths.seconds[batch[0]])
    return [batches[i] for i in random.permutation(len(batches))]


def join(
    numbers: np.ndarray, lengths: Lengths, limits: BatchLimits, up_to_s: float, random: np.random.Generator
) -> list[np.ndarray]:
    """Split the utterances of a batch into chains to join, or into single utterances; longest first.

    Args:
        numbers: numbers of the utterances, longest first.
        lengths: lengths of all utterances.
        limits: limits of the batch.
        up_to_s: largest length of a chain in seconds.
        random: generator that chooses whether to join, the number of chains and their utterances.
    """
    counts = chain_counts(lengths.of(numbers), limits, up_to_s)
    if random.random() >= _JOINED_SHARE or not counts:
        return [numbers[i : i + 1] for i in range(len(numbers))]
    chains = np.array_split(random.permutation(numbers), counts[random.integers(len(counts))])
    return sorted(chains, key=lambda chain: -lengths.seconds[chain].sum())


def chain_counts(lengths: Lengths, limits: BatchLimits, up_to_s: float) -> list[int]:
    """Return the possible numbers of chains of the utterances of a batch.

    After an uneven division, the padded seconds may exceed the limit, or those of the batch, by one utterance. The
    limit on lattice cells always holds, as a lattice grows with the square of its chain.
    """
    count, counts = len(lengths), set()
    if count < 2:
        return []
    seconds, frames, tokens = (values.max() for values in (lengths.seconds, lengths.num_frames, lengths.num_tokens))
    longest_s = max(limits.max_duration, count * seconds) + seconds
    for max_size in range(2, min(count, int(up_to_s / seconds)) + 1):
        rows = math.ceil(count / max_size)
        size = math.ceil(count / rows)
        cells = rows * int(lengths.subsampling.lens(np.array(size * int(frames)))) * (size * int(tokens) + 1)
        if rows * size * seconds <= longest_s + 1e-6 and (not limits.max_cells or cells <= limits.max_cells):
            counts.add(rows)
    return sorted(counts)


def mix(first: list[np.ndarray], second: list[np.ndarray], random: np.random.Generator | None) -> list[np.ndarray]:
    """Merge the batches of two plans: in random order, or evenly interleaved without a generator."""
    batches = first + second
    if random is not None:
        return [batches[i] for i in random.permutation(len(batches))]
    positions = [(i + 0.5) / len(plan) for plan in (first, second) for i in range(len(plan))]
    return [batches[i] for i in np.argsort(positions, kind="stable")]


def _wide_enough(batches: list[np.ndarray], parts: int) -> list[np.ndarray]:
    """Merge batches of fewer than ``parts`` utterances: every rank must get at least one utterance.

    One utterance per rank always fits. Fewer than ``parts`` utterances may remain at the end, and are skipped.
    """
    wide = [batch for batch in batches if len(batch) >= parts]
    narrow = [number for batch in batches if len(batch) < parts for number in batch.tolist()]
    return wide + [np.array(narrow[i : i + parts]) for i in range(0, len(narrow) - parts + 1, parts)]


def _filled(numbers: np.ndarray, lengths: Lengths, limits: BatchLimits, drop_last: bool) -> Iterator[np.ndarray]:
    """Fill batches with utterances in the given order; one that is too long for any batch gets its own."""
    ordered = lengths.of(numbers)
    frames = ordered.num_encoder_frames.tolist()
    rows = zip(ordered.seconds.tolist(), frames, (ordered.num_tokens + 1).tolist(), strict=True)
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
