"""``transducer transcribe``: sound files -> text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from stateless_transducer.commands.console import complain, hours_bar, say
from stateless_transducer.commands.flags import parse
from stateless_transducer.decoding.config import SearchConfig
from stateless_transducer.serving.config import SegmentConfig

if TYPE_CHECKING:
    from stateless_transducer.commands.sounds import NamedSound
    from stateless_transducer.serving.recognizer import Recognizer


@dataclass(frozen=True)
class Options:
    """Options of ``transducer transcribe``."""

    model: Annotated[Path, Positional]
    """Model file, as written by `transducer average`, or a checkpoint."""
    files: Annotated[tuple[str, ...], Positional]
    """Sounds and videos of any length and sample rate: files, folders, patterns, `-` for standard input."""
    output_format: Literal["txt", "json", "srt", "vtt", "TextGrid", "tsv"] = "txt"
    """txt: `file<tab>text`; json: an object a sound; srt, vtt: subtitles; TextGrid: Praat's; tsv: a row a segment."""
    output_dir: Path | None = None
    """Write a file for each sound into this folder, too; lines are printed all the same."""
    channel: int | None = None
    """Channel to listen to, from 0; None: the mean of all."""
    batch_seconds: float = 100.0
    """Seconds of audio worked on at once; more needs more memory."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: the first GPU, if there is one."""
    num_threads: int | None = None
    """Threads on the CPU; None: torch decides."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder: bf16 is faster on a GPU, and on a CPU with AMX."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("Name at least one sound file.")
        if self.channel is not None and self.channel < 0:
            raise ValueError(f"`--channel` counts from 0, but is {self.channel}.")
        if not self.batch_seconds > 0:
            raise ValueError(f"`--batch-seconds` must be above 0 s, but is {self.batch_seconds:g}.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"`--num-threads` must be at least 1, but is {self.num_threads}.")


def main(program: str, arguments: list[str]) -> int:
    """Parse and run; status 1 if a file could not be read."""
    return run(parse(Options, program, arguments, "Transcribe sounds: one line each, as soon as it is known."))


def run(options: Options) -> int:
    """Transcribe what can be read, report the rest."""
    from stateless_transducer.commands.sounds import find_sounds

    sounds, problems = find_sounds(options.files)
    for problem in problems:
        complain(f"transducer: {problem}")
    paths = _output_paths(options, sounds)
    num_failed = len(problems)
    if sounds:
        num_failed += _transcribe(options, _recognizer(options), sounds, paths)
    if num_failed:
        complain(f"transducer: {num_failed} of {len(sounds) + len(problems)} sounds could not be read.")
    return 1 if num_failed else 0


def _output_paths(options: Options, sounds: list[NamedSound]) -> list[Path] | None:
    from stateless_transducer.commands.sounds import output_paths

    folder = options.output_dir
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`--output-dir` {folder} is not a folder.")
        return output_paths(folder, sounds, options.output_format)
    if options.output_format in ("srt", "vtt", "TextGrid") and len(sounds) > 1:
        raise ValueError(
            f"`--output-format {options.output_format}` of {len(sounds)} sounds needs `--output-dir`: each is a file."
        )
    return None


def _recognizer(options: Options) -> Recognizer:
    import torch

    from stateless_transducer.serving.recognizer import Recognizer

    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    return Recognizer.from_pretrained(
        options.model,
        options.search,
        device=options.device,
        precision=options.precision,
        segments=options.segments,
    )


def _transcribe(options: Options, recognizer: Recognizer, sounds: list[NamedSound], paths: list[Path] | None) -> int:
    """Print, and write if there are paths; how many sounds could not be read."""
    from stateless_transducer.audio import AudioError
    from stateless_transducer.files import write_text
    from stateless_transducer.serving.formats import TSV_HEADER, document, json_line, tsv_rows

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
        for i, (sound, found) in enumerate(zip(sounds, results, strict=True)):
            if isinstance(found, AudioError):
                complain(f"transducer: {found}")
                num_failed += 1
                continue
            if paths is not None:
                write_text(paths[i], document(options.output_format, sound.name, found, recognizer.token_table))
            if printed == "txt":
                say(f"{sound.name}\t{found.text}")
            elif printed == "json":
                say(json_line(sound.name, found))
            elif printed == "tsv":
                for row in tsv_rows(sound.name, found):
                    say(row)
            else:
                say(document(printed, sound.name, found, recognizer.token_table).removesuffix("\n"))
    return num_failed


def _stated_seconds(sounds: list[NamedSound]) -> float | None:
    """Of all sounds whose headers state it; None if there is none."""
    from stateless_transducer.audio import stated_duration

    files = (sound.source for sound in sounds if isinstance(sound.source, Path))
    return sum(stated_duration(file) or 0.0 for file in files) or None
