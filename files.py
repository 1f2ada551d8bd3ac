"""Files that last: replaced whole or not at all, lines that survive a full disk, and text that is safe to print.

Imports nothing of this project.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PARTIAL = ".partial"  # ends the name of every temporary folder

# ------------------------------------------------------------------------------- whole or not at all


def lock(handle):
    """Whether this process now holds the lock of an open folder; a process that dies lets go of its locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clear_abandoned(folder):
    """Delete the temporary folders that processes which no longer live have left in `folder`."""
    for path in Path(folder).glob(f".*{PARTIAL}"):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # gone by now, or none of ours
            continue
        if lock(handle):
            shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


clear_once = cache(clear_abandoned)  # when a process first writes into a folder


def temporary_folder(path):
    """(its locked handle, a new folder beside `path`), which `clear_abandoned` leaves alone while the handle is open.

    The folder is locked and not the file: HDF5 locks the files that it writes.
    """
    while True:
        folder = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        handle = os.open(folder, os.O_RDONLY)
        # in between another process may have taken it for abandoned
        if lock(handle) and os.path.exists(folder):
            return handle, Path(folder)
        os.close(handle)


@contextmanager
def replacing(path):
    """Yield a temporary path that replaces `path` on success and vanishes on any error.

    What a killed process leaves of it is deleted by the next process that writes into the folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_once(path.parent.resolve())
    handle, folder = temporary_folder(path)
    try:
        temporary = folder / path.name
        yield temporary
        with temporary.open("r+b") as written:  # some file systems sync no handle that is open for reading alone
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


# ------------------------------------------------------------------------- what can be computed again


def cache_folder():
    """Where a user's programs keep what they can compute again: $XDG_CACHE_HOME/probegan, or ~/.cache/probegan.

    What is kept beside data would come with the data of strangers, and be believed.
    """
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "probegan"


def from_cache(path, key, compute, holds=lambda value: True):
    """The plain values that compute() gives: those kept at `path` where they are of the same `key` (text), whole, and
    holds(them) is true; else computed, and kept there.

    Where none can be written a warning says so.
    """
    def digest(value):
        return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()

    try:
        found = json.loads(Path(path).read_text())
        if found["key"] == key and found["sha256"] == digest(found["value"]) and holds(found["value"]):
            return found["value"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # never made, damaged, or something else
    value = json.loads(json.dumps(compute()))
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"key": key, "sha256": digest(value), "value": value}))
    except OSError as error:
        print(f"warning: {path} could not be written ({error.strerror}); what it should keep is computed again next "
              "time.", file=sys.stderr)
    return value


# ------------------------------------------------------------------------------------- JSON lines


def read_lines(path):
    """The JSON objects of a file of lines, in order; none where there is no file.

    A line that is no whole object, as a killed process or a full disk leaves one, is named on stderr and left out.
    """
    found, path = [], Path(path)
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text(errors="replace").split("\n"), 1):
        try:
            record = json.loads(line or "null")
        except (ValueError, RecursionError):
            record = line
        if isinstance(record, dict):
            found.append(record)
        elif line.strip():
            print(f"warning: line {number} of {path} is torn and left out.", file=sys.stderr)
    return found


def append_lines(path, records):
    """Append one JSON object a line: all of `records` or, where the disk refuses (OSError), none.

    Half a line that an earlier process left is ended first, so that no record is glued to it.
    """
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(before - 1)
            if file.read(1) != b"\n":
                text = b"\n" + text
        written = 0
        try:
            while written < len(text):
                written += file.write(text[written:])
        except OSError as error:
            if written and os.fstat(file.fileno()).st_size == before + written:  # nobody has written since
                os.ftruncate(file.fileno(), before)
            raise OSError(error.errno, error.strerror, str(path)) from error


class JsonLines:
    """A file of records, each with a 'step'; after a resume, lines past the resumed step are dropped.

    A record that the disk refuses is kept, and written before the next one.
    """

    def __init__(self, path, step=0):
        self.path, self.waiting = Path(path), []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            kept = [record for record in read_lines(self.path) if record.get("step", step + 1) <= step]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record):
        """Append `record`, rounding floats to six significant digits. Returns whether the disk took all records.

        A disk that does not is a warning: no step of a training is lost for a line of its log.
        """
        self.waiting.append({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()})
        try:
            append_lines(self.path, self.waiting)
        except OSError as error:
            if len(self.waiting) == 1:
                print(f"warning: {self.path} could not be written ({error.strerror}); its lines wait until there is "
                      "room.", file=sys.stderr)
            return False
        self.waiting.clear()
        return True


# ----------------------------------------------------------------------------------- safe to print


def printable(text):
    """`text` with each character that steers a terminal, or shows as nothing, written as Python escapes it."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class Printable:
    """A text stream in front of another one to which no name out of a file can send an escape sequence.

    What the other's encoding does not have, as of a terminal that knows ASCII alone, is written as Python escapes it.
    """

    # what progress bars move with
    OWN = re.compile("(\r|\n|(?:\x1b\\[A)+$)")

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        text = "".join(part if self.OWN.fullmatch(part) else printable(part) for part in self.OWN.split(text))
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def __getattr__(self, name):
        return getattr(self.stream, name)
