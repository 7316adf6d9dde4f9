from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from stateless_transducer.recognition.formats import cues, document
from stateless_transducer.recognition.transcript import Alternative, Segment, Transcript
from stateless_transducer.recognition.words import timed_words
from stateless_transducer.text.tokens import build_token_table

CHARACTERS = build_token_table(["今天气很好"], "char")
LETTERS = build_token_table(["it is so"], "char", keep_spaces=True)
WORDS = build_token_table(["it is <so> &"], "word")


def _segment(table, start, end, timed):
    """Of tokens with their times."""
    tokens, times = zip(*timed, strict=True) if timed else ((), ())
    text = table.decode(table.ids[token] for token in tokens)
    return Segment(start, end, text, tokens, times, (-0.5,) * len(tokens))


def _transcript(table, duration, *segments, warnings=()):
    return Transcript(table.join(segment.text for segment in segments), duration, segments, warnings)


TWO = _transcript(
    CHARACTERS,
    3725.5,
    _segment(CHARACTERS, 0.5, 2.0, [("今", 0.8), ("天", 1.0)]),
    _segment(CHARACTERS, 5.0, 6.0, []),
    _segment(CHARACTERS, 3723.0, 3725.5, [("很", 3724.0), ("好", 3724.0)]),
    warnings=("a.wav: clipped: 3.0 % of its samples are at full scale.",),
)


def test_txt_has_a_line_a_segment():
    assert document("txt", "a.wav", TWO, CHARACTERS) == "今天\n很好\n"


def test_json_holds_everything():
    found = json.loads(document("json", "a.wav", TWO, CHARACTERS))
    assert list(found) == ["file", "text", "duration", "segments", "warnings"]
    assert (found["file"], found["text"], found["duration"]) == ("a.wav", "今天很好", 3725.5)
    assert found["segments"][0] == {
        "start": 0.5,
        "end": 2.0,
        "text": "今天",
        "tokens": ["今", "天"],
        "times": [0.8, 1.0],
        "log_probs": [-0.5, -0.5],
    }
    assert len(found["segments"]) == 3 and "clipped" in found["warnings"][0]


def _detailed(segment, spans, **details):
    starts, ends = zip(*spans, strict=True)
    return replace(segment, starts=starts, ends=ends, confidences=(0.9,) * len(spans), confidence=0.8, **details)


DETAILED = replace(
    TWO,
    segments=(
        _detailed(TWO.segments[0], [(0.7, 0.95), (0.95, 1.3)], alternatives=(Alternative("今天天", -3.5),)),
        TWO.segments[1],
        _detailed(TWO.segments[2], [(3723.9, 3724.2), (3724.1, 3724.2)]),
    ),
)


def test_json_holds_the_details_that_were_asked_for():
    found = json.loads(document("json", "a.wav", DETAILED, CHARACTERS))["segments"][0]
    assert (found["starts"], found["ends"]) == ([0.7, 0.95], [0.95, 1.3])
    assert (found["confidences"], found["confidence"]) == ([0.9, 0.9], 0.8)
    assert found["alternatives"] == [{"text": "今天天", "score": -3.5}]


def test_text_grid_has_intervals_of_tokens_whose_ends_are_known():
    text = document("TextGrid", "a.wav", DETAILED, CHARACTERS)
    assert text.count('class = "IntervalTier"') == 2 and "TextTier" not in text
    tier = text[text.index('name = "tokens"') :]
    found = re.findall(r'xmin = ([\d.]+)\s+xmax = ([\d.]+)\s+text = "(.*)"', tier)
    assert found == [
        ("0.000", "0.700", ""),
        ("0.700", "0.950", "今"),
        ("0.950", "1.300", "天"),
        ("1.300", "3723.900", ""),
        # said at once: one interval
        ("3723.900", "3724.200", "很好"),
        ("3724.200", "3725.500", ""),
    ]


def test_cues_end_after_the_last_token_ends():
    (first, _) = cues(DETAILED, CHARACTERS)
    assert (first.start, first.end) == (0.5, 2.0)


def _with_words(table, segment):
    """As a recognizer gives it, tokens lasting 0.1 s."""
    count = len(segment.tokens)
    ends, confidences = tuple(time + 0.1 for time in segment.times), tuple(0.9 - 0.1 * i for i in range(count))
    known = replace(segment, starts=segment.times, ends=ends, confidences=confidences, confidence=0.8)
    return replace(known, words=timed_words(known, table))


