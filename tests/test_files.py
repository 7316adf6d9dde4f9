from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stateless_transducer.files import check_output, filling, parse_json, printable, replacing, write_text


def test_link_stays_and_its_target_is_written(tmp_path):
    target, link = tmp_path / "disk" / "a.txt", tmp_path / "a.txt"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    target.unlink()
    write_text(link, "newer")
    assert link.is_symlink() and target.read_text() == "newer"


@pytest.mark.parametrize(
    "name", [f"{'天' * 82}.json", f"a{'天' * 81}", f"{'a' * 250}.json"], ids=["characters", "no suffix", "letters"]
)
def test_name_may_be_as_long_as_the_file_system_lets_it(tmp_path, name):
    write_text(tmp_path / name, "a")
    with filling(tmp_path / "in" / name) as folder:
        write_text(folder / "a", "a")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    assert (tmp_path / "in" / name / "a").is_file()


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """A power cut, as far as a test can have one: the order of what the system is asked for."""
    asked = []
    fsync, replace = os.fsync, os.replace

    def _fsync(descriptor):
        asked.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", _fsync)
    monkeypatch.setattr(os, "replace", lambda old, new: (asked.append("replace"), replace(old, new)))
    with replacing(tmp_path / "a.pt") as temporary:
        temporary.write_text("a")
    assert asked == [str(temporary), "replace", str(tmp_path)]


def test_nothing_stays_of_what_was_not_finished(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


_KILLED = """
import os, signal, sys
from pathlib import Path
from stateless_transducer.files import filling, replacing
with filling(Path("a", "folder")) as folder, replacing(Path("a", "file.txt")) as temporary:
    (folder / "half").touch()
    temporary.touch()
    if sys.argv[1] == "wait":
        print(flush=True)
        input()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_next_run_removes_what_a_killed_one_left_but_not_what_a_living_one_writes(tmp_path):
    (tmp_path / "a").mkdir()
    command = [sys.executable, "-c", _KILLED]
    subprocess.run([*command, "die"], cwd=tmp_path)
    killed = set((tmp_path / "a").iterdir())
    assert len(killed) == 2
    # of a process of that number on another machine
    elsewhere = tmp_path / "a" / f".file.00000000-{os.getpid()}.partial.txt"
    elsewhere.touch()
    with subprocess.Popen([*command, "wait"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        living = set((tmp_path / "a").iterdir()) - killed - {elsewhere}
        assert len(living) == 2
        write_text(tmp_path / "a" / "another.txt", "a")
        assert set((tmp_path / "a").iterdir()) == living | {elsewhere, tmp_path / "a" / "another.txt"}
        process.kill()


def test_printable_name_is_one_line_of_utf8():
    name = "天\t\n\x1b[31m\u2028" + os.fsdecode(b"\xe9")
    assert printable(name) == r"天\t\n\x1b[31m\u2028\udce9"


def test_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with replacing(tmp_path / "pipe") as temporary, temporary.open("wb") as file:
        file.write(b"old")
        # as those of torch do
        file.seek(0)
        file.write(b"new")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a.pt", "folder/../a.pt", "link.pt", "same.pt"])
def test_input_is_found_by_any_name(tmp_path, name):
    (tmp_path / "folder").mkdir()
    given = tmp_path / "a.pt"
    # neither exists
    check_output(tmp_path / "b.pt", checkpoint=given)
    given.touch()
    (tmp_path / "link.pt").symlink_to(given)
    (tmp_path / "same.pt").hardlink_to(given)
    with pytest.raises(ValueError, match=f"`output` .*{name} is the file that `lang_dir` .*a.pt names"):
        check_output(tmp_path / name, checkpoint=tmp_path / "none", lang_dir=given)


def test_json_nested_too_deeply_is_an_error_like_any_other():
    for text in ("[" * 100_000, '{"a":' * 100_000, "{", b"\xff"):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_json('{"a": [1]}') == {"a": [1]}
