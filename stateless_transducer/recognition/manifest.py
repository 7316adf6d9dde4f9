"""Transcribe the sounds of a manifest, on this machine or a cluster; a stopped run can be resumed.

Input: a table as for `transducer prepare table`; texts are not needed. Output: an object per line, the ``id`` and the
fields of `formats.json_line`; times count from the start of the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stateless_transducer.audio import AudioError
from stateless_transducer.data.corpora.table import TableColumns, read_table
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.files import file_problem, parse_json
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig
from stateless_transducer.recognition.model import Precision
from stateless_transducer.recognition.recognizer import Recognizer
from stateless_transducer.recognition.sounds import Stretch
from stateless_transducer.recognition.transcript import Transcript

# small tasks: workers finish at about the same time, and a failure loses little
_MOST_ROWS_A_TASK, _TASKS_A_WORKER = 32, 8
# the beginning of `formats.json_line`
_LINE_START = b'{"id": "'


@dataclass(frozen=True)
class Row:
    """A sound of a manifest."""

    id: str
    sound: Stretch


@dataclass(frozen=True)
class Job:
    """Settings of a recognizer that can be sent to another machine, which must see the same files."""

    model: str
    """Path, which the other machine must see, or name of a published model."""
    search: SearchConfig
    segments: SegmentConfig
    details: DetailConfig
    device: str
    precision: Precision
    channel: int | None
    batch_seconds: float
    num_threads: int | None = None

    def recognizer(self) -> Recognizer:
        """Return a new recognizer.

        Raises:
            ValueError: See `Recognizer`.
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
    """Return the sounds of a manifest; relative paths are relative to its folder.

    Raises:
        ValueError: The file does not exist, or holds an invalid line or a duplicate id.
    """
    if problem := file_problem(path):
        raise ValueError(f"`manifest` {path}: {problem}.")
    utterances, problems = read_table(path, TableColumns(), audio_dir=path.parent.absolute(), wants_text=False)
    if problems:
        raise ValueError(f"`manifest` {path}: {problems[0].kind}, {problems[0].id}: {problems[0].detail}.")
    return [Row(u.id, Stretch(u.path, u.start_s, u.duration_s)) for u in utterances]


def finished_ids(path: Path) -> set[str]:
    """Return the ids in an output file, none of a pipe; remove a partial last line, left by a killed run.

    Raises:
        ValueError: The file is not an output file; it is left unchanged.
    """
    if not path.is_file():
        return set()
    ids: set[str] = set()
    with path.open("rb+") as file:
        for number, line in enumerate(file, 1):
            is_complete = line.endswith(b"\n")
            try:
                ids.add(_id_of_transcript(line))
            except (ValueError, TypeError, KeyError) as err:
                if is_complete or not _may_be_partial(line):
                    raise ValueError(f"`output` {path}:{number} is not a transcript. Name another file.") from err
                file.truncate(file.seek(-len(line), 2))
                break
            if not is_complete:
                file.write(b"\n")
    return ids


def _id_of_transcript(line: bytes) -> str:
    """Return the id of a line written by `formats.json_line`."""
    entry = parse_json(line)
    if not isinstance(entry["segments"], list):
        raise TypeError
    return entry["id"]


def _may_be_partial(line: bytes) -> bool:
    """Whether an incomplete line may be the beginning of a line of `formats.json_line`."""
    try:
        parse_json(line)
    except ValueError:
        return _LINE_START.startswith(line[: len(_LINE_START)])
    return False


def transcribe_here(
    job: Job, rows: Sequence[Row], progress: Callable[[float], None]
) -> Iterator[tuple[Row, Transcript | AudioError]]:
    """Yield each row with its transcript or error, in order; progress in seconds of audio."""
    sounds = (row.sound for row in rows)
    results = job.recognizer().transcribe_each(
        sounds, channel=job.channel, batch_seconds=job.batch_seconds, progress=progress
    )
    yield from zip(rows, results, strict=True)


def transcribe_with_workers(
    job: Job, rows: Sequence[Row], progress: Callable[[float], None], *, executor: Executor, num_workers: int
) -> Iterator[tuple[Row, Transcript | AudioError]]:
    """Yield the results of `transcribe_here` from the workers of an executor, in order of completion."""
    size = max(1, min(_MOST_ROWS_A_TASK, len(rows) // (_TASKS_A_WORKER * num_workers)))
    path = Path(job.model)
    modified = path.stat().st_mtime_ns if path.exists() else 0
    tasks = [rows[i : i + size] for i in range(0, len(rows), size)]
    running = {executor.submit(_work, job, modified, task): task for task in tasks}
    finished_s = 0.0
    for future in as_completed(running):
        for row, result in zip(running.pop(future), future.result(), strict=True):
            finished_s += result.duration if isinstance(result, Transcript) else 0.0
            progress(finished_s)
            yield row, result


def _work(job: Job, modified: int, rows: Sequence[Row]) -> list[Transcript | AudioError]:
    sounds = (row.sound for row in rows)
    recognizer = _cached_recognizer(job, modified)
    return list(recognizer.transcribe_each(sounds, channel=job.channel, batch_seconds=job.batch_seconds))


@lru_cache(maxsize=1)
def _cached_recognizer(job: Job, modified: int) -> Recognizer:
    """Return the worker's recognizer for all tasks of a job; ``modified`` detects a replaced model file."""
    return job.recognizer()
