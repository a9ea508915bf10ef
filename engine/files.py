"""Files that are whole or not there: written to a temporary name, synced and renamed, whenever the power goes."""
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from engine.ranks import fail


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with saving(path):
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:  # half a surrogate pair: \ud83d
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path):
    """What a JSON file of a run holds; an empty object where there is none."""
    return parsed(path.read_text(encoding="utf-8"), path) if path.is_file() else {}


def parsed(text: str, place):
    """What a JSON text says; one that is damaged ends the script with a sentence."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fail(f"{place}: not JSON ({error}); mend it or delete it")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Rows that people read, too: letters of any script as they are."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a file of JSON lines, if there is one; without a last line that its writer did not live to end."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    rows = [parsed(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1)]
    try:
        return [*rows, json.loads(lines[-1])] if lines else []
    except json.JSONDecodeError:                        # torn, or nothing after the last newline
        return rows


def read_record(run: Path) -> dict | None:
    """A run's args.json; None where there is none, or another program's file of that name."""
    try:
        record = json.loads((run / "args.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("parents"), dict) else None


def append_rows(path: Path, rows: list[dict]) -> None:
    with saving(path), open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


_locks: dict[Path, TextIO] = {}                         # what this process holds


def lock(path: Path, wait: bool = False) -> TextIO:
    """Be the only process that holds this file, until what is returned is closed or the process ends, however it does.

    An earlier lock of this process on the same file is replaced.  Raises BlockingIOError where another process holds
    it, and OSError where no such file can be made or the file system has no locks.
    """
    path = path.absolute()
    if path in _locks:
        _locks.pop(path).close()
    file = open(path, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        raise
    _locks[path] = file
    return file


def empty_directory(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a directory, outlive the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> dict | None:
    """What a manifest says of a file: its size and SHA-256; None where there is no file."""
    if not path.is_file():
        return None
    with open(path, "rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def put_in_place(temporary: Path, directory: Path) -> None:
    """Sync a directory that was written under a temporary name, and give it its own."""
    set_modes(temporary)
    for file in temporary.iterdir():
        sync(file)
    sync(temporary)
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
    sync(directory.parent)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)        # no room on the disk, in the quota, under the limit of a file


def set_modes(directory: Path) -> None:
    """Give the files the mode that the umask gave their directory: safetensors writes them for their owner alone."""
    for file in directory.iterdir():
        if file.is_file():
            file.chmod(directory.stat().st_mode & 0o666)


@contextmanager
def saving(path: Path):
    """A write that fails ends the run with one sentence and exit code 1."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, SafetensorError)) and "os error" not in str(error):      # of tokenizers
            raise
        stop_on_write_error(path, getattr(error, "strerror", None) or str(error))


def stop_on_write_error(path: Path, reason: str) -> None:
    folder = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    free = shutil.disk_usage(folder).free
    full = free < 2**20 or any(os.strerror(number) in reason for number in FULL)
    reason = "the disk is full" if free < 2**20 else f"{reason}; {free / 1e9:.1f} GB are free there" if full else reason
    print(f"error: {path} could not be written ({reason}); what was saved before is as it was: "
          f"{'make room' if full else 'mend that'}, then run the same command again, it goes on from there",
          file=sys.stderr, flush=True)
    raise SystemExit(1)
