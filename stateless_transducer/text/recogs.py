"""Results as icefall's ``recogs-*.txt`` hold them: reading them, and pairing two of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from stateless_transducer.files import check_file, read_lines
from stateless_transducer.text.scoring import ScoredUtterance

# recipes with token times write two more fields, which do not affect errors
_LINE = re.compile(r"(?P<id>.+?):\t(?P<field>ref|hyp|timestamp_ref|timestamp_hyp)=(?P<value>.*)")

# place of the recording in its manifest
_CUT_NUMBER = re.compile(r"(?<=.)-\d+$")


def read_recogs(path: Path) -> tuple[ScoredUtterance, ...]:
    """Read the utterances of a file, in its order.

    Raises:
        ValueError: the file is missing or not a recogs file; the message names the line.
    """
    check_file(path)
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as err:
        raise ValueError(f"{path} is not a recogs file: it is not UTF-8 ({err.reason} at byte {err.start}).") from err
    # id -> field -> units
    utterances: dict[str, dict[str, tuple[str, ...]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        id_, field, value = _parts(line, where)
        if field in ("ref", "hyp"):
            fields = utterances.setdefault(id_, {})
            if field in fields:
                raise ValueError(f"{where}: the {field} of {id_} is there twice.")
            fields[field] = _units(value, where)
    for id_, fields in utterances.items():
        if len(fields) < 2:
            raise ValueError(f"{path}: {id_} has no {'hyp' if 'ref' in fields else 'ref'}.")
    if not utterances:
        raise ValueError(f"{path} holds no utterances.")
    return tuple(ScoredUtterance(id_, fields["ref"], fields["hyp"]) for id_, fields in utterances.items())


def pair_ids(
    a: Sequence[ScoredUtterance], b: Sequence[ScoredUtterance]
) -> tuple[tuple[ScoredUtterance, ...], tuple[ScoredUtterance, ...]]:
    """Return both results with ids that pair up, as far as they do without lhotse's numbers.

    lhotse names a cut after its recording and the place of that in the manifest (``BAC009S0764W0121-0``). The place
    depends on the file system, and our preparation leaves it out. So in one result or in both, ``-<number>`` is cut
    off if more utterances pair up without it, and all ids stay different.
    """
    candidates = [(x, y) for x in (tuple(a), _without_numbers(a)) for y in (tuple(b), _without_numbers(b))]
    # ids that are different stay so; of equally good ones, the first, which changes least
    candidates = [pair for pair in candidates[1:] if all(len(_ids(result)) == len(result) for result in pair)]
    return max([(tuple(a), tuple(b)), *candidates], key=lambda pair: len(_ids(pair[0]) & _ids(pair[1])))


def _ids(result: Iterable[ScoredUtterance]) -> set[str]:
    return {utterance.id for utterance in result}


def _without_numbers(result: Iterable[ScoredUtterance]) -> tuple[ScoredUtterance, ...]:
    return tuple(replace(utterance, id=_CUT_NUMBER.sub("", utterance.id)) for utterance in result)


def _parts(line: str, where: str) -> tuple[str, str, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"{where}: expected `<id>:<tab>ref=[...]` or `<id>:<tab>hyp=[...]`, but found {_short(line)}.")
    return match["id"], match["field"], match["value"]


def _units(value: str, where: str) -> tuple[str, ...]:
    try:
        units = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as err:
        raise ValueError(f"{where}: expected a list like ['a', 'b'], but found {_short(value)}.") from err
    if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
        raise ValueError(f"{where}: expected a list of strings, but found {_short(value)}.")
    return tuple(units)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
