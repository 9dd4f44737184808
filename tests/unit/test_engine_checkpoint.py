"""Checkpoints: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from vidalign.engine.checkpoint import Checkpoints, check_shapes, read_manifest, read_tensors, verify, write_tensors
from vidalign.errors import CheckpointError


class Store:
    """A part that holds one tensor."""

    def __init__(self, value: float = 0.0, size: int = 1000) -> None:
        self.value = torch.full((size,), float(value))

    def save(self, directory: Path) -> None:
        write_tensors(directory / "value.pt", self.value)

    def load(self, directory: Path) -> None:
        self.value = read_tensors(directory / "value.pt")


def save(root: Path, *steps: int, scores: dict[int, float] | None = None, **settings: Any) -> Checkpoints:
    checkpoints = Checkpoints(root, **settings)
    for step in steps:
        checkpoints.save(step, {"cursor": step}, {"a": Store(step)}, score=(scores or {}).get(step))
    return checkpoints


def load(root: Path, step: int | None = None) -> tuple[int, float]:
    part = Store()
    found, state = Checkpoints(root).load({"a": part}, step)
    assert state == {"cursor": found}
    return found, float(part.value.mean())


def test_save_and_load(tmp_path: Path) -> None:
    save(tmp_path / "new" / "folder", 1, 2)
    assert load(tmp_path / "new" / "folder") == (2, 2.0)
    assert load(tmp_path / "new" / "folder", 1) == (1, 1.0)


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, 3, scores={3: 0.5}).path(3)
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["a/value.pt", "state.pt"]
    assert (manifest["format"], manifest["step"], manifest["score"], manifest["world_size"]) == (1, 3, 0.5, 1)
    found = subprocess.run(["sha256sum", path / "a/value.pt"], capture_output=True, text=True, check=True).stdout
    assert manifest["files"]["a/value.pt"]["sha256"] == found.split()[0]


@pytest.mark.parametrize(
    ("scores", "settings", "kept"),
    [
        ({}, {"keep_last": 2}, [4, 5]),
        ({1: 0.1, 2: 0.9, 3: 0.3}, {"keep_last": 2}, [2, 4, 5]),
        ({1: 0.9, 2: 0.9}, {"keep_last": 1}, [2, 5]),
        ({1: 0.1, 2: 0.9}, {"keep_last": 1, "keep_best": False}, [5]),
        ({4: 2.0, 1: -1.0}, {"keep_last": 9}, [1, 2, 3, 4, 5]),
    ],
)
def test_the_last_and_the_best_are_kept(
    scores: dict[int, float], settings: dict[str, Any], kept: list[int], tmp_path: Path
) -> None:
    assert save(tmp_path, 1, 2, 3, 4, 5, scores=scores, **settings).steps() == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


@pytest.mark.parametrize(
    ("scores", "ruined", "kept"),
    [({}, {3, 4, 5}, [2, 5]), ({}, {1, 2, 3, 4, 5}, [5]), ({1: 0.9, 5: 0.1}, {4, 5}, [1, 3, 5]), ({}, {2, 3}, [5])],
)
def test_what_is_not_sound_never_replaces_what_is(
    scores: dict[int, float], ruined: set[int], kept: list[int], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    for step in range(1, 6):
        part = {"a": Store(step)}
        checkpoints.save(step, {"cursor": step}, part, score=scores.get(step), sound=step not in ruined)
    assert checkpoints.steps() == kept


def test_the_newest_is_kept_even_below_older_steps(tmp_path: Path) -> None:
    """After going back to an earlier step, the steps of the abandoned way do not crowd out the new ones."""
    save(tmp_path, 10, 20)
    assert 5 in save(tmp_path, 5).steps()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, keep_last=1)
    checkpoints.save(1, {"cursor": 1}, {"a": Store(7.0)})
    assert load(tmp_path) == (1, 7.0)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def damages() -> Iterator[tuple[str, Any]]:
    def truncate(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-7])

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    for name, harm in (("truncated", truncate), ("flipped bit", flip), ("missing", Path.unlink)):
        for file in ("a/value.pt", "state.pt"):
            yield f"{name} {file}", (file, harm)


@pytest.mark.parametrize(("file", "harm"), [d for _, d in damages()], ids=[n for n, _ in damages()])
def test_a_damaged_checkpoint_is_never_loaded(
    file: str, harm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = save(tmp_path, 1, 2)
    harm(checkpoints.path(2) / file)
    assert file in verify(checkpoints.path(2))
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) == (1, 1.0)
    assert "step 2 is not used" in caplog.text and file in caplog.text
    with pytest.raises(CheckpointError, match=file):
        load(tmp_path, 2)
    harm(checkpoints.path(1) / file)
    with pytest.raises(CheckpointError, match="no checkpoint can be loaded"):
        load(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"step": 2}'])
def test_a_checkpoint_without_a_whole_manifest_is_never_loaded(content: bytes | None, tmp_path: Path) -> None:
    manifest = save(tmp_path, 1, 2, scores={1: 0.0, 2: 1.0}).path(2) / "manifest.json"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    assert load(tmp_path) == (1, 1.0)
    assert save(tmp_path, 3, scores={3: -1.0}, keep_last=1).best() == 1, "and it does not stop later saves"


def test_scores_of_other_judges_are_not_compared(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    for step, (score, judge) in enumerate([(0.7, "a"), (0.9, "a"), (0.2, "b"), (0.1, "b")], 1):
        checkpoints.save(step, {}, {}, score=score, judge=judge)
    assert checkpoints.best() == 3, "the best by the judge of the newest score"


def test_a_score_that_failed_is_never_the_best(tmp_path: Path) -> None:
    assert save(tmp_path, 1, 2, 3, scores={1: math.nan, 2: 0.5, 3: 0.4}).best() == 2
    assert save(tmp_path / "none", 1, scores={1: math.nan}).best() is None


@pytest.mark.parametrize(
    "change",
    [
        {"files": {}},
        {"files": {"state.pt": {"size": 1}}},
        {"files": {"state.pt": {"size": 1, "sha256": ""}, "/etc/hosts": {"size": 1, "sha256": ""}}},
        {"files": {"state.pt": {"size": 1, "sha256": ""}, "a/../../b": {"size": 1, "sha256": ""}}},
        {"score": "high"},
        {"sound": 1},
    ],
    ids=str,
)
def test_entries_that_no_save_writes_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    manifest = save(tmp_path, 1, 2).path(2) / "manifest.json"
    read_manifest(manifest.parent)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(CheckpointError, match="no readable manifest"):
        read_manifest(manifest.parent)
    assert Checkpoints(tmp_path).newest_sound() == 1 and load(tmp_path) == (1, 1.0)


def test_only_folders_of_checkpoints_are_looked_at(tmp_path: Path) -> None:
    """One that has lost its manifest is found, so that loading can say so; a file and a folder of the user are not."""
    checkpoints = save(tmp_path, 1, 2)
    (checkpoints.path(2) / "manifest.json").unlink()
    (tmp_path / "step-00000007").write_text("notes")
    (tmp_path / "step-by-step").mkdir()
    assert checkpoints.steps() == [1] and checkpoints.all_steps() == [1, 2]


def test_what_killed_saves_left_is_swept_by_the_next(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 1, 2, keep_last=3)
    for name in (".draft-step-00000003", ".trash-step-00000009", ".replaced-step-00000001"):
        shutil.copytree(checkpoints.path(1), tmp_path / name)
    (tmp_path / "step-00000002").rename(tmp_path / ".replaced-step-00000002")
    assert checkpoints.steps() == [1, 2] and load(tmp_path) == (2, 2.0), "moved aside is still there"
    assert checkpoints.path(1).name == "step-00000001", "the new one is in its place"
    save(tmp_path, 3, keep_last=3)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [".replaced-step-00000002", "step-00000001", "step-00000003"]
    save(tmp_path, 2, keep_last=3)
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "step-00000001" and load(tmp_path, 2) == (2, 2.0)


def test_a_replacement_that_lost_its_manifest_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 1).path(1)
    shutil.copytree(path, tmp_path / ".replaced-step-00000001")
    (path / "manifest.json").unlink()
    save(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"] and load(tmp_path) == (1, 1.0)


def test_what_cannot_be_removed_is_removed_by_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("busy")

    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", busy)
    save(tmp_path, 2, keep_last=1)
    assert {p.name for p in tmp_path.iterdir()} == {".trash-step-00000001", "step-00000002"}
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert Checkpoints(tmp_path, keep_last=2).save(3, {"cursor": 3}, {}).is_dir()
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000002", "step-00000003"}


class Shards(Store):
    """A part with a file as DeepSpeed writes them."""

    def save(self, directory: Path) -> None:
        super().save(directory)
        (directory / "deepspeed").mkdir()
        (directory / "deepspeed" / "shard.pt").write_bytes(b"")


def test_shards_fit_as_many_processes_and_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    manifests = {}
    for step, part in ((1, Store()), (2, Shards())):
        manifests[step] = checkpoints.save(step, {"cursor": step}, {"a": part}) / "manifest.json"
    assert load(tmp_path) == (2, 0.0)
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: manifests[2].stat().st_uid + 1)
        assert load(tmp_path, 1) == (1, 0.0)
        with pytest.raises(CheckpointError, match="a ZeRO checkpoint of another user"):
            load(tmp_path, 2)
        assert checkpoints.load({"a": Store()}, 2, trust=True)[0] == 2
    for manifest in manifests.values():
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"world_size": 2}))
    assert load(tmp_path, 1) == (1, 0.0)
    with pytest.raises(CheckpointError, match="checkpoint of 2 processes, run of 1"):
        load(tmp_path, 2)


def test_a_missing_checkpoint_says_where(tmp_path: Path) -> None:
    for step in (None, 4):
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "nowhere", step)
        assert "nowhere" in str(error.value) and error.value.exit_code == 3


def test_files_run_no_code(tmp_path: Path) -> None:
    """Loading a file that pickles a call is refused."""

    class Bad:
        def __reduce__(self) -> Any:
            return print, ("code ran",)

    write_tensors(tmp_path / "bad.pt", Bad())
    with pytest.raises(CheckpointError, match=r"bad\.pt"):
        read_tensors(tmp_path / "bad.pt")


def test_other_shapes_are_named() -> None:
    found, expected = {"w": torch.zeros(2, 3), "x": torch.zeros(1)}, {"w": torch.zeros(2, 3)}
    check_shapes(Path("f"), expected, expected)
    with pytest.raises(CheckpointError, match=r"x: found \(1,\), expected nothing"):
        check_shapes(Path("f"), found, expected)
    with pytest.raises(CheckpointError, match=r"x: found nothing, expected \(1,\)"):
        check_shapes(Path("f"), expected, found)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 500, 2000, 4500])
def test_a_full_disk_loses_nothing(limit: int, tmp_path: Path) -> None:
    """value.pt of step 2 has 9 kB, the older one 5 kB: the limits stop it at its beginning, middle and end."""
    checkpoints = save(tmp_path, 1, keep_last=1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with full_disk(limit), pytest.raises(CheckpointError) as error:
        checkpoints.save(2, {"cursor": 2}, {"a": Store(2.0, size=2000)})
    assert "step 2 was not saved; the older ones are intact" in str(error.value)
    assert "File too large" in str(error.value) and "MB free" in str(error.value)
    assert "lower trainer.keep, then resume" in str(error.value), "a key that a recipe has"
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, "nor leaves anything behind"
    assert load(tmp_path) == (1, 1.0)
    save(tmp_path, 2)
    assert load(tmp_path) == (2, 2.0)


def test_a_full_disk_at_the_first_save_speaks_of_no_older_checkpoint(tmp_path: Path) -> None:
    with full_disk(500), pytest.raises(CheckpointError) as error:
        save(tmp_path, 1)
    told = str(error.value)
    assert "step 1 was not saved; there is no older one" in told and "start again" in told
    assert "intact" not in told and "trainer.keep" not in told


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "RuntimeError ("),
        ("two\nlines", "two ("),
        ("[enforce fail at inline_container.cc:664]", "a write stopped early, as on a full disk ("),
    ],
)
def test_a_part_that_fails_says_why(message: str, why: str, tmp_path: Path) -> None:
    class Failing(Store):
        def save(self, directory: Path) -> None:
            raise RuntimeError(message)

    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).save(1, {}, {"a": Failing()})
    assert error.value.problems[0].why.startswith(why)


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    save(tmp_path, 1, 2)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="was not saved"):
        save(tmp_path / "file", 1)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    script = Path(__file__).with_name("engine_killed.py")
    command = [sys.executable, script, tmp_path_factory.mktemp("killed") / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", ["next", "prune", "replace"])
def test_killed_at_every_moment(scenario: str, killed: Any) -> None:
    """SIGKILL before every file-system operation of a save, and in the middle of writes: a checkpoint is always
    there, exactly as it was saved, and the run goes on from it. `next` adds one, `prune` removes the older one,
    `replace` saves the same step again."""
    findings = killed[scenario]
    assert all(f["exact"] and f["goes_on"] and not f["hidden"] for f in findings), findings
    by_operation = [f["step"] for f in findings if "moment" in f]
    assert len(by_operation) > 12 and by_operation == sorted(by_operation)
    assert set(by_operation) == ({2} if scenario == "replace" else {1, 2}), "old, then new, never neither"
    in_write = [f for f in findings if "limit" in f]
    assert sum(f["killed"] for f in in_write) >= 4
    assert all(f["step"] == (1 if f["killed"] and scenario != "replace" else 2) for f in in_write)
