"""Groups in a folder: written, gone on with, drawn, and refused when they are damaged or of another origin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vidalign.cost import Cost
from vidalign.errors import DataError, UserError
from vidalign.objectives.parts.groups import OnPolicyGroups, StoredGroups
from vidalign.students.video.rollout.buffer import Buffer, BufferHeader, ForkedGroups

HEADER = BufferHeader(student="s", recipe="r", groups=4, settings={"objective.group_size": 2})


def groups(pivot: int, prompts: int = 1) -> ForkedGroups:
    """Two candidates of two steps, one frame a chunk."""
    shapes = {
        "history": (prompts, pivot, 1, 1, 1),
        "initial": (prompts, 2, 1, 1, 1, 1),
        "renoise": (prompts, 1, 1, 1, 1, 1, 1),
        "x0": (prompts, 2, 2, 1, 1, 1, 1),
    }
    numbers = torch.Generator().manual_seed(pivot)
    tensors = {name: torch.randn(shape, generator=numbers) for name, shape in shapes.items()}
    prompt = [f"p{n}" for n in range(prompts)]
    return ForkedGroups.from_tensors(prompt, pivot, tensors | {"rewards.bright": torch.rand(prompts, 2)})


def filled(folder: Path, *pivots: int) -> Buffer:
    buffer = Buffer.create(folder, replace(HEADER, groups=len(pivots)))
    for number, pivot in enumerate(pivots):
        buffer.write([number], groups(pivot), {"forwards": 2.0, "seconds": 0.5})
    return Buffer.open(folder)


def test_a_group_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written, read = groups(1), filled(tmp_path / "new" / "folder", 1).read([0])
    assert (read.prompts, read.pivot, read.rewards.keys()) == (["p0"], 1, {"bright"})
    assert all(torch.equal(read.tensors()[name], written.tensors()[name]) for name in ("history", "initial", "x0"))
    assert json.loads((tmp_path / "new" / "folder" / "buffer.json").read_text())["format"] == 1


def test_a_buffer_is_gone_on_with_by_its_own_recipe_and_student(tmp_path: Path) -> None:
    Buffer.create(tmp_path, HEADER).write([0], groups(0), {})
    assert Buffer.create(tmp_path, replace(HEADER, groups=6)).missing() == [1, 2, 3, 4, 5]
    assert Buffer.create(tmp_path, replace(HEADER, groups=2)).header.groups == 6, "what is collected stays"
    with pytest.raises(DataError, match="begun with another recipe"):
        Buffer.create(tmp_path, replace(HEADER, recipe="other"))
    with pytest.raises(DataError) as error:
        Buffer.create(tmp_path, replace(HEADER, student="t", settings={"objective.group_size": 3}))
    student, size = "its groups come from student s, this run begins with t", "objective.group_size is 2 there, 3 here"
    assert f"{student}; {size}" in str(error.value)


@pytest.mark.parametrize(("count", "fits"), [(0, False), (1, True), (999_999, True), (1_000_000, False)])
def test_a_buffer_holds_one_group_to_a_million(count: int, fits: bool, tmp_path: Path) -> None:
    Buffer.create(tmp_path, replace(HEADER, groups=count))
    if fits:
        assert Buffer.open(tmp_path, whole=False).header.groups == count
    else:
        with pytest.raises(DataError, match=r"'groups' must lie in 1\.\.999999"):
            Buffer.open(tmp_path, whole=False)


def test_a_draw_needs_enough_groups_of_every_pivot(tmp_path: Path) -> None:
    buffer = filled(tmp_path, 0, 0, 2, 0)
    assert {len(set(buffer.draw(1, torch.Generator().manual_seed(n)))) for n in range(9)} == {1}
    with pytest.raises(DataError, match="only 1 groups that fork at chunk 2, a step wants 2"):
        buffer.draw(2, torch.Generator())


def test_a_group_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    buffer = Buffer.create(tmp_path / "buffer", HEADER)
    buffer.path(0).mkdir()
    with pytest.raises(DataError, match="could not be saved"):
        buffer.write([0], groups(0), {})
    assert {path.name for path in buffer.folder.iterdir()} == {"buffer.json", buffer.path(0).name}
    buffer.folder = tmp_path / "nowhere"
    with pytest.raises(DataError, match="could not be saved"):
        buffer.write([0], groups(0), {})


@pytest.mark.parametrize("labels", [{"prompt": "p", "pivot": "1"}, {"prompt": "p", "pivot": "one", "hash": "0"}])
def test_labels_that_no_collection_writes_are_refused(labels: dict[str, str], tmp_path: Path) -> None:
    buffer = filled(tmp_path, 1)
    save_file(groups(1).tensors(), buffer.path(0), metadata=labels)
    with pytest.raises(DataError, match="lacks prompt, pivot or hash"):
        Buffer.open(tmp_path).pivots()


def test_a_step_of_stored_groups_costs_their_clean_passes(tmp_path: Path) -> None:
    fresh = OnPolicyGroups(group_size=2, noise_scale=0.5, neighbours="initial", pivots=0)
    filled(tmp_path, 2)
    sizes: Any = SimpleNamespace(prompts=1, shared_generator=lambda purpose: torch.Generator())
    assert StoredGroups(str(tmp_path), fresh).cost(sizes) == (2, Cost(forwards=2))


def test_the_pivot_is_one_of_the_chunks() -> None:
    fresh = OnPolicyGroups(group_size=2, noise_scale=0.5, neighbours="initial", pivots=3)
    fresh.check(3)
    with pytest.raises(UserError, match="cannot be one of 3 chunks"):
        fresh.check(2)
