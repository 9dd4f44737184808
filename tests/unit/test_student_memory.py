"""What a forward keeps and copies: nothing outlives a call, and a past that candidates share is copied in slices."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from student_reference import inputs, student
from torch import Tensor

from vidalign.build import build_student
from vidalign.errors import RecipeError
from vidalign.objectives.parts.rollouts import on_policy_gap
from vidalign.recipe import load_recipe
from vidalign.students.video import CachePolicy, VideoStudent, blocks
from vidalign.students.video.context import Context
from vidalign.students.video.rollout import RolloutPlan
from vidalign.trainer import Trainer

POLICY = CachePolicy(chunk_frames=3)
GROUP = 4


def behind(network: VideoStudent, prompts: int = 2) -> tuple[Context, Tensor]:
    """A context of two chunks, one row a prompt, and the texts ``[P, L, D]``."""
    _, clean, text = inputs(6)
    clean = torch.cat([clean + 0.1 * n for n in range(prompts)])
    text = torch.cat([text * (1 + 0.2 * n) for n in range(prompts)])
    return network.extend(network.begin(text), clean, text), text


def test_no_keys_of_the_past_outlive_a_call() -> None:
    network = student(POLICY)
    context, text = behind(network)
    kept = weakref.ref(context.pieces[0].keys[0])
    x_t = torch.randn(2 * GROUP, 3, *network.chunk_shape[1:])
    with torch.no_grad():
        network.velocity(x_t, torch.full((len(x_t),), 0.5), text, context.expand(GROUP))
    del context
    gc.collect()
    assert kept() is None and network.runtime.plan is None


def test_nothing_of_a_rollout_is_alive_but_what_it_returns() -> None:
    network = student(POLICY)
    _, _, text = inputs(3)
    plan = RolloutPlan(prefix=1, branch=1, group_size=GROUP)
    rolled = network.rollout(text, plan, network.draw_noise(plan, [torch.Generator().manual_seed(0)]))
    assert network.runtime.plan is None and network.runtime.text is None
    assert rolled.context.pieces[0].batch == 1, "the shared past is held once a prompt"


@pytest.mark.parametrize("rope", ["absolute", "relative"])
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_shared_past_in_slices_gives_the_same(rope: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs bit for bit, gradients to rounding, whatever part of a group or number of groups a slice holds."""
    network = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope=rope))
    context, text = behind(network)
    x_t = torch.randn(2 * GROUP, 3, *network.chunk_shape[1:], generator=torch.Generator().manual_seed(1))
    level = torch.full((len(x_t),), 0.5)
    results = []
    row_bytes = 2 * context.pieces[0].keys[0][0].nbytes * len(context.pieces)
    for limit in (blocks.COPY_BYTES, rows * row_bytes):
        monkeypatch.setattr(blocks, "COPY_BYTES", limit)
        network.zero_grad()
        out = network.velocity(x_t, level, text, context.expand(GROUP))
        out.square().mean().backward()
        weight = network.base.blocks[0].attn1.to_k.weight
        results.append((out.detach(), weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)


def test_the_past_of_a_part_is_gone_when_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the candidates' own keys no more than those of one part, three chunks of two rows, are alive at any time."""
    network = student(POLICY)
    network.rollout_batch = 2
    kept, most = [], 0
    plain = VideoStudent.extend

    def counted(self: VideoStudent, context: Context, chunk: Tensor, text: Tensor) -> Context:
        nonlocal most
        made = plain(self, context, chunk, text)
        kept.extend([weakref.ref(made.pieces[-1].keys[0])] if len(chunk) == 2 else [])
        most = max(most, sum(ref() is not None for ref in kept))
        return made

    monkeypatch.setattr(VideoStudent, "extend", counted)
    plan = RolloutPlan(prefix=1, branch=1, suffix=3, group_size=GROUP)
    network.rollout(inputs(3)[2], plan, network.draw_noise(plan, [torch.Generator().manual_seed(0)]))
    assert len(kept) == 2 * 3 and most == 3


@pytest.mark.parametrize(("fits", "expected"), [(12, [12]), (11, [8, 4]), (7, [4, 4, 4]), (3, [2] * 6), (0, [1] * 12)])
def test_slices_hold_whole_groups_or_equal_parts(
    fits: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "COPY_BYTES", fits * 100 + 50)
    slices = list(blocks.slices(12, 4, 100))
    assert [stop - start for start, stop in slices] == expected
    assert slices[0][0] == 0 and slices[-1][1] == 12


@pytest.mark.parametrize(
    ("rows", "views"),
    [
        (slice(0, 4), True),
        (slice(4, 8), True),
        (slice(0, 8), True),
        (slice(1, 3), True),
        (slice(2, 6), True),
        (slice(1, 5), False),
    ],
)
def test_rows_of_whole_groups_and_parts_of_one_are_views(rows: slice, views: bool) -> None:
    """They read what the whole context reads."""
    network = student(POLICY)
    context, text = behind(network)
    whole = context.expand(GROUP)
    chosen = whole.rows(rows)
    storage = context.pieces[0].keys[0].untyped_storage().data_ptr()
    assert (chosen.pieces[0].keys[0].untyped_storage().data_ptr() == storage) == views
    x_t = torch.randn(2 * GROUP, 3, *network.chunk_shape[1:], generator=torch.Generator().manual_seed(1))
    level = torch.full((len(x_t),), 0.5)
    texts = text.repeat_interleave(GROUP, 0)
    with torch.no_grad():
        expected = network.velocity(x_t, level, texts, whole)[rows]
        part = network.velocity(x_t[rows], level[rows], texts[rows], chosen)
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 100])
@pytest.mark.parametrize("prefix", [0, 1])
def test_a_rollout_in_parts_gives_the_same(prefix: int, rows: int) -> None:
    """Latents, recorded states, both contexts and the number of calls, whatever goes through the network at once."""
    network = student(POLICY)
    _, text = behind(network)
    plan = RolloutPlan(prefix, branch=1, suffix=1, group_size=GROUP, record=(0, prefix + 1), keep_final=True)
    noise = network.draw_noise(plan, [torch.Generator().manual_seed(n) for n in range(2)], suffix="shared")
    batches: list[int] = []
    network.on_pass(lambda one: batches.append(one.rows))
    whole = network.rollout(text, plan, noise)
    assert max(batches) == 2 * GROUP
    batches.clear()
    network.rollout_batch = rows
    parts = network.rollout(text, plan, noise)
    assert max(batches) <= max(rows, 2), "the prefix goes through at once, one row a prompt"
    torch.testing.assert_close(parts.latents, whole.latents, rtol=1e-5, atol=1e-5)
    assert parts.states.keys() == whole.states.keys() and parts.chunk_forwards == whole.chunk_forwards
    for chunk, states in whole.states.items():
        torch.testing.assert_close(parts.states[chunk].x_t, states.x_t, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.states[chunk].x0, states.x0, rtol=1e-5, atol=1e-5)
    assert whole.final is not None and parts.final is not None
    assert parts.final.batch == whole.final.batch == 2 * GROUP and parts.context.batch == 2
    x_t = torch.randn(2 * GROUP, 3, *network.chunk_shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        following = [network.velocity(x_t, torch.full((8,), 0.5), text, run.final) for run in (whole, parts)]
    torch.testing.assert_close(following[1], following[0], rtol=1e-5, atol=1e-5)


def test_a_recipe_bounds_the_rollout() -> None:
    recipe = load_recipe("world/astrolabe", ["trainer.rollout_batch=3"])
    assert build_student(recipe).rollout_batch == 3
    with pytest.raises(RecipeError, match="trainer.rollout_batch must be at least 0"):
        load_recipe("world/astrolabe", ["trainer.rollout_batch=-1"])


@pytest.mark.parametrize(("rows", "most"), [(0, 6), (2, 2), (4, 4)])
def test_the_on_policy_gauge_runs_in_slices(rows: int, most: int, tmp_path: Path) -> None:
    """It is small whatever the slices, and no forward of it is larger than the bound."""
    recipe = load_recipe("world/astrolabe", [f"trainer.rollout_batch={rows}", "trainer.prompts_per_step=1"])
    trainer = Trainer(recipe, tmp_path / "run")
    ctx, batches = trainer.ctx, list[int]()
    text, plan = ctx.text(["a red square moves to the right"]), RolloutPlan(0, 1, group_size=6, record=(0,))
    noise = ctx.student.draw_noise(plan, [torch.Generator().manual_seed(0)])
    with torch.no_grad():
        rolled = ctx.student.rollout(text, plan, noise)
        ctx.student.on_pass(lambda one: batches.append(one.rows))
        assert on_policy_gap(ctx, rolled, text, 6) < 0.02
    assert sum(batches) == 6 and max(batches) == most