@pytest.mark.parametrize(
    ("table", "tokens", "words"),
    [
        (CHARACTERS, "今天", [("今", 1.0, 1.1, 0.9), ("天", 2.0, 2.1, 0.8)]),
        (LETTERS, "▁it▁▁so▁", [("it", 2.0, 3.1, 0.8 * 0.7), ("so", 6.0, 7.1, 0.4 * 0.3)]),
        (WORDS, ["it", "<so>"], [("it", 1.0, 1.1, 0.9), ("<so>", 2.0, 2.1, 0.8)]),
        (CHARACTERS, "", []),
    ],
    ids=["characters", "letters", "words", "silence"],
)
def test_words_have_begins_ends_and_confidences(table, tokens, words):
    segment = _with_words(table, _segment(table, 0.0, 9.0, [(token, 1.0 + i) for i, token in enumerate(tokens)]))
    transcript = _transcript(table, 9.0, segment)
    assert [each.word for each in transcript.words] == [word for word, *_ in words]
    for found, (_, *numbers) in zip(transcript.words, words, strict=True):
        assert [found.start, found.end, found.confidence] == pytest.approx(numbers)
    (known,) = json.loads(document("json", "a.wav", transcript, table))["segments"]
    assert known.get("words", []) == [asdict(each) for each in transcript.words]
    rows = [f"my_a 1 {a:.3f} {b - a:.3f} {word} {confidence:.5f}\n" for word, a, b, confidence in words]
    assert document("ctm", "in/my a.wav", transcript, table) == "".join(rows)


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_no_two_entries_of_any_format_overlap_and_each_lasts_a_frame(seed, is_aligned):
    """Words that follow one another closely, so that cues break between words without a pause."""
    random, segments, now = np.random.default_rng(seed), [], 0.0
    for _ in range(3):
        spans = []
        start = now
        for _ in range(int(random.integers(1, 120))):
            now = round(now + random.choice([0.0, 0.01, 0.04, 0.3, 1.0]) + (0.0 if is_aligned else 0.04), 3)
            spans.append((now, round(now + 0.04, 3)))
            now = spans[-1][1] if is_aligned else now
        now = round(now + 0.1, 3)
        tokens = random.choice(list("今天气很好"), len(spans)).tolist()
        segment = _segment(CHARACTERS, start, now, [(token, a) for token, (a, _) in zip(tokens, spans, strict=True)])
        if is_aligned:
            segment = _detailed(segment, spans)
            segment = replace(segment, words=timed_words(segment, CHARACTERS))
        segments.append(segment)
    transcript = _transcript(CHARACTERS, now, *segments)

    def check(intervals):
        borders = [border for interval in intervals for border in interval]
        assert borders == sorted(borders) and len(borders) > 1
        assert min(end - start for start, end in intervals) > 0.0399

    check([(cue.start, cue.end) for cue in cues(transcript, CHARACTERS)])
    check([(segment.start, segment.end) for segment in transcript.segments])
    if is_aligned:
        check([(word.start, word.end) for word in transcript.words])
        rows = [row.split() for row in document("ctm", "a", transcript, CHARACTERS).splitlines()]
        starts, ends = [float(row[2]) for row in rows], [float(row[2]) + float(row[3]) for row in rows]
        assert all(end <= start + 1e-6 for end, start in zip(ends[:-1], starts[1:], strict=True))
        text = document("TextGrid", "a.wav", transcript, CHARACTERS)
        tier = text[text.index('name = "tokens"') :]
        found = re.findall(r'xmin = ([\d.]+)\s+xmax = ([\d.]+)\s+text = ".', tier)
        assert "".join(re.findall(r'text = "(.*)"', tier)) == transcript.text
        assert len(re.findall(r'text = "."', tier)) == len(transcript.tokens) and found


def test_a_cue_does_not_lead_into_the_word_before():
    """Two words too wide for one cue, the second one right after the first."""
    long = build_token_table([45 * "a" + " " + 45 * "b"], "word")
    segment = _detailed(_segment(long, 1.0, 2.0, [(45 * "a", 1.0), (45 * "b", 1.05)]), [(1.0, 1.04), (1.05, 1.5)])
    first, second = cues(_transcript(long, 2.0, segment), long)
    assert (first.start, first.end, second.start) == (1.0, 1.05, 1.05)


def test_ctm_needs_begins_and_ends():
    with pytest.raises(ValueError, match="Begins and ends of words need `align=True`"):
        document("ctm", "a.wav", TWO, CHARACTERS)


def test_json_has_null_for_what_is_no_number():
    lost = replace(TWO.segments[0], log_probs=(float("nan"), -float("inf")), confidence=float("nan"))
    lost = replace(lost, alternatives=(Alternative("今", float("nan")),))

    def refuse(constant):
        raise AssertionError(constant)

    text = document("json", "a.wav", replace(TWO, segments=(lost,)), CHARACTERS)
    (found,) = json.loads(text, parse_constant=refuse)["segments"]
    assert found["log_probs"] == [None, None] and found["confidence"] is None
    assert found["alternatives"] == [{"text": "今", "score": None}]


