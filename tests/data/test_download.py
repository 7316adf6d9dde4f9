"""Downloads from a server of our own that misbehaves on demand, and archives like OpenSLR's."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stateless_transducer.cli import main
from stateless_transducer.data.corpora import openslr
from stateless_transducer.data.download import fetch
from stateless_transducer.data.unpack import unpack

CONTENT = bytes(range(256)) * 40
WAVS = {f"{split}/{speaker}/BAC009{speaker}W{n:04d}.wav": f"{speaker} {n}".encode() * 300
        for split, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")) for n in range(3)}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if server.has_ranges else 0
        server.asked.append((self.path, start))
        if server.answers:
            return self.send_error(server.answers.pop(0))
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        # then the connection is closed, whatever was promised
        self.wfile.write(content[start : start + server.at_most])

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.asked, self.answers = {}, [], []
        self.has_ranges, self.at_most = True, 1 << 30

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server():
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@contextmanager
def _no_bar(what):
    yield lambda done, total: None


def _fetch(server, path, *, md5=None, **options):
    said = []
    server.files["/x"] = CONTENT
    fetch(f"{server.url}/x", path, md5=md5, say=said.append, bar=_no_bar, wait_s=0.001, **options)
    return said


def test_file_comes_whole_and_once(server, tmp_path):
    md5 = hashlib.md5(CONTENT).hexdigest()
    _fetch(server, tmp_path / "new" / "x", md5=md5)
    assert (tmp_path / "new" / "x").read_bytes() == CONTENT
    _fetch(server, tmp_path / "new" / "x", md5=md5)
    assert server.asked == [("/x", 0)]


def test_connection_that_breaks_off_is_gone_on_with(server, tmp_path):
    server.at_most = 4000
    said = _fetch(server, tmp_path / "x", num_retries=1)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert [start for _, start in server.asked] == [0, 4000, 8000]
    assert said[0] == f"{server.url}/x: the connection broke off after 4000 of 10240 bytes; retrying in 0.001 s"


def test_part_of_an_earlier_run_is_gone_on_with(server, tmp_path):
    (tmp_path / "x.part").write_bytes(CONTENT[:5000])
    said = _fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [("/x", 5000)] and "resumes after 5000 bytes" in said[0]


def test_part_that_is_whole_is_taken(server, tmp_path):
    (tmp_path / "x.part").write_bytes(CONTENT)
    _fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_part_of_a_longer_file_is_refused(server, tmp_path):
    (tmp_path / "x.part").write_bytes(CONTENT + b"more")
    with pytest.raises(OSError, match="the server has fewer bytes than the 10244"):
        _fetch(server, tmp_path / "x")


def test_server_without_ranges_starts_over_and_says_so(server, tmp_path):
    server.has_ranges = False
    (tmp_path / "x.part").write_bytes(b"?" * 5000)
    said = _fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert "starting again from the beginning" in said[1]


def test_server_without_ranges_that_breaks_off_is_given_up(server, tmp_path):
    server.has_ranges, server.at_most = False, 4000
    with pytest.raises(OSError, match=r"broke off after 4000 of 10240 bytes. Given up after 2 retries; run"):
        _fetch(server, tmp_path / "x", num_retries=2)
    assert len(server.asked) == 4
    assert (tmp_path / "x.part").stat().st_size == 4000 and not (tmp_path / "x").exists()


def test_server_that_is_busy_is_asked_again(server, tmp_path):
    server.answers = [503, 429]
    said = _fetch(server, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert "the server answered 503 (Service Unavailable); retrying in 0.001 s" in said[0] and "0.002 s" in said[1]


def test_wrong_checksum_is_explained_and_nothing_removed(server, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"x.part is damaged, or .* its MD5 is .*, but should be beef. Remove it"):
            _fetch(server, tmp_path / "x", md5="beef")
        assert (tmp_path / "x.part").read_bytes() == CONTENT and not (tmp_path / "x").exists()


def test_file_put_there_by_hand_is_checked_and_stays(server, tmp_path):
    (tmp_path / "x").write_bytes(b"something else")
    with pytest.raises(ValueError, match="x is damaged, or the mirror serves another file"):
        _fetch(server, tmp_path / "x", md5="beef")
    assert (tmp_path / "x").read_bytes() == b"something else"


def _tar_gz(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture(scope="module")
def archives():
    """Of the structure of OpenSLR's: AISHELL's has an archive a speaker inside."""
    speakers = {}
    for name, content in WAVS.items():
        speakers.setdefault(name.split("/")[1], {})[name] = content
    aishell = {"data_aishell/transcript/aishell_transcript_v0.8.txt": "BAC009S0002W0000 今天\n".encode()}
    aishell |= {f"data_aishell/wav/{speaker}.tar.gz": _tar_gz(wavs) for speaker, wavs in speakers.items()}
    return {
        "/33/data_aishell.tgz": _tar_gz(aishell),
        "/33/resource_aishell.tgz": _tar_gz(
            {"resource_aishell/lexicon.txt": b"", "resource_aishell/speaker.info": b""}
        ),
        "/17/musan.tar.gz": _tar_gz({f"musan/{part}/x/{part}-0.wav": b"RIFF" for part in ("music", "speech", "noise")}),
    }


def _download(server, corpus, folder, *flags):
    return main(["prepare", "download", corpus, "--dl-dir", str(folder), "--mirror", server.url, *flags])


def _wavs_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.wav")}


def test_download_leaves_icefalls_layout_and_skips_the_second_time(server, archives, tmp_path, capsys):
    server.files = archives
    for corpus in ("aishell", "musan"):
        assert _download(server, corpus, tmp_path, "--checksum", "false") == 0
    data = tmp_path / "aishell" / "data_aishell"
    assert _wavs_below(data / "wav") == WAVS
    assert (data / "transcript" / "aishell_transcript_v0.8.txt").exists() and (data / ".done").exists()
    assert (tmp_path / "aishell" / "resource_aishell" / "lexicon.txt").exists()
    assert {path.name for path in (tmp_path / "musan").iterdir()} == {"music", "speech", "noise", ".done"}
    assert {path.name for path in tmp_path.iterdir() if not path.is_dir()} == {name[4:] for name in archives}
    for archive in tmp_path.glob("*gz"):
        archive.unlink()
    capsys.readouterr()
    assert _download(server, "aishell", tmp_path) == _download(server, "musan", tmp_path) == 0
    assert capsys.readouterr().out.count("already there - skipping") == 3 and len(server.asked) == 3


def test_yesno_is_unpacked_after_its_checksum_is_verified(server, tmp_path, capsys, monkeypatch):
    wavs = {f"waves_yesno/{name}.wav": b"RIFF" for name in ("0_0_0_0_1_1_1_1", "1_0_0_0_0_0_0_0")}
    packed = _tar_gz(wavs)
    server.files["/1/waves_yesno.tar.gz"] = packed
    assert _download(server, "yesno", tmp_path) == 1
    assert "its MD5 is" in capsys.readouterr().err and not (tmp_path / "waves_yesno").exists()
    (archive,) = openslr.ARCHIVES["yesno"]
    monkeypatch.setitem(openslr.ARCHIVES, "yesno", (replace(archive, md5=hashlib.md5(packed).hexdigest()),))
    for flags in (), ("--corpus",):
        assert main(["prepare", "download", *flags, "yesno", "--dl-dir", str(tmp_path), "--mirror", server.url]) == 0
        assert {f"waves_yesno/{name}" for name in _wavs_below(tmp_path / "waves_yesno")} == wavs.keys()
    # complete: only its size is asked for again
    assert server.asked == [("/1/waves_yesno.tar.gz", start) for start in (0, len(packed))]


def test_another_archive_than_the_published_one_is_refused(server, archives, tmp_path, capsys):
    server.files = archives
    assert _download(server, "musan", tmp_path) == 1
    message = "musan.tar.gz.part is damaged, or the mirror serves another file: its MD5 is "
    assert message in capsys.readouterr().err and not (tmp_path / "musan").exists()


def test_missing_file_names_the_mirror_at_once(server, tmp_path, capsys):
    assert _download(server, "aishell", tmp_path) == 1
    assert "the server answered 404 (Not Found); choose another `--mirror`." in capsys.readouterr().err
    assert len(server.asked) == 1


def _unpack(archive, folder):
    steps = []
    unpack(archive, folder, progress=lambda done, total: steps.append((done, total)))
    return steps


def test_unpacking_goes_on_where_it_stopped(archives, tmp_path):
    archive, folder = tmp_path / "a.tgz", tmp_path / "data_aishell"
    archive.write_bytes(archives["/33/data_aishell.tgz"])
    half = tmp_path / ".data_aishell.partial" / "data_aishell" / "wav" / "train" / "S0002"
    half.mkdir(parents=True)
    names = [f"BAC009S0002W{n:04d}.wav" for n in range(2)]
    whole = WAVS[f"train/S0002/{names[0]}"].swapcase()
    (half / names[0]).write_bytes(whole)
    (half / names[1]).write_bytes(b"S0002")
    steps = _unpack(archive, folder)
    assert steps[-1][0] <= steps[-1][1] == archive.stat().st_size
    # not written again, though the test has changed it
    assert _wavs_below(folder / "wav") == WAVS | {f"train/S0002/{names[0]}": whole}
    assert not (tmp_path / ".data_aishell.partial").exists()


def test_damaged_archive_is_named_and_leaves_no_folder(archives, tmp_path):
    whole = archives["/33/data_aishell.tgz"]
    flipped = whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
    for content in (whole[:-400], flipped, b"<html>404</html>", gzip.compress(b"no tar" * 200)):
        (tmp_path / "a.tgz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.tgz is damaged \(.*\); remove it and run"):
            _unpack(tmp_path / "a.tgz", tmp_path / "data_aishell")
        assert not (tmp_path / "data_aishell").exists()


@pytest.mark.parametrize("name", ["../evil", "data_aishell/../../evil", "/tmp/evil", "data_aishell/S1.tar.gz"])
def test_member_outside_the_folder_is_refused(tmp_path, name):
    nested = name.endswith(".gz")
    (tmp_path / "a.tgz").write_bytes(_tar_gz({name: _tar_gz({"../../../evil": b"!"}) if nested else b"!"}))
    with pytest.raises(ValueError, match="evil', which would lie outside .*; it is not unpacked"):
        _unpack(tmp_path / "a.tgz", tmp_path / "to" / "data_aishell")
    assert not list(tmp_path.rglob("evil"))


def test_link_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("data_aishell/wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(ValueError, match="'data_aishell/wav', which is neither file nor folder"):
        _unpack(tmp_path / "a.tgz", tmp_path / "data_aishell")


def test_archive_of_something_else_is_refused(archives, tmp_path):
    (tmp_path / "a.tgz").write_bytes(archives["/17/musan.tar.gz"])
    with pytest.raises(ValueError, match="a.tgz holds no folder data_aishell"):
        _unpack(tmp_path / "a.tgz", tmp_path / "data_aishell")
