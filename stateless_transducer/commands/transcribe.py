"""``transducer transcribe``: sound files -> text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Unit
from tyro.conf import Positional, arg

from stateless_transducer.commands.shared.console import complain, hours_bar, say
from stateless_transducer.commands.shared.flags import parse
from stateless_transducer.commands.shared.idle import refuse_idle_search
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.options import ADVANCED, check_bounds
from stateless_transducer.recognition.config import DetailConfig, SegmentConfig

if TYPE_CHECKING:
    from stateless_transducer.audio import AudioError
    from stateless_transducer.commands.shared.sounds import NamedSound
    from stateless_transducer.recognition.manifest import Job, Row
    from stateless_transducer.recognition.recognizer import Recognizer
    from stateless_transducer.recognition.transcript import Transcript


@dataclass(frozen=True)
class Options:
    """Options of ``transducer transcribe``."""

    model: Annotated[str, Positional, arg(metavar="MODEL")]
    """Model file, training checkpoint, folder of a model, or owner/name of a published one."""
    files: Annotated[tuple[str, ...], Positional, arg(metavar="[SOUND ...]")]
    """Sound and video files of any length and sample rate, folders, patterns; `-`: standard input."""
    output_format: Literal["txt", "json", "srt", "vtt", "TextGrid", "tsv", "ctm"] = "txt"
    """txt: `file<tab>text`. json: one object per file. srt, vtt: subtitles. TextGrid: Praat. tsv: one row per segment.
    ctm: Kaldi, one row per word."""
    output_dir: Path | None = None
    """Folder for one result file per sound; lines are printed as well."""
    existing: Literal["stop", "skip", "replace"] = "stop"
    """If a file in `--output-dir` exists: stop before any work, skip its sound, or replace it."""
    channel: Annotated[int, Ge(0)] | None = None
    """Channel to transcribe, from 0; by default, the mean of all."""
    batch_seconds: Annotated[float, Gt(0), Unit("s"), arg(name="max-duration", aliases=("--batch-seconds",))] = 100.0
    """Seconds of audio per batch; more needs more memory."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, ...; auto: the first GPU if there is one."""
    num_threads: Annotated[Annotated[int, Ge(1)] | None, ADVANCED] = None
    """CPU threads; by default, torch or onnxruntime decides."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """bf16: checkpoints only, faster on GPUs and on CPUs with AMX. int8: x.int8.onnx of ONNX folders."""
    manifest: Path | None = None
    """Table of sounds instead of files, as for `prepare table`: for example .jsonl with id, path, and for parts of
    files start and end or duration (seconds)."""
    output: Path | None = None
    """File for the results of `--manifest`: .jsonl with one object per sound; ids that it already contains are
    skipped."""
    dask: Annotated[str | None, ADVANCED] = None
    """Scheduler of a Dask cluster that works on `--manifest`, tcp://HOST:PORT; its workers must see the files."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    details: DetailConfig = field(default_factory=DetailConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.manifest is None and not self.files:
            raise ValueError("Name at least one sound file.")
        if self.manifest is not None and (self.files or self.output_dir or self.output_format != "txt"):
            raise ValueError("`--manifest` names the sounds and `--output` the results: no files, no other outputs.")
        if (self.manifest is None) != (self.output is None) or (self.dask and self.manifest is None):
            raise ValueError("`--manifest` and `--output` belong together; `--dask` needs them.")
        if self.existing != "stop" and self.output_dir is None:
            raise ValueError(f"`--existing` {self.existing} needs `--output-dir`.")
        if self.output_format == "ctm" and not self.details.align:
            raise ValueError("`--output-format` ctm needs `--align true`.")
        refuse_idle_search(self.search, nbest=self.details.nbest)
        if self.details.nbest > 1 and self.manifest is None and self.output_format != "json":
            raise ValueError(
                f"`--nbest` {self.details.nbest} needs `--output-format json`: {self.output_format} has room for one."
            )


def main(program: str, arguments: list[str]) -> int:
    """Parse and run; status 1 if a file could not be read."""
    return run(parse(Options, program, arguments, "Transcribe sounds; print a line for each as soon as it is done."))


