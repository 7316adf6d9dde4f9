"""A user's tables and folders: what is found in them, and that nothing wrong in them is lost or a crash."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from stateless_transducer.data.corpora.table import TableColumns, hold_out, read_folder, read_table
from stateless_transducer.data.corpora.utterance import Problem, Utterance

ROLES = {
    "id": ("id", "utt", "utt_id", "uttid", "utterance_id", "key"),
    "path": ("path", "wav", "audio", "audio_path", "audio_filepath", "file", "filename"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "split": ("split", "subset", "set", "partition"),
}
VALUES = {"id": "u1", "path": "a/b.wav", "text": "你 好", "speaker": "S1", "split": "test"}


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _read(path: Path, content: str | bytes, columns: TableColumns | None = None, **options):
    return read_table(_write(path, content), columns or TableColumns(), **options)


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        _write(folder / name, "hello" if name.lower().endswith(".txt") else b"")


def _utterances(**counts: int) -> list[Utterance]:
    """Training utterances: so many of each speaker."""
    return [
        Utterance(f"{speaker}-{i}", Path(f"{speaker}-{i}.wav"), "a", speaker, "train")
        for speaker, count in counts.items()
        for i in range(count)
    ]


def _ids(utterances: list[Utterance], split: str) -> set[str]:
    return {utterance.id for utterance in utterances if utterance.split == split}


@pytest.mark.parametrize(
    ("role", "name"), [(role, name) for role, names in ROLES.items() for name in (*names, names[0].title())]
)
def test_read_table_detects_column(tmp_path, role, name):
    names = {**{r: r for r in VALUES}, role: name}
    content = "\t".join(names[r] for r in VALUES) + "\n" + "\t".join(VALUES.values()) + "\n"
    utterances, problems = _read(tmp_path / "t.tsv", content)
    assert utterances == [Utterance("u1", tmp_path / "a/b.wav", "你 好", "S1", "test")]
    assert not problems


def test_read_table_prefers_earlier_name(tmp_path):
    utterances, _ = _read(tmp_path / "t.csv", "sentence,text,filename,path\nno,yes,no.wav,yes.wav\n")
    assert (utterances[0].text, utterances[0].path.name) == ("yes", "yes.wav")


def test_read_table_takes_columns_of_flags(tmp_path):
    columns = TableColumns("A", "B", "C", "D", "E")
    content = "A,B,C,D,E,id,path,text\nu1,a/b.wav,你 好,S1,test,no,no,no\n"
    utterances, _ = _read(tmp_path / "t.csv", content, columns)
    assert utterances == [Utterance("u1", tmp_path / "a/b.wav", "你 好", "S1", "test")]


def test_read_table_has_defaults_for_optional_columns(tmp_path):
    utterances, _ = _read(tmp_path / "t.csv", "path,text\nclips/S1/a.b.wav,hello\n")
    assert utterances == [Utterance("clips-S1-a.b", tmp_path / "clips/S1/a.b.wav", "hello", "unknown", "train")]


def test_read_table_has_defaults_for_empty_cells(tmp_path):
    utterances, _ = _read(tmp_path / "t.csv", "id,path,text,speaker,split\n,a.wav,hello,,\n")
    assert utterances == [Utterance("a", tmp_path / "a.wav", "hello", "unknown", "train")]


@pytest.mark.parametrize("lacking", ["path", "text"])
def test_read_table_names_missing_column_and_flag(tmp_path, lacking):
    names = ["path" if lacking == "text" else "text", "Größe", "x"]
    with pytest.raises(ValueError, match=rf"its columns are: {', '.join(names)}\. .* `{lacking}_column`"):
        _read(tmp_path / "t.csv", f"{','.join(names)}\n1,2,3\n")


def test_read_table_refuses_flag_for_missing_column(tmp_path):
    with pytest.raises(ValueError, match="`speaker_column` who: .* no such column; its columns are: path, text"):
        _read(tmp_path / "t.csv", "path,text\na.wav,a\n", TableColumns(speaker_column="who"))


def test_read_table_refuses_column_twice(tmp_path):
    with pytest.raises(ValueError, match="more than one column `text`; rename"):
        _read(tmp_path / "t.csv", "path,text,text\na.wav,a,b\n")


def test_read_table_reads_csv_quotes(tmp_path):
    utterances, problems = _read(tmp_path / "t.csv", 'path, text\r\na.wav, "Hello, ""you"",\n  there"\r\n')
    assert [u.text for u in utterances] == ['Hello, "you", there']
    assert not problems


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"Hello," he said', '"Hello," he said'),
        ('5" nails', '5" nails'),
        ('"a ""b"" c"', 'a "b" c'),
        ('"a" and "b"', '"a" and "b"'),
        ('"', '"'),
    ],
)
def test_read_table_keeps_quotes_of_tsv(tmp_path, cell, text):
    utterances, problems = _read(tmp_path / "t.tsv", f"path\ttext\na.wav\t{cell}\nb.wav\tnext\n")
    assert [u.text for u in utterances] == [text, "next"]
    assert not problems


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".JSONL"])
def test_read_table_tolerates_byte_order_mark_and_empty_lines(tmp_path, suffix):
    content = {".tsv": "path\ttext\n\na\tb\n\t\n", ".csv": "path,text\n\na,b\n,\n"}
    content = content.get(suffix, '\n{"path": "a", "text": "b"}\n\n')
    utterances, problems = _read(tmp_path / f"t{suffix}", b"\xef\xbb\xbf" + content.encode())
    assert [(u.path.name, u.text) for u in utterances] == [("a", "b")]
    assert not problems


def test_read_table_reads_json_with_numbers_nulls_and_other_keys(tmp_path):
    rows = [
        {"audio_filepath": "a.wav", "text": "one\u2028line", "duration": 1.5, "words": [["one", 0.1]]},
        {"audio_filepath": "b.wav", "text": 123, "speaker": 7, "split": None},
    ]
    utterances, problems = _read(tmp_path / "t.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    assert [(u.text, u.speaker, u.split) for u in utterances] == [
        ("one line", "unknown", "train"),
        ("123", "7", "train"),
    ]
    assert not problems


@pytest.mark.parametrize(
    ("written", "split"),
    [
        ("train", "train"),
        ("TRAIN", "train"),
        ("training", "train"),
        ("valid", "dev"),
        ("validation", "dev"),
        ("val", "dev"),
        ("Dev", "dev"),
        ("testing", "test"),
        ("test_clean", "test_clean"),
        ("Eval2000", "Eval2000"),
    ],
)
def test_read_table_maps_split(tmp_path, written, split):
    utterances, _ = _read(tmp_path / "t.csv", f"path,text,split\na.wav,a,{written}\n")
    assert utterances[0].split == split


def test_read_table_takes_audio_dir(tmp_path):
    (tmp_path / "clips").mkdir()
    content = "path,text\na.wav,a\n/b/c.wav,b\n"
    utterances, _ = _read(tmp_path / "lists" / "t.csv", content, audio_dir=tmp_path / "clips")
    assert [(u.id, u.path) for u in utterances] == [("a", tmp_path / "clips/a.wav"), ("b-c", Path("/b/c.wav"))]


def test_read_table_refuses_missing_audio_dir(tmp_path):
    with pytest.raises(ValueError, match="`audio_dir` .*nowhere: no such folder"):
        _read(tmp_path / "t.csv", "path,text\na.wav,a\n", audio_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", "x", r"must be \.tsv, \.csv, \.jsonl or \.json"),
        ("t.csv", "", r"t\.csv: is empty \(0 bytes\)"),
        ("t.csv", "\n", "no header: the file is empty"),
        ("t.csv", "path,text\n", "holds no row of data"),
        ("t.tsv", "path\ttext\n\n", "holds no row of data"),
        ("t.jsonl", "\n", "holds no row of data"),
        ("t.csv", "path,text\na.wav,a\n".encode("utf-16"), "save it as UTF-8"),
        ("t.csv", '"path,text\na.wav,a\n', "no header: unexpected end of data"),
        ("t.csv", "path;text\na.wav;a\n", "its columns are: path;text"),
    ],
)
def test_read_table_refuses_what_is_no_table(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path / name, content)


@pytest.mark.parametrize(
    ("name", "row", "detail"),
    [
        ("t.csv", "b.wav", "1 fields, but the header has 3"),
        ("t.csv", "b.wav,b,train,x", "4 fields, but the header has 3"),
        ("t.tsv", "b.wav\tb", "2 fields, but the header has 3"),
        ("t.csv", 'b.wav,"b" c,train', "',' expected after '\"'"),
        ("t.csv", f"b.wav,{'b' * 140_000},train", "field larger than field limit (131072)"),
        ("t.csv", ",b,train", "'' cannot be the name of a sound file"),
        ("t.csv", f"{'好' * 90}.wav,b,train", f"'{'好' * 80}' cannot be the name of a sound file"),
        ("t.csv", '"b\nb.wav",b,train', r"'b\nb.wav' cannot be the name of a sound file"),
        ("t.csv", "b.wav,b,../up", "split '../up': only letters, digits and `_.-` can be part of a file's name"),
        ("t.csv", "b.wav,好,train".encode("gb18030"), "`text` is not UTF-8"),
        ("t.csv", b"\xff.wav,b,train", "`path` is not UTF-8"),
        ("t.csv", b"b.wav,b\0b,train", "`text` is not UTF-8"),
        ("t.jsonl", '{"path": "b.wav", ', "not JSON: Expecting property name"),
        ("t.jsonl", "[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ("t.jsonl", '["b.wav", "b"]', "not a JSON object"),
        ("t.jsonl", '"b.wav"', "not a JSON object"),
        ("t.jsonl", '{"path": ["b.wav"], "text": "b"}', "`path` is neither text nor a number"),
        ("t.jsonl", '{"path": "b.wav", "text": true}', "`text` is neither text nor a number"),
        ("t.jsonl", '{"path": "b.wav", "text": "\\ud800"}', "`text` is not UTF-8"),
        ("t.jsonl", '{"text": "b"}', "'' cannot be the name of a sound file"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_read_table_reports_bad_row(tmp_path, name, row, detail):
    good = {
        "t.csv": "path,text,split\n{0}.wav,{0},train\n",
        "t.tsv": "path\ttext\tsplit\n{0}.wav\t{0}\ttrain\n",
        "t.jsonl": '\n{{"path": "{0}.wav", "text": "{0}"}}\n',
    }[name]
    row = row if isinstance(row, bytes) else row.encode()
    last = good.format("c").splitlines()[1].encode()
    utterances, problems = _read(tmp_path / name, good.format("a").encode() + row + b"\n" + last)
    assert [u.id for u in utterances] == ["a", "c"]
    assert [(p.kind, p.id) for p in problems] == [("bad row", "line 3")]
    assert problems[0].detail.startswith(detail)


def test_read_table_reports_each_line_of_open_quote(tmp_path):
    _, problems = _read(tmp_path / "t.csv", 'path,text\na.wav,a\nb.wav,"b\nc.wav,c\nd.wav,d\n')
    assert [p.id for p in problems] == ["line 3", "line 4", "line 5"]
    assert "quote opened on line 3" in problems[-1].detail


def test_read_table_reports_all_rows_bad(tmp_path):
    utterances, problems = _read(tmp_path / "t.jsonl", "path text\na.wav b\n")
    assert not utterances
    assert len(problems) == 2


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_read_table_reports_duplicate_id(tmp_path, suffix):
    rows = [("id", "path", "text"), ("u1", "a.wav", "a"), ("u1", "b.wav", "b"), ("u2", "c.wav", "c")]
    # a row without a text neither hides nor takes the place of another
    rows += [("u3", "d.wav", ""), ("u3", "e.wav", "e"), ("u1", "f.wav", "")]
    content = "".join(("," if suffix == ".csv" else "\t").join(row) + "\n" for row in rows)
    utterances, problems = _read(tmp_path / f"t{suffix}", content)
    assert [u.path.name for u in utterances] == ["a.wav", "c.wav", "e.wav"]
    assert problems == [
        Problem("duplicate id", "u1", "line 3, first on line 2"),
        Problem("empty text", "u3", "line 5"),
        Problem("empty text", "u1", "line 7"),
    ]


def test_read_table_reports_duplicate_id_made_of_paths(tmp_path):
    _, problems = _read(tmp_path / "t.csv", "path,text\na/b.wav,x\na-b.flac,y\n")
    assert problems == [Problem("duplicate id", "a-b", "line 3, first on line 2")]


@pytest.mark.parametrize(
    ("header", "cells", "part", "id_"),
    [
        ("offset,duration", "1.5,0.25", (1.5, 0.25), "talk-0001500-0001750"),
        ("start,end", "1.5,1.75", (1.5, 0.25), "talk-0001500-0001750"),
        ("begin,stop,dur", "1.5,1.8,0.25", (1.5, 0.25), "talk-0001500-0001750"),
        ("start,end", "1.5,", (1.5, math.inf), "talk-0001500"),
        ("start,end", ",1.75", (0.0, 1.75), "talk-0000000-0001750"),
        ("start,end", ",", (0.0, math.inf), "talk"),
        # of a whole file it is said for information, in whatever unit
        ("duration,end", "00:03,?", (0.0, math.inf), "talk"),
    ],
)
def test_read_table_reads_parts_of_files(tmp_path, header, cells, part, id_):
    utterances, problems = _read(tmp_path / "t.csv", f"path,text,{header}\ntalk.wav,a,{cells}\n")
    assert not problems
    (utterance,) = utterances
    assert (utterance.start_s, utterance.duration_s) == part
    assert utterance.id == id_


def test_read_table_takes_columns_of_parts_of_flags(tmp_path):
    columns = TableColumns(start_column="from", duration_column="lasts")
    table = "path,text,from,lasts,start\ntalk.wav,a,2,3,soon\n"
    utterances, _ = _read(tmp_path / "t.csv", table, columns)
    assert (utterances[0].start_s, utterances[0].duration_s) == (2.0, 3.0)
    with pytest.raises(ValueError, match="`end_column` till needs a column of starts \\(`start_column`\\)"):
        _read(tmp_path / "t.csv", "path,text,till\ntalk.wav,a,2\n", TableColumns(end_column="till"))


def test_read_table_refuses_bounds_that_contradict_one_another(tmp_path):
    _, (problem,) = _read(tmp_path / "t.csv", "path,text,start,end,duration\na.wav,a,1.5,9,0.25\n")
    assert problem.detail == "begins at 1.5 s and is 0.25 s long, but ends at 9 s"
    table = "path,text,offset,start\na.wav,a,1.5,2\n"
    with pytest.raises(ValueError, match="several columns may be the start: start, offset. Rename all but one"):
        _read(tmp_path / "t.csv", table)
    utterances, _ = _read(tmp_path / "t.csv", table, TableColumns(start_column="offset"))
    assert utterances[0].start_s == 1.5


def test_read_table_without_texts_counts_each_bound(tmp_path):
    rows = '{"audio_filepath": "a.wav", "duration": 2}\n{"id": 7, "audio_filepath": "a.wav", "end": 2.5}\n'
    utterances, problems = _read(tmp_path / "t.json", rows, wants_text=False)
    assert not problems and [u.id for u in utterances] == ["a-0000000-0002000", "7"]
    assert [(u.start_s, u.duration_s) for u in utterances] == [(0.0, 2.0), (0.0, 2.5)]
    with pytest.raises(ValueError, match="no column called path, .*; its columns are: sound.$"):
        _read(tmp_path / "t.json", '{"sound": "a.wav"}\n', wants_text=False)


@pytest.mark.parametrize(
    ("cells", "detail"),
    [
        ("a,1", "`offset` is 'a', not a number of seconds"),
        ("0,1 s", "`duration` is '1 s', not a number of seconds"),
        ("-1,1", "begins at -1 s and is 1 s long"),
        ("1,0", "begins at 1 s and is 0 s long"),
        ("1,nan", "begins at 1 s and is nan s long"),
        ("inf,1", "begins at inf s and is 1 s long"),
    ],
)
def test_read_table_reports_parts_that_cannot_be(tmp_path, cells, detail):
    utterances, problems = _read(tmp_path / "t.csv", f"path,text,offset,duration\na.wav,a,0,1\nb.wav,b,{cells}\n")
    assert [u.id for u in utterances] == ["a-0000000-0001000"]
    assert [(p.kind, p.id, p.detail) for p in problems] == [("bad row", "line 3", detail)]


def test_read_folder_pairs_files_of_same_name(tmp_path):
    _touch(tmp_path, "train/S1/a.wav", "train/S1/a.txt", "test/b.MP3", "test/b.TXT", "S2/c.d.opus", "S2/c.d.txt")
    _touch(
        tmp_path, "Validation/S3/e.m4a", "Validation/S3/e.txt", "f.flac", "f.txt", "S2/train/g.ogg", "S2/train/g.txt"
    )
    utterances, problems = read_folder(tmp_path)
    found = {u.id: (str(u.path.relative_to(tmp_path)), u.speaker, u.split) for u in utterances}
    assert found == {
        "train-S1-a": ("train/S1/a.wav", "S1", "train"),
        "test-b": ("test/b.MP3", "test", "test"),
        "S2-c.d": ("S2/c.d.opus", "S2", "train"),
        "Validation-S3-e": ("Validation/S3/e.m4a", "S3", "dev"),
        "f": ("f.flac", tmp_path.name, "train"),
        "S2-train-g": ("S2/train/g.ogg", "train", "train"),
    }
    assert not problems


def test_read_folder_reads_text_as_one_line(tmp_path):
    _touch(tmp_path, "a.wav")
    _write(tmp_path / "a.txt", b"\xef\xbb\xbf \xe4\xbd\xa0\xe5\xa5\xbd\r\n  all\n")
    assert read_folder(tmp_path)[0][0].text == "你好 all"


def test_read_folder_reports_what_has_no_partner(tmp_path):
    _touch(tmp_path, "S1/a.wav", "S1/a.txt", "S1/b.wav", "S2/c.txt")
    utterances, problems = read_folder(tmp_path)
    assert [u.id for u in utterances] == ["S1-a"]
    assert problems == [
        Problem("audio without text", "S1-b", str(tmp_path / "S1/b.wav")),
        Problem("text without audio", "S2-c", str(tmp_path / "S2/c.txt")),
    ]


def test_read_folder_reports_two_sounds_of_one_text(tmp_path):
    _touch(tmp_path, "a.mp3", "a.wav", "a.txt")
    utterances, problems = read_folder(tmp_path)
    assert [u.path.name for u in utterances] == ["a.mp3"]
    assert problems == [Problem("duplicate id", "a", f"{tmp_path / 'a.wav'}, first {tmp_path / 'a.mp3'}")]


def test_read_folder_reports_text_that_is_not_utf8(tmp_path):
    _touch(tmp_path, "a.wav", "b.wav", "b.txt")
    _write(tmp_path / "a.txt", "你好".encode("gb18030"))
    utterances, problems = read_folder(tmp_path)
    assert [u.id for u in utterances] == ["b"]
    assert [(p.kind, p.id) for p in problems] == [("bad row", "a")]
    assert "cannot be read as UTF-8 text" in problems[0].detail


def test_pipes_are_named_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.tsv")
    with pytest.raises(ValueError, match=r"t\.tsv: is a pipe or a device"):
        read_table(tmp_path / "t.tsv", TableColumns())
    (tmp_path / "a.wav").touch()
    os.mkfifo(tmp_path / "a.txt")
    utterances, problems = read_folder(tmp_path)
    assert not utterances and problems[0].kind == "bad row" and "a.txt: is a pipe or a device" in problems[0].detail


def test_read_folder_reports_name_that_is_not_utf8(tmp_path):
    for name in (b"\xc4\xe3.wav", b"\xc4\xe3.txt"):
        try:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
        except OSError:
            pytest.skip("this file system wants UTF-8")
    utterances, problems = read_folder(tmp_path)
    assert not utterances
    # the table of problems is UTF-8
    assert [(p.kind, p.id.encode()) for p in problems] == [("bad row", rb"\udcc4\udce3")]


def test_read_folder_leaves_out_hidden_and_other_files(tmp_path):
    _touch(tmp_path, "a.wav", "a.txt", "._a.wav", "._a.txt", ".git/b.wav", "a.lab", "cover.jpg")
    utterances, problems = read_folder(tmp_path)
    assert [u.id for u in utterances] == ["a"]
    assert not problems


def test_read_folder_follows_links_but_not_in_circles(tmp_path):
    _touch(tmp_path / "elsewhere", "a.wav", "a.txt")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "data")
    utterances, problems = read_folder(tmp_path / "data")
    assert [(u.id, u.speaker, u.split) for u in utterances] == [("dev-a", "dev", "dev")]
    assert not problems


def test_read_folder_refuses_folder_without_data(tmp_path):
    _touch(tmp_path, "metadata.csv")
    with pytest.raises(ValueError, match="neither sound files nor .txt files; if there is a table, name its file"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_folder(tmp_path / "nowhere")


def test_hold_out_moves_share_of_one_speaker():
    utterances = _utterances(S1=50)
    placed, said = hold_out(utterances, 0.1)
    assert len(_ids(placed, "dev")) == 5
    assert [u.id for u in placed] == [u.id for u in utterances]
    assert said == "`--dev-share` 0.1: 5 of 50 training utterances (one speaker's) are now dev."


def test_hold_out_moves_whole_speakers():
    placed, said = hold_out(_utterances(S1=10, S2=10, S3=10, S4=10, S5=10), 0.25)
    dev = {u.speaker for u in placed if u.split == "dev"}
    assert len(dev) == 1
    assert len(_ids(placed, "dev")) == 10
    assert said == "`--dev-share` 0.25: 10 of 50 training utterances (1 of 5 speakers) are now dev."


def test_hold_out_moves_smallest_speaker_if_none_fits():
    placed, _ = hold_out(_utterances(S1=20, S2=10), 0.1)
    assert {u.speaker for u in placed if u.split == "dev"} == {"S2"}


def test_hold_out_says_that_the_share_is_missed_and_the_way_out():
    said = hold_out(_utterances(S1=13, S2=13, S3=14), 0.05)[1]
    assert said == (
        "`--dev-share` 0.05: 13 of 40 training utterances (1 of 3 speakers) are now dev, not about 2, since speakers "
        "move as a whole; to hold out other utterances, give each its split in a table: a column `split` of `train` "
        "and `dev`."
    )
    # only the one with a single utterance fits in
    assert " are now dev, not about 10, since " in hold_out(_utterances(S1=50, S2=49, S3=1), 0.1)[1]


def test_hold_out_is_the_same_for_any_order():
    utterances = _utterances(**{f"S{i}": 1 + i % 3 for i in range(20)})
    assert _ids(hold_out(utterances, 0.2)[0], "dev") == _ids(hold_out(utterances[::-1], 0.2)[0], "dev")


def test_hold_out_is_the_same_on_every_machine():
    # a golden answer: Python's own hash() would differ from process to process
    assert _ids(hold_out(_utterances(S1=20), 0.1)[0], "dev") == {"S1-8", "S1-15"}


def test_hold_out_leaves_test_alone():
    test = [Utterance("t", Path("t.wav"), "a", "S1", "test")]
    placed, _ = hold_out(test + _utterances(S1=2), 0.5)
    assert placed[0] == test[0]
    assert len(_ids(placed, "dev")) == 1


@pytest.mark.parametrize(
    ("utterances", "why"),
    [
        ([*_utterances(S1=9), Utterance("d", Path("d.wav"), "a", "S1", "dev")], "there is a split dev"),
        (_utterances(S1=1), "there are too few training utterances"),
        ([], "there are too few training utterances"),
    ],
    ids=["dev", "one", "none"],
)
def test_hold_out_says_that_it_is_ignored(utterances, why):
    assert hold_out(utterances, 0.5) == (utterances, f"`--dev-share` 0.5 is ignored: {why}.")
