"""Who writes where: a lock on what a command owns, and temporary names that no other process uses.

A lock is a small JSON file with host, process and time. It outlives a killed process; on the same host that is seen,
and the lock is taken over.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vidalign.errors import UsageError

LOCK = ".owner.json"
TAG = re.compile(r"(?P<pid>\d+)-(?P<started>\d+)@(?P<host>[^/]+)")
IDLE = 3600.0
"""Seconds without a write after which a draft of another host, whose processes cannot be seen, counts as left over."""


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for another one with the same number."""

    host: str
    pid: int
    started: str
    """Clock ticks from boot to its start; 0 where the system does not say."""

    @classmethod
    def current(cls) -> Process:
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or "0")

    @property
    def tag(self) -> str:
        """The process as a part of a file name."""
        return f"{self.pid}-{self.started}@{self.host}"

    def has_ended(self) -> bool:
        """Whether it is known to be gone; False for those of other hosts."""
        return self.host == socket.gethostname() and _started(self.pid) != self.started


@contextmanager
def owned(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """No other command writes to `folder` within this context; the first process of a command holds the lock.

    lock: name of the file; another one owns a single file or cell in the folder. Raises `UsageError` naming the owner.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    created = not folder.exists()
    if not created and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", where=str(folder), fix="name another one")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / lock
    entry = _entry()
    while not _create(file, entry):
        _remove_stale(file)
    try:
        yield
    finally:
        with suppress(OSError):
            if file.read_text(encoding="utf-8") == entry:
                file.unlink()
            if created:
                folder.rmdir()  # fails, as it should, when something was written


def refuse_owned(folder: Path) -> None:
    """Raise `UsageError` when a command that is still alive owns `folder`; for a parent that owns nothing itself."""
    if (folder / LOCK).is_file():
        with owned(folder):
            pass


def beside(path: Path, *, sweep: bool = True) -> Path:
    """A temporary name for `path` that is this process' own; the files and folders of killed processes are removed
    first.

    sweep: False where the folder holds so many files that listing it for each of them is slow.
    """
    if sweep:
        for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
            if is_left_over(left):
                _remove(left)
    return path.with_name(f"{path.name}.{Process.current().tag}.partial")


@contextmanager
def replacing(path: Path, *, sweep: bool = True) -> Iterator[Path]:
    """The name of a file or folder to write, which takes the place of `path` at the end, so that nothing half-written
    has the final name. What was written is removed when anything fails inside. For `sweep` see `beside`."""
    partial = beside(path, sweep=sweep)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_left_over(draft: Path) -> bool:
    """Whether no process works on a draft any more. Its name holds the process, and one of this host can be looked
    up."""
    match = TAG.search(draft.name.removesuffix(".partial"))
    if match is None:
        return True  # of a version that gave all processes the same name
    process = Process(match["host"].rpartition("-step-")[0] or match["host"], int(match["pid"]), match["started"])
    if process.host == socket.gethostname():
        return process == Process.current() or process.has_ended()
    try:
        return time.time() - max(p.stat().st_mtime for p in (draft, *draft.rglob("*"))) > IDLE
    except OSError:
        return False  # it changes at this moment


def _entry() -> str:
    process = Process.current()
    values = {
        "host": process.host,
        "pid": process.pid,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "process_started": process.started,
    }
    return json.dumps(values)


def _create(file: Path, entry: str) -> bool:
    """Make the lock; False when there is one."""
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, entry.encode())
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


def _remove_stale(file: Path) -> None:
    """Remove the lock of a process that has ended, and say so; raise `UsageError` for any other."""
    if file.exists() and not file.is_file():
        fix = "remove it, or name another folder"
        raise UsageError(f"the lock of {file.parent} is no file", where=str(file), fix=fix)
    try:
        with file.open("r+", encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)  # of two that find it stale, one removes it
            text = _read(opened.fileno())
            owner = _owner(text)
            if owner is None or not owner.has_ended():
                raise _refusal(file, text, owner)
            if os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                file.unlink()
                warnings.warn(
                    f"{file} was left by process {owner.pid}, which has ended without removing it; it is taken over",
                    UserWarning,
                    stacklevel=2,
                )
    except FileNotFoundError:
        return  # released meanwhile


def _read(descriptor: int) -> str:
    """The lock's text; its owner writes it right after making the file."""
    for _ in range(20):
        if text := os.pread(descriptor, 4096, 0).decode(errors="replace"):
            return text
        time.sleep(0.05)
    return ""


def _owner(text: str) -> Process | None:
    """The process that a lock names; None when it cannot be read."""
    try:
        values = json.loads(text)
        return Process(str(values["host"]), int(values["pid"]), str(values["process_started"]))
    except (ValueError, KeyError, TypeError):
        return None


def _refusal(file: Path, text: str, owner: Process | None) -> UsageError:
    here = owner is not None and owner.host == socket.gethostname()
    since = json.loads(text).get("since", "?") if owner else ""
    owned = f"process {owner.pid} on {owner.host} works there since {since}" if owner else "its owner cannot be read"
    return UsageError(
        f"another command works in {file.parent}",
        where=str(file),
        why=owned if here else f"{owned}: {text.strip()!r}",
        fix="wait until it has ended, end it, or name another folder"
        + ("" if here else "; if no command runs there any more, remove the file"),
    )


def _started(pid: int) -> str:
    """Clock ticks from boot to the start of a process, '' when there is none, 0 where the system does not say."""
    if Path("/proc/self/stat").is_file():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "0"