def run(options: Options) -> int:
    """Transcribe the sounds; report unreadable ones."""
    from stateless_transducer.commands.shared.sounds import find_sounds

    if options.manifest is not None and options.output is not None:
        return _run_manifest(options, options.manifest, options.output)
    sounds, problems = find_sounds(options.files)
    for problem in problems:
        complain(f"transducer: {problem}")
    paths, num_named = _output_paths(options, sounds), len(sounds) + len(problems)
    if paths is not None and options.existing != "replace":
        sounds, paths = _without_existing(options, sounds, paths)
    num_failed = len(problems)
    if sounds:
        num_failed += _transcribe(options, _recognizer(options), sounds, paths)
    if num_failed:
        complain(f"transducer: {num_failed} of {num_named} sounds could not be read.")
    return 1 if num_failed else 0


def _output_paths(options: Options, sounds: list[NamedSound]) -> list[Path] | None:
    from stateless_transducer.commands.shared.sounds import output_paths

    folder = options.output_dir
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`--output-dir` {folder} is not a folder.")
        return output_paths(folder, sounds, options.output_format)
    if options.output_format in ("srt", "vtt", "TextGrid") and len(sounds) > 1:
        raise ValueError(
            f"`--output-format {options.output_format}` of {len(sounds)} sounds needs `--output-dir` (one file each)."
        )
    return None


def _without_existing(
    options: Options, sounds: list[NamedSound], paths: list[Path]
) -> tuple[list[NamedSound], list[Path]]:
    """The sounds without an output file, and these files; an existing file may have been edited by hand.

    Raises:
        ValueError: A file exists, and `--existing` is stop.
    """
    from stateless_transducer.files import printable

    existing = [path for path in paths if path.exists()]
    if existing and options.existing == "stop":
        raise ValueError(
            f"{printable(existing[0])} exists already ({len(existing)} of {len(paths)} files do). Skip their sounds "
            "with `--existing skip`, overwrite them with `--existing replace`, or name another `--output-dir`."
        )
    if existing:
        complain(f"{len(existing)} of {len(paths)} files exist in {options.output_dir} already; skipping them")
    pairs = [(sound, path) for sound, path in zip(sounds, paths, strict=True) if not path.exists()]
    return [sound for sound, _ in pairs], [path for _, path in pairs]


def _find_model(options: Options) -> Path:
    from stateless_transducer.commands.shared.models import find_model
    from stateless_transducer.recognition.model import forms_for

    forms = forms_for(options.device, options.precision)
    return find_model(options.model, forms=forms, precision=options.precision)


def _recognizer(options: Options) -> Recognizer:
    from stateless_transducer.recognition.recognizer import Recognizer

    # lines of text have no times
    has_times = options.output_format != "txt"
    return Recognizer.from_pretrained(
        _find_model(options),
        options.search,
        device=options.device,
        precision=options.precision,
        num_threads=options.num_threads,
        segments=options.segments,
        details=replace(options.details, align=options.details.align and has_times),
    )


def _transcribe(options: Options, recognizer: Recognizer, sounds: list[NamedSound], paths: list[Path] | None) -> int:
    """Print the transcripts, and write them if there are paths; return the number of unreadable sounds."""
    from stateless_transducer.audio import AudioError
    from stateless_transducer.files import printable, write_text
    from stateless_transducer.recognition.formats import TSV_HEADER, ctm_rows, document, json_line, tsv_rows

    num_failed = 0
    printed = options.output_format if paths is None or options.output_format == "json" else "txt"
    if printed == "tsv":
        say(TSV_HEADER)
    with hours_bar("transcribing", lambda: _stated_seconds(sounds)) as progress:
        results = recognizer.transcribe_each(
            (sound.source for sound in sounds),
            channel=options.channel,
            batch_seconds=options.batch_seconds,
            progress=progress,
        )
        for i, (sound, result) in enumerate(zip(sounds, results, strict=True)):
            if isinstance(result, AudioError):
                complain(f"transducer: {result}")
                num_failed += 1
                continue
            if paths is not None:
                text = document(options.output_format, sound.name, result, recognizer.token_table, id_=sound.id)
                write_text(paths[i], text)
            if printed == "txt":
                say(f"{printable(sound.name)}\t{result.text}")
            elif printed == "json":
                say(json_line(sound.name, result))
            elif printed in ("tsv", "ctm"):
                for row in tsv_rows(sound.name, result) if printed == "tsv" else ctm_rows(sound.id, result):
                    say(row)
            else:
                say(document(printed, sound.name, result, recognizer.token_table).removesuffix("\n"))
    return num_failed


