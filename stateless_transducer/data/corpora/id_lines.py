"""Files of lines ``id words ...``: AISHELL's transcript, Kaldi's files."""

from __future__ import annotations

from pathlib import Path

from stateless_transducer.data.corpora.utterance import Problem
from stateless_transducer.files import check_file, read_lines


def read_id_lines(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """Read a mapping from id to its words, joined by blanks; a repeated id is a problem.

    Raises:
        ValueError: the file is missing, empty or not UTF-8.
    """
    values: dict[str, str] = {}
    problems: list[Problem] = []
    check_file(path)
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as err:
        raise ValueError(f"{path} must be UTF-8, but byte {err.start} is not; convert it (iconv -t UTF-8).") from err
    for line in lines:
        words = line.split()
        if not words:
            continue
        id_, value = words[0], " ".join(words[1:])
        if id_ in values:
            is_empty = not (value and values[id_])
            detail = f"again in {path.name}" + (", and one of the lines is empty" if is_empty else "")
            problems.append(Problem("duplicate id", id_, detail))
            # a line with words counts, wherever it is
            values[id_] = values[id_] or value
            continue
        values[id_] = value
    return values, problems
