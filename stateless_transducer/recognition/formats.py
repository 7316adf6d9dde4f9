"""Transcripts as files: txt, json, srt, vtt, TextGrid, tsv, ctm."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Literal

from stateless_transducer.files import printable
from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.recognition.words import word_places
from stateless_transducer.text.symbols import Vocabulary

Format = Literal["txt", "json", "srt", "vtt", "TextGrid", "tsv", "ctm"]

# of a cue: seconds, and columns, of which a Chinese character takes two
_LONGEST_CUE_S, _WIDEST_CUE = 6.0, 80
# a token is emitted while it is being said: a cue begins a little earlier, and stays a little longer
_LEAD_S, _LINGER_S = 0.2, 1.0
# where the ends of words are unknown, a word lasts at least this long
_FRAME_S = 0.04
# seconds without a word that end a cue, as they end a piece of long sound
_PAUSE_S = 0.64


@dataclass(frozen=True)
class Cue:
    """A line of subtitles; seconds from the start of the sound."""

    start: float
    end: float
    text: str


def document(
    format_: Format, name: str, transcript: Transcript, token_table: Vocabulary, *, id_: str | None = None
) -> str:
    """Content of the file for one sound.

    Args:
        format_: Format of the file.
        name: of the sound, for the formats that hold it.
        transcript: of the sound.
        token_table: the model's.
        id_: of the sound, for ctm; None: its name without folder and suffix, blanks as `_`.

    Raises:
        ValueError: see `check_words`.
    """
    match format_:
        case "txt":
            return "".join(f"{segment.text}\n" for segment in transcript.segments if segment.text)
        case "json":
            return json_line(name, transcript) + "\n"
        case "tsv":
            return TSV_HEADER + "\n" + "".join(f"{row}\n" for row in tsv_rows(name, transcript))
        case "ctm":
            id_ = "_".join(PurePath(name).stem.split()) if id_ is None else id_
            return "".join(f"{row}\n" for row in ctm_rows(id_, transcript))
        case "srt":
            return _srt(cues(transcript, token_table))
        case "vtt":
            return _vtt(cues(transcript, token_table))
        case "TextGrid":
            return _text_grid(transcript)


def json_line(name: str, transcript: Transcript, *, id_: str | None = None) -> str:
    """An object with id (if given), file, text, duration, segments and warnings."""
    head = {"file": name} if id_ is None else {"id": id_, "file": name}
    segments = [segment.known() for segment in transcript.segments]
    return json.dumps({**head, **asdict(transcript), "segments": segments}, ensure_ascii=False, allow_nan=False)


TSV_HEADER = "path\tstart\tend\ttext"


def tsv_rows(name: str, transcript: Transcript) -> list[str]:
    """A row for each segment with text, below `TSV_HEADER`."""
    said = (segment for segment in transcript.segments if segment.text)
    name = printable(name)
    return [f"{name}\t{segment.start:.3f}\t{segment.end:.3f}\t{segment.text}" for segment in said]


def ctm_rows(id_: str, transcript: Transcript) -> list[str]:
    """Kaldi's: ``<id> <channel> <start> <duration> <word> <confidence>`` for each word; the channel is always 1.

    Raises:
        ValueError: see `check_words`.
    """
    check_words(transcript)
    return [
        f"{id_} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word} {word.confidence:.5f}"
        for word in transcript.words
    ]


def check_words(transcript: Transcript) -> None:
    """Raise ValueError if a segment has tokens, but not the begins and ends of its words."""
    if any(segment.tokens and segment.confidence is None for segment in transcript.segments):
        raise ValueError("Begins and ends of words need `align=True`.")


def cues(transcript: Transcript, token_table: Vocabulary) -> list[Cue]:
    """Subtitles: segments, split at long pauses, and then at the longest ones until each part can be read."""
    subtitles = []
    for segment in transcript.segments:
        if not segment.tokens:
            continue
        # without ends, the time between two words is more than a pause
        pause_s = _PAUSE_S if segment.ends else math.inf
        parts = list(_parts(_words(segment, token_table), pause_s))
        starts = [max(segment.start, part[0].time - _LEAD_S) for part in parts[:1]]
        # between two words, a cue leads into the pause alone, and leaves the word before a frame of the encoder
        for before, part in pairwise(parts):
            starts.append(part[0].time - min(_LEAD_S, max(0.0, part[0].time - before[-1].last_time - _FRAME_S)))
        for part, start, latest in zip(parts, starts, [*starts[1:], segment.end], strict=True):
            text = _text(part, token_table)
            if text:
                subtitles.append(Cue(start, min(latest, part[-1].last_time + _LINGER_S), text))
    return subtitles


@dataclass(frozen=True)
class _Word:
    """Tokens between which a line does not break."""

    tokens: tuple[str, ...]
    time: float
    last_time: float


def _words(segment: Segment, token_table: Vocabulary) -> list[_Word]:
    starts, ends = segment.starts or segment.times, segment.ends or segment.times
    places = word_places(segment.tokens, token_table)
    return [_Word(segment.tokens[i:j], starts[i], ends[j - 1]) for i, j in places]


def _parts(words: Sequence[_Word], pause_s: float) -> Iterator[Sequence[_Word]]:
    """The words, split at long pauses, and then in two at the longest pause in the middle until each part fits."""
    for i in range(1, len(words)):
        if words[i].time - words[i - 1].last_time >= pause_s:
            yield from _parts(words[:i], pause_s)
            yield from _parts(words[i:], pause_s)
            return
    width = sum(_width(token) for word in words for token in word.tokens)
    pauses = {i: words[i].time - words[i - 1].last_time for i in range(1, len(words))}
    quarter = len(words) / 4
    places = [i for i in pauses if quarter <= i <= len(words) - quarter and pauses[i] > 0]
    if not places or (words[-1].last_time - words[0].time <= _LONGEST_CUE_S and width <= _WIDEST_CUE):
        yield words
        return
    place = max(places, key=lambda i: (pauses[i], -abs(2 * i - len(words))))
    yield from _parts(words[:place], pause_s)
    yield from _parts(words[place:], pause_s)


def _width(token: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in token)


def _text(words: Sequence[_Word], token_table: Vocabulary) -> str:
    return token_table.decode(token_table.ids[token] for word in words for token in word.tokens)


def _srt(subtitles: Sequence[Cue]) -> str:
    entries = (
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n"
        for number, cue in enumerate(subtitles, 1)
    )
    return "\n".join(entries)


def _vtt(subtitles: Sequence[Cue]) -> str:
    escaped = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    entries = (
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{cue.text.translate(escaped)}\n" for cue in subtitles
    )
    return "\n".join(["WEBVTT\n", *entries])


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _text_grid(transcript: Transcript) -> str:
    """Praat's format: tiers of segments and of tokens; tokens without begin and end are points."""
    said = [(segment.start, segment.end, segment.text) for segment in transcript.segments]
    bounds = ["xmin = 0", f"xmax = {transcript.duration:.3f}"]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", *bounds]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    lines += _tier(1, "IntervalTier", "segments", bounds, "intervals", _gapless(said, transcript.duration), _interval)
    if transcript.spans:
        spans = [(*span, token) for span, token in zip(transcript.spans, transcript.tokens, strict=True)]
        lines += _tier(
            2, "IntervalTier", "tokens", bounds, "intervals", _gapless(spans, transcript.duration), _interval
        )
        return "\n".join(lines) + "\n"
    points: dict[float, str] = {}
    for time, token in zip(transcript.times, transcript.tokens, strict=True):
        # Praat has no two points at one time
        points[time] = points.get(time, "") + token
    lines += _tier(2, "TextTier", "tokens", bounds, "points", sorted(points.items()), _point)
    return "\n".join(lines) + "\n"


