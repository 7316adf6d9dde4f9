"""Transcribe the sounds of a manifest, on this machine or a cluster; a stopped run can be resumed.

Input: a table as for `transducer prepare table`; texts are not needed. Output: an object per line, the ``id`` and the
fields of `formats.json_line`; times count from the start of the part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stateless_transducer.audio import AudioError
from stateless_transducer.data.corpora.table import TableColumns, read_table
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.model import Precision
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.sounds import Stretch
from stateless_transducer.recognition.transcript import Transcript

# small enough that workers end at about the same time, and that little is lost if one fails
_MOST_ROWS_A_TASK, _TASKS_A_WORKER = 32, 8
# the beginning of `formats.json_line`
_LINE_BEGINS = b'{"id": "'


@dataclass(frozen=True)
class Row:
    """A sound of a manifest."""

    id: str
    sound: Stretch


@dataclass(frozen=True)
class Job:
    """Settings of a recognizer that can be sent to another machine, which must see the same files."""

    model: Path
    search: SearchConfig
    segments: SegmentConfig
    details: DetailConfig
    device: str
    precision: Precision
    channel: int | None
    batch_seconds: float
    num_threads: int | None = None

    def recognizer(self) -> Recognizer:
        """A new recognizer.

        Raises:
            ValueError: see `Recognizer`.
        """
        return Recognizer.from_pretrained(
            self.model,
            self.search,
            device=self.device,
            precision=self.precision,
            segments=self.segments,
            details=self.details,
            num_threads=self.num_threads,
        )


def read_manifest(path: Path) -> list[Row]:
    """The sounds of a manifest; relative paths are relative to its folder.

    Raises:
        ValueError: no such file, or a line that cannot be; ids must differ.
    """
    if not path.is_file():
        raise ValueError(f"`manifest` {path}: no such file.")
    utterances, problems = read_table(path, TableColumns(), audio_dir=path.parent.absolute(), wants_text=False)
    if problems:
        raise ValueError(f"`manifest` {path}: {problems[0].kind}, {problems[0].id}: {problems[0].detail}.")
    return [Row(one.id, Stretch(one.path, one.start_s, one.duration_s)) for one in utterances]


def finished_ids(path: Path) -> set[str]:
    """Ids that an output file holds, a pipe none; the half line that a killed run may have left at its end is cut off.

    Raises:
        ValueError: the file is something else; it stays as it was.
    """
    if not path.is_file():
        return set()
    ids: set[str] = set()
    with path.open("rb+") as file:
        for number, line in enumerate(file, 1):
            is_ended = line.endswith(b"\n")
            try:
                ids.add(_id_of_transcript(line))
            except (ValueError, TypeError, KeyError) as err:
                if is_ended or not _may_be_half(line):
                    raise ValueError(f"`output` {path}:{number} is no transcript; name another file.") from err
                file.truncate(file.seek(-len(line), 2))
                break
            if not is_ended:
                file.write(b"\n")
    return ids


def _id_of_transcript(line: bytes) -> str:
    """Of what `formats.json_line` writes, and no other."""
    entry = json.loads(line)
    if not isinstance(entry["segments"], list):
        raise TypeError
    return entry["id"]


def _may_be_half(line: bytes) -> bool:
    """Whether a line that is no JSON may have become one of ours."""
    try:
        json.loads(line)
    except ValueError:
        return _LINE_BEGINS.startswith(line[: len(_LINE_BEGINS)])
    return False


def transcribe_here(
    job: Job, rows: Sequence[Row], progress: Callable[[float], None]
) -> Iterator[tuple[Row, Transcript | AudioError]]:
    """Each row with its transcript, or with what is wrong with it, in order; progress in seconds of audio."""
    sounds = (row.sound for row in rows)
    results = job.recognizer().transcribe_each(
        sounds, channel=job.channel, batch_seconds=job.batch_seconds, progress=progress
    )
    yield from zip(rows, results, strict=True)


def transcribe_with_workers(
    job: Job, rows: Sequence[Row], progress: Callable[[float], None], *, executor: Executor, num_workers: int
) -> Iterator[tuple[Row, Transcript | AudioError]]:
    """As `transcribe_here`, by the workers of an executor, and in whatever order they end."""
    size = max(1, min(_MOST_ROWS_A_TASK, len(rows) // (_TASKS_A_WORKER * num_workers)))
    modified = job.model.stat().st_mtime_ns if job.model.exists() else 0
    tasks = [rows[i : i + size] for i in range(0, len(rows), size)]
    running = {executor.submit(_work, job, modified, task): task for task in tasks}
    done = 0.0
    for future in as_completed(running):
        for row, result in zip(running.pop(future), future.result(), strict=True):
            done += result.duration if isinstance(result, Transcript) else 0.0
            progress(done)
            yield row, result


def _work(job: Job, modified: int, rows: Sequence[Row]) -> list[Transcript | AudioError]:
    sounds = (row.sound for row in rows)
    recognizer = _cached_recognizer(job, modified)
    return list(recognizer.transcribe_each(sounds, channel=job.channel, batch_seconds=job.batch_seconds))


@lru_cache(maxsize=1)
def _cached_recognizer(job: Job, modified: int) -> Recognizer:
    """Of the worker, for all its tasks of a job; ``modified`` tells a new model of the same name from the old one."""
    return job.recognizer()
