"""Prompt sources: distinct prompts in a batch, whole epochs, the same samples on any number of processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from vidalign.data.prompts import GroupedPrompts, read_prompts
from vidalign.data.source import open_source
from vidalign.engine import distributed
from vidalign.errors import DataError
from vidalign.trainer import Trainer
from vidalign.worlds.video.captions import parse, prompts


def numbered(*sizes: int) -> list[list[str]]:
    return [[f"{group}.{n}" for n in range(size)] for group, size in enumerate(sizes)]


def batches(source: GroupedPrompts, size: int, count: int) -> list[list[str]]:
    return [[source[k * size + i] for i in range(size)] for k in range(count)]


@pytest.mark.parametrize("sizes", [(10,), (7, 9, 12), (4, 30)])
def test_a_batch_never_repeats_a_prompt(sizes: tuple[int, ...]) -> None:
    """Also where a batch begins in one epoch and ends in the next."""
    for seed in range(2):
        for size in range(1, len(sizes) * (min(sizes) - 1) + 1):
            source = GroupedPrompts(numbered(*sizes), seed, size)
            assert all(len(set(batch)) == size for batch in batches(source, size, 25)), (seed, size)


def test_a_batch_of_all_prompts_holds_each_once() -> None:
    source = GroupedPrompts(numbered(8), 0, 8)
    assert all(len(set(batch)) == 8 for batch in batches(source, 8, 5))


@pytest.mark.parametrize("batch", [8, 16])
def test_no_repeats_in_the_batches_of_the_world(batch: int) -> None:
    for split in ("basic/train", "train"):
        source = open_source(f"world:{split}", 0, batch)
        assert all(len(set(b)) == batch for b in batches(source, batch, 60))


def test_an_epoch_covers_every_prompt_once() -> None:
    source = GroupedPrompts(numbered(11), 3, 4)
    for epoch in range(4):
        assert len({source[epoch * 11 + i] for i in range(11)}) == 11
    world = open_source("world:train", 0, 8)
    longest = max(len(group) for group in world.groups)
    seen = Counter(world[n] for n in range(len(world.groups) * longest))
    assert set(seen) == set(prompts("train"))


def test_motions_take_turns() -> None:
    """77 % of the world's captions are collisions; every motion is trained equally often all the same."""
    source = open_source("world:train", 0, 8)
    motions = Counter(parse(source[n]).motion for n in range(5 * len(source.groups)))
    assert len(motions) == len(source.groups) and set(motions.values()) == {5}
    turns = [[parse(source[11 * turn + n]).motion for n in range(11)] for turn in range(4)]
    assert len({tuple(turn) for turn in turns}) == 4, "in an order of its own each time"


def test_the_order_changes_from_epoch_to_epoch_and_with_the_seed() -> None:
    def epoch(seed: int, number: int) -> list[str]:
        return [GroupedPrompts(numbered(20), seed, 4)[20 * number + i] for i in range(20)]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1) and epoch(0, 0) != epoch(1, 0)
    assert sorted(epoch(0, 0)) != epoch(0, 0)


def test_a_sample_depends_on_its_number_only() -> None:
    """No cursor: reading far ahead first, or one sample only, changes nothing."""
    forward, backward = GroupedPrompts(numbered(5, 6), 1), GroupedPrompts(numbered(5, 6), 1)
    assert [forward[n] for n in range(30)] == [backward[n] for n in reversed(range(30))][::-1]
    assert GroupedPrompts(numbered(5, 6), 1)[17] == forward[17]


def test_first() -> None:
    source = GroupedPrompts(numbered(5), 0)
    assert source.first(3) == [source[0], source[1], source[2]] and len(source) == 5


@pytest.mark.parametrize("ranks", [2, 4])
def test_processes_share_out_the_same_samples(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_step(step: int, rank: int, size: int) -> dict[int, str]:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        recipe = SimpleNamespace(trainer=SimpleNamespace(prompts_per_step=8))
        prompts = GroupedPrompts(numbered(30), 0, 8)
        fake = SimpleNamespace(recipe=recipe, step=step, prompts=prompts, ctx=SimpleNamespace(spread=1))
        batch = Trainer._batch(fake)  # type: ignore[arg-type]
        assert batch.step == step and len(batch.ids) == 8 // size
        return dict(zip(batch.ids, batch.prompts, strict=True))

    for step in (0, 5):
        alone = of_step(step, 0, 1)
        together = [of_step(step, rank, ranks) for rank in range(ranks)]
        assert sum(len(part) for part in together) == 8
        assert {n: prompt for part in together for n, prompt in part.items()} == alone
        assert sorted(alone) == list(range(8 * step, 8 * step + 8))


# --- text files ---


def test_a_text_file_is_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n a red ball \n\na blue box\na red ball\n", encoding="utf-8")
    assert read_prompts(file) == ["a red ball", "a blue box"]
    assert {open_source(str(file), 0)[n] for n in range(2)} == {"a red ball", "a blue box"}


@pytest.mark.parametrize("content", [None, b"", b"\n  \n\t\n", b"\xff\xfe\x00prompt"])
def test_an_unusable_text_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"prompts\.txt"):
        open_source(str(file), 0)
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path)


def test_an_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'held_out'"):
        open_source("world:heldout", 0)
