"""The lock on what a command owns, and temporary names of one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vidalign.engine.checkpoint import Checkpoints
from vidalign.errors import UsageError
from vidalign.owner import LOCK, Process, beside, owned, replacing
from vidalign.students.video import checkpoint


def other_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def lock_of(folder: Path, **values: object) -> Path:
    """The lock of a process, this one's but for what `values` say."""
    with owned(folder):
        entry = json.loads((folder / LOCK).read_text())
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps({**entry, **values}))
    return folder / LOCK


def tag_of(pid: int) -> str:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return f"{pid}-{fields[19]}@{Process.current().host}"


def test_a_second_owner_is_refused_and_told_the_first(tmp_path: Path) -> None:
    with owned(tmp_path / "run"):
        with pytest.raises(UsageError) as caught, owned(tmp_path / "run"):
            pass
        told = str(caught.value)
        assert f"process {os.getpid()} on {Process.current().host}" in told and caught.value.exit_code == 2
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", told)
        assert (tmp_path / "run" / LOCK).is_file(), "the refused one leaves the lock alone"
    assert not (tmp_path / "run").exists(), "nothing is left of a command that wrote nothing"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_lock_goes_whatever_ends_the_command(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), owned(tmp_path):
        raise error
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_taken_over_and_said(tmp_path: Path) -> None:
    held = f"import pathlib, time\nfrom vidalign.owner import owned\nwith owned(pathlib.Path({str(tmp_path)!r})):\n"
    process = subprocess.Popen([sys.executable, "-c", held + "    time.sleep(60)"])
    while not (tmp_path / LOCK).is_file() or not (tmp_path / LOCK).read_text():
        time.sleep(0.05)
    with pytest.raises(UsageError, match=f"process {process.pid} on"), owned(tmp_path):
        pass
    process.kill()
    process.wait()
    with pytest.warns(UserWarning, match=f"left by process {process.pid}, which has ended") as told, owned(tmp_path):
        pass
    assert len(told) == 1 and "\n" not in str(told[0].message) and not list(tmp_path.iterdir())


def test_a_number_that_another_process_has_by_now(tmp_path: Path) -> None:
    lock_of(tmp_path, process_started="1")
    with pytest.warns(UserWarning, match="has ended"), owned(tmp_path):
        pass


def test_another_host_is_believed(tmp_path: Path) -> None:
    file = lock_of(tmp_path, host="node7", pid=4, since="2026-01-02 03:04:05")
    with pytest.raises(UsageError) as caught, owned(tmp_path):
        pass
    told = str(caught.value)
    assert "process 4 on node7" in told and "2026-01-02 03:04:05" in told
    assert str(file) in told and "remove the file" in told


@pytest.mark.parametrize("text", ["{", "[]", '{"host": 1}', "\x00"])
def test_a_lock_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(UsageError, match="its owner cannot be read.*remove the file"), owned(tmp_path):
        pass


def test_only_the_first_rank_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with owned(tmp_path):
        assert not list(tmp_path.iterdir())


def test_temporary_names_belong_to_a_process(tmp_path: Path) -> None:
    """Of other files, running and ended processes: only what an ended one left for this very file goes."""
    live, ended = other_process(), other_process()
    kept = [tmp_path / f"a.txt.{tag_of(live.pid)}.partial", tmp_path / f"b.txt.{tag_of(ended.pid)}.partial"]
    left = tmp_path / f"a.txt.{tag_of(ended.pid)}.partial"
    for file in (*kept, left):
        file.write_text("")
    ended.kill()
    ended.wait()
    mine = beside(tmp_path / "a.txt")
    live.kill()
    assert str(os.getpid()) in mine.name and sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_folder_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    ended = other_process()
    left = tmp_path / f"student.{tag_of(ended.pid)}.partial"
    (left / "transformer").mkdir(parents=True)
    ended.kill()
    ended.wait()
    with replacing(tmp_path / "student") as partial:
        partial.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_fails_half_way_leaves_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Neither a file nor a folder, and the old one stays."""
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as partial:
        make(partial)
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_two_processes_may_write_the_same_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one renames its own file while this one is still writing."""
    import safetensors.torch as module

    plain, seen = module.save_file, []

    def write_and_see(tensors: object, path: Path, **rest: object) -> None:
        plain(tensors, path, **rest)
        seen.append(Path(path).name)

    monkeypatch.setattr(module, "save_file", write_and_see)
    checkpoint.write({}, {}, tmp_path / "s.safetensors", {})
    assert seen[0].startswith(f"s.safetensors.{Process.current().tag}")


def test_a_save_sweeps_no_draft_of_a_running_process(tmp_path: Path) -> None:
    live, ended = other_process(), other_process()
    drafts = [tmp_path / f".draft-{tag_of(process.pid)}-step-00000007" for process in (live, ended)]
    foreign = [tmp_path / f".draft-{n}-9@node-step-7-step-00000007" for n in (1, 2)]
    for folder in (*drafts, *foreign):
        folder.mkdir()
        (folder / "state.pt").write_text("")
    for path in (foreign[1] / "state.pt", foreign[1]):
        os.utime(path, (time.time() - 7200,) * 2)
    ended.kill()
    ended.wait()
    Checkpoints(tmp_path).save(1, {}, {})
    live.kill()
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {drafts[0].name, foreign[0].name, "step-00000001"}
