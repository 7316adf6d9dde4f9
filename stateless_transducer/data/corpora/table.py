"""A user's own data: a table (.tsv, .csv, .jsonl) of sound files and texts, or a folder of x.wav + x.txt."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path, PurePath

from stateless_transducer.audio import SOUND_SUFFIXES
from stateless_transducer.data.corpora.utterance import Problem, Utterance
from stateless_transducer.files import check_file, file_problem, printable

# role of a column -> its usual names; the first one that the table has is used
_USUAL_NAMES = {
    "id": ("id", "utt", "utt_id", "uttid", "utterance_id", "key"),
    "path": ("path", "wav", "audio", "audio_path", "audio_filepath", "file", "filename", "file_name"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "split": ("split", "subset", "set", "partition"),
    "start": ("start", "offset", "begin", "start_time"),
    "end": ("end", "stop", "end_time"),
    "duration": ("duration", "dur"),
}
_PART_ROLES = ("start", "end", "duration")
_SOUND_ROLES = ("id", "path", *_PART_ROLES)
_ROUNDING_S = 0.1
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "development"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NOT_UTF8 = re.compile("[\0\ud800-\udfff]")

# number of the line, and the row or the reason why it cannot be read
_Row = tuple[int, "Mapping[str, object] | str"]


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table; None to detect the column by its usual names, in any case."""

    id_column: str | None = None
    """Column of the ids (id, utt, utt_id, key, ...). Without it, the id is the path without suffix, with `-` for `/`;
    for a part of a file, its start and end in milliseconds are appended."""
    path_column: str | None = None
    """Column of sound files (path, wav, audio, audio_filepath, file, ...)."""
    text_column: str | None = None
    """Column of transcripts (text, sentence, transcript, transcription)."""
    speaker_column: str | None = None
    """Column of the speakers (speaker, speaker_id, spk, client_id). Without it, all speakers are `unknown`."""
    split_column: str | None = None
    """Column of the splits (split, subset, set, partition). Without it, all utterances are `train`."""
    start_column: str | None = None
    """Column of the start of utterances in their files, in seconds (start, offset, begin, start_time). Without it, each
    utterance is a whole file."""
    end_column: str | None = None
    """Column of the end of utterances, in seconds (end, stop, end_time); needs a column of starts."""
    duration_column: str | None = None
    """Column of durations, in seconds (duration, dur); needs a column of starts."""


def read_table(
    path: Path, columns: TableColumns, *, audio_dir: Path | None = None, wants_text: bool = True
) -> tuple[list[Utterance], list[Problem]]:
    """Read the utterances of a table, in its order, and the problems.

    Args:
        path: a .tsv or .csv file with a header, or a .jsonl (.json) file with an object per line; UTF-8.
        columns: names of columns that do not have a usual name.
        audio_dir: base of relative paths; None for the table's folder.
        wants_text: whether texts are required. If not, only sounds are read, and an end or a duration may be given
            without a start.

    Raises:
        ValueError: the table does not exist, has no row, or has no column of paths or texts.
    """
    if audio_dir is not None and not audio_dir.is_dir():
        raise ValueError(f"`audio_dir` {audio_dir}: no such folder.")
    check_file(path)
    names, rows = _open_table(path, wants_text)
    # without any name, every row is reported as bad
    chosen = _choose_columns(names, columns, path, wants_text) if names else {}
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    line_of: dict[str, int] = {}
    for line, row in rows:
        try:
            utterance = _utterance(row, chosen, path.parent if audio_dir is None else audio_dir)
        except ValueError as err:
            problems.append(Problem("bad row", f"line {line}", str(err)))
            continue
        if wants_text and not utterance.text:
            # before duplicates: another row of the id may have a text
            problems.append(Problem("empty text", utterance.id, f"line {line}"))
            continue
        first = line_of.setdefault(utterance.id, line)
        if first == line:
            utterances.append(utterance)
        else:
            problems.append(Problem("duplicate id", utterance.id, f"line {line}, first on line {first}"))
    if not utterances and not problems:
        raise ValueError(f"{path} holds no row of data.")
    return utterances, problems