def _stated_seconds(sounds: list[NamedSound]) -> float | None:
    """Seconds of all sounds whose headers state them; None if no header does."""
    from stateless_transducer.audio import stated_duration

    files = (sound.source for sound in sounds if isinstance(sound.source, Path))
    return sum(stated_duration(file) or 0.0 for file in files) or None


def _run_manifest(options: Options, manifest: Path, output: Path) -> int:
    """Append a line for each sound that the output lacks."""
    from stateless_transducer.audio import AudioError
    from stateless_transducer.files import check_output
    from stateless_transducer.recognition.formats import json_line
    from stateless_transducer.recognition.manifest import finished_ids, read_manifest

    check_output(output, manifest=manifest)
    rows = read_manifest(manifest)
    finished = finished_ids(output)
    pending = [row for row in rows if row.id not in finished]
    if len(pending) < len(rows):
        complain(
            f"{len(rows) - len(pending)} of {len(rows)} sounds are in {output} already - skipping them, whatever model "
            "and options produced them. Name another `--output` to transcribe them again"
        )
    num_failed = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    # append line by line rather than rename at the end, so that results outlive an interrupted run
    with output.open("a", encoding="utf-8") as file, hours_bar("transcribing", lambda: _seconds(pending)) as progress:
        for row, result in _results(options, pending, progress):
            if isinstance(result, AudioError):
                complain(f"transducer: {row.id}: {result}")
                num_failed += 1
                continue
            file.write(json_line(str(row.sound.path), result, id_=row.id) + "\n")
            file.flush()
    # on standard error, since the output may be /dev/stdout
    complain(f"{output}: {len(pending) - num_failed} new sounds, {len(rows) - num_failed} of {len(rows)} in all")
    if num_failed:
        complain(f"transducer: {num_failed} of {len(pending)} sounds could not be read. Run again to retry.")
    return 1 if num_failed else 0


def _results(
    options: Options, rows: list[Row], progress: Callable[[float], None]
) -> Iterator[tuple[Row, Transcript | AudioError]]:
    from stateless_transducer.recognition.manifest import transcribe_here, transcribe_with_workers

    if not rows:
        return
    job = _job(options)
    if options.dask is None:
        yield from transcribe_here(job, rows, progress)
        return
    import distributed

    try:
        with distributed.Client(options.dask) as client:
            workers, executor = client.ncores(), client.get_executor(pure=False)
            if not workers:
                raise ValueError(f"`--dask` {options.dask}: the cluster has no workers.")
            # a synchronous client returns the value, not a coroutine
            num_workers = len(workers)  # pyright: ignore[reportArgumentType]
            yield from transcribe_with_workers(job, rows, progress, executor=executor, num_workers=num_workers)
    except distributed.KilledWorker as err:
        raise ValueError(f"`--dask` {options.dask}: {err}") from err


def _job(options: Options) -> Job:
    from stateless_transducer.recognition.manifest import Job

    model, search = options.model, options.search
    if options.dask is None:
        model = str(_find_model(options))
    else:
        # workers run in other folders; they look up the name of a published model themselves
        model = str(Path(model).absolute()) if Path(model).exists() else model
        search = replace(search, **{name: path.absolute() for name, path in search.scorer_files.items()})
    return Job(
        model=model,
        search=search,
        segments=options.segments,
        details=options.details,
        device=options.device,
        precision=options.precision,
        channel=options.channel,
        batch_seconds=options.batch_seconds,
        num_threads=options.num_threads,
    )


def _seconds(rows: list[Row]) -> float | None:
    """Seconds of all rows, if all state them."""
    seconds = sum(row.sound.duration_s for row in rows)
    return seconds if seconds < float("inf") else None