def _gapless(spans: Sequence[tuple[float, float, str]], duration: float) -> list[tuple[float, float, str]]:
    """The spans, with empty intervals in the gaps; of two that overlap, the later one begins where the earlier ends."""
    intervals: list[tuple[float, float, str]] = []
    now = 0.0
    for start, end, text in spans:
        if start > now:
            intervals.append((now, start, ""))
        if end <= now and intervals:
            # Praat has no interval of length 0
            intervals[-1] = (*intervals[-1][:2], intervals[-1][2] + text)
            continue
        intervals.append((max(start, now), end, text))
        now = end
    if duration > now:
        intervals.append((now, duration, ""))
    return intervals


def _tier(
    number: int, kind: str, name: str, bounds: list[str], entry: str, items: Sequence, lines: Callable[..., list[str]]
) -> list[str]:
    head = [f'class = "{kind}"', f'name = "{name}"', *bounds, f"{entry}: size = {len(items)}"]
    rows = [f"    item [{number}]:", *(f"        {line}" for line in head)]
    for i, item in enumerate(items, 1):
        rows += [f"        {entry} [{i}]:", *(f"            {line}" for line in lines(*item))]
    return rows


def _interval(start: float, end: float, text: str) -> list[str]:
    return [f"xmin = {start:.3f}", f"xmax = {end:.3f}", f"text = {_quoted(text)}"]


def _point(time: float, mark: str) -> list[str]:
    return [f"number = {time:.3f}", f"mark = {_quoted(mark)}"]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