def read_folder(folder: Path) -> tuple[list[Utterance], list[Problem]]:
    """Read sound files with a .txt of the same name beside them, and the problems; links are followed.

    Files in a folder train, dev or test directly below belong to that split, all others to train. The speaker is the
    name of a file's folder.

    Raises:
        ValueError: the folder does not exist, or holds neither sound nor text.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder.")
    files = list(_walk(folder))
    texts = {path.parent / path.stem: path for path in files if path.suffix.lower() == ".txt"}
    sounds = [path for path in files if path.suffix.lower() in SOUND_SUFFIXES]
    if not texts and not sounds:
        raise ValueError(f"{folder} holds neither sound files nor .txt files; if there is a table, name its file.")
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    first: dict[str, Path] = {}
    for path in sounds:
        id_, text_path = _id_of(path.relative_to(folder)), texts.pop(path.parent / path.stem, None)
        try:
            if id_ in first:
                problems.append(Problem("duplicate id", printable(id_), printable(f"{path}, first {first[id_]}")))
            elif text_path is None:
                problems.append(Problem("audio without text", printable(id_), printable(path)))
            else:
                first[id_] = path
                utterances.append(_utterance_of_pair(path, text_path, folder))
        except ValueError as err:
            problems.append(Problem("bad row", printable(id_), str(err)))
    for path in texts.values():
        problems.append(Problem("text without audio", printable(_id_of(path.relative_to(folder))), printable(path)))
    return utterances, problems


def split_name(name: str) -> str | None:
    """Return ``train``, ``dev`` or ``test`` for a name of that meaning, otherwise None."""
    return _SPLIT_NAMES.get(name.lower())


def paired_files(folder: Path) -> list[Path]:
    """Return the files that `read_folder` reads; other files of the folder may change."""
    files = list(_walk(folder))
    sounds = {path.parent / path.stem for path in files if path.suffix.lower() in SOUND_SUFFIXES}
    suffixes = {".txt", *SOUND_SUFFIXES}
    return [path for path in files if path.parent / path.stem in sounds and path.suffix.lower() in suffixes]


def hold_out(utterances: Sequence[Utterance], share: float) -> tuple[list[Utterance], str]:
    """Move about a share of the training utterances to dev: whole speakers, or utterances if there is one speaker.

    Speakers are moved in the order of a hash of their names, as far as they fit; if none fits, the smallest is moved.

    Returns:
        All utterances in their order, and a line for the user that reports what was moved.
    """
    train = [utterance for utterance in utterances if utterance.split == "train"]
    num_speakers = len({utterance.speaker for utterance in train})
    name_of = attrgetter("speaker" if num_speakers > 1 else "id")
    counts = Counter(map(name_of, train))
    if len(counts) < 2 or any(utterance.split == "dev" for utterance in utterances):
        reason = "there are too few training utterances" if len(counts) < 2 else "there is a split dev"
        return list(utterances), f"`--dev-share` {share:g} is ignored: {reason}."
    moved: set[str] = set()
    target = round(share * len(train))
    room = target
    for name in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if counts[name] <= room:
            moved.add(name)
            room -= counts[name]
    moved = moved or {min(counts, key=lambda name: (counts[name], name))}
    placed = [replace(u, split="dev") if u.split == "train" and name_of(u) in moved else u for u in utterances]
    speakers = f"{len(moved)} of {num_speakers} speakers" if num_speakers > 1 else "one speaker's"
    num_moved = sum(counts[name] for name in moved)
    message = f"`--dev-share` {share:g}: {num_moved} of {len(train)} training utterances ({speakers}) are now dev"
    if not target / 2 <= num_moved <= 2 * max(1, target):
        message += (
            f", not about {target}, since speakers move as a whole; to hold out other utterances, give each its split "
            "in a table: a column `split` of `train` and `dev`"
        )
    return placed, f"{message}."


def _open_table(path: Path, wants_text: bool) -> tuple[list[str], Iterator[_Row]]:
    """Return the names of the columns, and the rows."""
    suffix = path.suffix.lower()
    # NeMo uses .json; a list of sounds may have any name
    if suffix in (".jsonl", ".json") or not wants_text and suffix not in (".tsv", ".csv"):
        # objects may differ in their keys, so all are read
        objects = (row for _, row in _json_rows(path) if not isinstance(row, str))
        return list(dict.fromkeys(name for row in objects for name in row)), _json_rows(path)
    if suffix not in (".tsv", ".csv"):
        raise ValueError(f"{path}: a table must be .tsv, .csv, .jsonl or .json (an object a line).")
    lines = _separated_lines(path)
    _, header = next(lines, (0, "the file is empty"))
    if isinstance(header, str):
        raise ValueError(f"{path} has no header: {header}.")
    if any(_NOT_UTF8.search(name) for name in header):
        raise ValueError(f"{path} is not UTF-8; save it as UTF-8.")
    return header, ((line, _named(header, cells)) for line, cells in lines)


def _json_rows(path: Path) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as err:
                yield number, f"not JSON: {err}"
                continue
            yield number, row if isinstance(row, dict) else "not a JSON object"


def _separated_lines(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the cells of each row that is not empty; in a .tsv, too, a whole cell may be in double quotes."""
    is_csv = path.suffix.lower() == ".csv"
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        quoting = csv.QUOTE_MINIMAL if is_csv else csv.QUOTE_NONE
        # the message of Python 3.10's csv about a NUL is of no help
        lines = (line.replace("\0", "\udc00") for line in file)
        reader = csv.reader(
            lines, delimiter="," if is_csv else "\t", quoting=quoting, strict=True, skipinitialspace=True
        )
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as err:
                # all lines of a quote that is not closed are bad rows
                for line in range(number, reader.line_num + 1):
                    yield line, f"{err}" + (f", in a quote opened on line {number}" if line > number else "")
                continue
            if cells is None:
                return
            cells = [cell.strip() if is_csv else _unquoted(cell.strip()) for cell in cells]
            if any(cells):
                yield number, cells