def test_tsv_has_a_row_for_what_was_said():
    assert document("tsv", "a.wav", TWO, CHARACTERS) == (
        "path\tstart\tend\ttext\na.wav\t0.500\t2.000\t今天\na.wav\t3723.000\t3725.500\t很好\n"
    )


def test_srt_is_as_players_want_it():
    assert document("srt", "a.wav", TWO, CHARACTERS) == (
        "1\n00:00:00,600 --> 00:00:02,000\n今天\n\n2\n01:02:03,800 --> 01:02:05,000\n很好\n"
    )


def test_vtt_has_its_head_and_escapes():
    timed = [("it", 0.1), ("is", 0.3), ("<so>", 0.5), ("&", 0.7)]
    transcript = _transcript(WORDS, 2.0, _segment(WORDS, 0.0, 2.0, timed))
    assert document("vtt", "a.wav", transcript, WORDS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.700\nit is &lt;so&gt; &amp;\n"
    )


@pytest.mark.parametrize("wanted", ["txt", "srt", "vtt", "TextGrid", "tsv", "json", "ctm"])
def test_silence_has_a_document_too(wanted):
    text = document(wanted, "a.wav", Transcript("", 12.0, ()), CHARACTERS)
    assert "今" not in text and "-->" not in text


def test_text_grid_has_intervals_without_gaps_and_points_that_rise():
    text = document("TextGrid", 'a".wav', TWO, CHARACTERS)
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 3725.500\n')
    segments, tokens = text.split("    item [2]:")
    # the first two pairs are the grid's and the tier's own
    edges = [float(edge) for edge in re.findall(r"xm(?:in|ax) = ([\d.]+)", segments)][4:]
    assert edges[0] == 0 and edges[-1] == 3725.5
    assert edges[1:-1:2] == edges[2:-1:2] and all(a < b for a, b in zip(edges[::2], edges[1::2], strict=True))
    assert re.findall(r'text = "(.*)"', segments) == ["", "今天", "", "", "", "很好"]
    assert "intervals: size = 6" in segments and "points: size = 3" in tokens
    # two tokens of one frame are one point
    assert re.findall(r'number = ([\d.]+)\n +mark = "(.*)"', tokens) == [
        ("0.800", "今"),
        ("1.000", "天"),
        ("3724.000", "很好"),
    ]


def test_text_grid_doubles_quotes():
    table = build_token_table(['a"b'], "char")
    transcript = _transcript(table, 1.0, _segment(table, 0.0, 1.0, [("a", 0.1), ('"', 0.2)]))
    assert 'text = "a"""' in document("TextGrid", "a.wav", transcript, table)


def test_long_segment_becomes_cues_cut_at_its_pauses():
    timed = [("今天气很好"[i % 5], 0.4 * i + (2.0 if i >= 12 else 0.0)) for i in range(30)]
    transcript = _transcript(CHARACTERS, 16.0, _segment(CHARACTERS, 0.0, 16.0, timed))
    found = cues(transcript, CHARACTERS)
    assert "".join(cue.text for cue in found) == transcript.text and len(found) == 3
    # the pause lies before the thirteenth token
    assert sum(len(cue.text) for cue in found[:1]) == 12
    assert found[0].end == pytest.approx(4.4 + 1.0) and found[1].start == pytest.approx(6.8 - 0.2)
    assert all(a.start < a.end <= b.start for a, b in zip(found, found[1:], strict=False))


def test_long_pause_ends_a_cue_that_is_short():
    timed = [("今", 0.2), ("天", 0.4), ("很", 1.2), ("好", 1.4)]
    segment = _segment(CHARACTERS, 0.0, 2.0, timed)
    found = {}
    for pause_s in (0.63, 0.64):
        spans = [(0.2, 0.4), (0.4, 0.5), (0.5 + pause_s, 1.3), (1.3, 1.6)]
        found[pause_s] = cues(_transcript(CHARACTERS, 2.0, _detailed(segment, spans)), CHARACTERS)
    assert [cue.text for cue in found[0.63]] == ["今天很好"]
    assert [(cue.start, cue.text) for cue in found[0.64]] == [(0.0, "今天"), (pytest.approx(0.94), "很好")]
    # without ends, nobody knows where a word's own time ends and a pause begins
    assert len(cues(_transcript(CHARACTERS, 2.0, segment), CHARACTERS)) == 1


def test_cues_do_not_break_words_of_letters():
    timed = [(token, 0.3 * i) for i, token in enumerate("it▁is▁so▁" * 8)]
    found = cues(_transcript(LETTERS, 30.0, _segment(LETTERS, 0.0, 30.0, timed)), LETTERS)
    assert len(found) > 2
    assert " ".join(cue.text for cue in found) == "it is so " * 7 + "it is so"
