"""Files that last: what a killed process and a full disk leave, and what may reach a terminal."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import files
from files import JsonLines, Printable, append_lines, clear_abandoned, printable, read_lines, replacing

ROOT = Path(__file__).parents[1]
# holds a temporary file open, says so, and waits to be killed
HOLDER = """
import sys
from files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_process_leaves_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    files.clear_once.cache_clear()
    dead, living = holder(tmp_path / "a.json"), holder(tmp_path / "b.json")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert len(list(tmp_path.iterdir())) == 2
    with replacing(tmp_path / "c.json") as temporary:
        temporary.write_text("whole")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2 and left[0].startswith(".b.json.") and left[1] == "c.json"
    living.communicate("")
    assert living.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "c.json"]


def test_what_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    """Some file systems refuse to sync a handle that is open for reading alone."""
    def fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        synced.append(handle)

    synced = []
    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.json").read_text() == "whole" and synced


def test_other_hidden_files_are_left_alone(tmp_path):
    for name in (".hidden", "notes.partial", ".a.json.x1y2.json"):
        (tmp_path / name).touch()
    clear_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


# ------------------------------------------------------------------------------------- JSON lines


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'\x00\x00\x00', b'{"step": 2}{"step": 3}', b"[" * 100_000, b"7",
                                  b"\xff\xfe"], ids=["half", "zeros", "glued", "deep", "number", "no text"])
def test_a_torn_line_costs_itself_alone(tmp_path, capsys, torn):
    path = tmp_path / "log.jsonl"
    append_lines(path, [{"step": 1}])
    path.write_bytes(path.read_bytes() + torn)
    append_lines(path, [{"step": 4}, {"step": 5}])
    assert [record["step"] for record in read_lines(path)] == [1, 4, 5]
    assert f"warning: line 2 of {path} is torn" in capsys.readouterr().err
    JsonLines(path, step=4)
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_no_file_holds_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


class Disk:
    """A file that takes `room` bytes."""

    def __init__(self, path, room):
        self.file, self.room = io.FileIO(path, "a+"), room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[:self.room])
        self.room -= written
        return written

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 12, 25])
def test_a_full_disk_takes_all_records_or_none(tmp_path, monkeypatch, room):
    path = tmp_path / "results.jsonl"
    append_lines(path, [{"step": 1}])
    monkeypatch.setattr(files, "open", lambda path, *_, **__: Disk(path, room), raising=False)
    with pytest.raises(OSError, match="No space left") as refused:
        append_lines(path, [{"step": 2}, {"step": 3, "more": "x"}])
    assert refused.value.filename == str(path)
    assert path.read_text() == '{"step": 1}\n'


def test_lines_wait_for_room(tmp_path, monkeypatch, capsys):
    log = JsonLines(tmp_path / "log.jsonl")
    assert log.write({"step": 1, "loss": 1 / 3})
    with monkeypatch.context() as full:
        full.setattr(files, "open", lambda path, *_, **__: Disk(path, 3), raising=False)
        assert not log.write({"step": 2}) and not log.write({"step": 3})
    assert capsys.readouterr().err.count("log.jsonl could not be written (No space left on device)") == 1
    assert log.write({"step": 4})
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_device_that_is_full(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = JsonLines(tmp_path / "log.jsonl", step=3)
    assert not log.write({"step": 4})


# ----------------------------------------------------------------------------------- safe to print


def test_control_characters_are_written_out():
    assert printable("a\x1b[2J\x07\u202eb\x9bc\n\té 日本") == "a\\x1b[2J\\x07\\u202eb\\x9bc\n\té 日本"


def test_names_cannot_steer_the_terminal_and_progress_bars_can():
    shown = io.StringIO()
    stream = Printable(shown)
    print("class \x1b]0;owned\x07 \x1b[A of it", file=stream)
    stream.write("\rbar 10%\x1b[A")
    stream.write("\x1b[A\x1b[A")
    assert shown.getvalue() == "class \\x1b]0;owned\\x07 \\x1b[A of it\n\rbar 10%\x1b[A\x1b[A\x1b[A"


@pytest.mark.parametrize("encoding, shown", [("ascii", b"K\\xe4fer \\u2026 \\udcff\n"),
                                             ("latin-1", b"K\xe4fer \\u2026 \\udcff\n"),
                                             ("utf-8", "K\u00e4fer \u2026 \\udcff\n".encode())])
def test_names_and_punctuation_on_terminals_of_other_encodings(encoding, shown):
    """A folder's name that is no UTF-8 comes as a lone surrogate, which no encoding has."""
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding, newline="\n")
    print("K\u00e4fer \u2026 \udcff", file=Printable(terminal))
    terminal.flush()
    assert written.getvalue() == shown