def _unquoted(cell: str) -> str:
    inner = cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner else cell


def _named(header: Sequence[str], cells: list[str] | str) -> Mapping[str, object] | str:
    if isinstance(cells, str) or len(cells) == len(header):
        return cells if isinstance(cells, str) else dict(zip(header, cells, strict=True))
    return f"{len(cells)} fields, but the header has {len(header)}"


def _choose_columns(names: Sequence[str], columns: TableColumns, path: Path, wants_text: bool) -> dict[str, str]:
    """Return the name of the column for each role that the table has."""
    listing = f"its columns are: {', '.join(map(printable, names))}"
    chosen: dict[str, str] = {}
    for role in _USUAL_NAMES if wants_text else _SOUND_ROLES:
        usual, named = _USUAL_NAMES[role], asdict(columns)[f"{role}_column"]
        if named is not None and named not in names:
            raise ValueError(f"`{role}_column` {named}: {path} has no such column; {listing}.")
        if wants_text and role in _PART_ROLES[1:] and "start" not in chosen:
            # for whole files, the table has it as information
            if named is not None:
                raise ValueError(f"`{role}_column` {named} needs a column of starts (`start_column`); {listing}.")
            continue
        detected = [name for usual_name in usual for name in names if name.lower() == usual_name]
        name = next(iter(detected), None) if named is None else named
        if name is not None:
            if role in _PART_ROLES and named is None and len(set(detected)) > 1:
                raise ValueError(
                    f"{path}: several columns may be the {role}: {', '.join(detected)}. Rename all but one."
                )
            if names.count(name) > 1:
                raise ValueError(f"{path} has more than one column `{name}`; rename all but one.")
            chosen[role] = name
        elif role in ("path", "text"):
            way_out = f" Pass the name of the column with the {role} as `{role}_column`." if wants_text else ""
            raise ValueError(f"{path} has no column called {', '.join(usual)}; {listing}.{way_out}")
    return chosen


def _utterance(row: Mapping[str, object] | str, chosen: Mapping[str, str], folder: Path) -> Utterance:
    if isinstance(row, str):
        raise ValueError(row)
    cells = {role: _cell(row.get(name), name) for role, name in chosen.items()}
    path = _possible(PurePath(cells.get("path", "")))
    start_s, duration_s = _part(*(_seconds(cells.get(role, ""), chosen.get(role, "")) for role in _PART_ROLES))
    id_ = " ".join(cells.get("id", "").split()) or _id_of(path) + _part_name(start_s, duration_s)
    speaker, split = cells.get("speaker") or "unknown", cells.get("split") or "train"
    if not re.fullmatch(r"[\w.-]+", split):
        raise ValueError(f"split '{printable(split)}': only letters, digits and `_.-` can be part of a file's name")
    text = " ".join(cells.get("text", "").split())
    return Utterance(id_, folder / path, text, speaker, _SPLIT_NAMES.get(split.lower(), split), start_s, duration_s)


def _seconds(cell: str, column: str) -> float | None:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError as err:
        raise ValueError(f"`{printable(column)}` is '{printable(cell)[:80]}', not a number of seconds") from err


def _part(start: float | None, end: float | None, duration: float | None) -> tuple[float, float]:
    """Return start and duration; the defaults are the beginning and the end of the file."""
    start = start or 0.0
    if end is not None and duration is not None and not abs(start + duration - end) <= _ROUNDING_S:
        raise ValueError(f"begins at {start:g} s and is {duration:g} s long, but ends at {end:g} s")
    if duration is None:
        duration = math.inf if end is None else end - start
    if not (0 <= start < math.inf and duration > 0):
        raise ValueError(f"begins at {start:g} s and is {duration:g} s long")
    return start, duration


def _part_name(start_s: float, duration_s: float) -> str:
    """Return the suffix of an id for a part of a file: ``-0001500-0003200``."""
    if start_s == 0 and duration_s == math.inf:
        return ""
    end = "" if duration_s == math.inf else f"-{round((start_s + duration_s) * 1000):07d}"
    return f"-{round(start_s * 1000):07d}{end}"


def _cell(value: object, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ValueError(f"`{printable(column)}` is neither text nor a number")
    if _NOT_UTF8.search(str(value)):
        raise ValueError(f"`{printable(column)}` is not UTF-8")
    return "" if value is None else str(value).strip()


def _utterance_of_pair(path: Path, text_path: Path, folder: Path) -> Utterance:
    relative = _possible(path.relative_to(folder))
    if problem := file_problem(text_path):
        raise ValueError(f"{text_path}: {problem}")
    try:
        text = text_path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as err:
        raise ValueError(printable(f"{text_path} cannot be read as UTF-8 text: {err}")) from err
    top = relative.parts[0].lower() if len(relative.parts) > 1 else ""
    speaker, split = path.absolute().parent.name, _SPLIT_NAMES.get(top, "train")
    return Utterance(_id_of(relative), path, " ".join(text.split()), speaker, split)


def _id_of(path: PurePath) -> str:
    """Return a path without root and suffix, with `-` for `/`."""
    return "-".join((path.parent / path.stem).relative_to(path.anchor).parts)


def _possible(path: PurePath) -> PurePath:
    """Return a path, unless opening it would raise, or its name would break the table of problems."""
    is_too_long = any(len(part.encode(errors="replace")) > 255 for part in path.parts)
    if is_too_long or not path.name or re.search("[\0-\x1f\ud800-\udfff]", str(path)):
        raise ValueError(f"'{printable(path if path.name else '')[:80]}' cannot be the name of a sound file")
    return path


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files that are not hidden, in a fixed order."""
    above |= {folder.resolve()}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:
            # a link to a folder above would recurse forever
            yield from _walk(path, above)
