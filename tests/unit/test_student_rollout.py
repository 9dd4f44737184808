"""Branching rollouts: sharing is exact, counts are right, noise is an explicit value."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from student_reference import inputs, student

from vidalign.errors import UserError
from vidalign.students.video import CachePolicy, Context, Sampler
from vidalign.students.video.rollout import Noise, RolloutPlan
from vidalign.students.video.rollout.clock import Clock
from vidalign.students.video.spec import SOLVERS

SHAPE = (3, 16, 6, 8)


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def rows(noise: Noise, index: slice) -> Noise:
    return Noise(noise.initial[index], noise.renoise[index])


POLICIES = [
    CachePolicy(),
    CachePolicy(window=6),
    CachePolicy(window=9, sink=3),
    CachePolicy(window=9, sink=3, rope="relative"),
    CachePolicy(window=9, sink=3, rope="relative", sink_decay=0.9),
]


def stack(contexts: list[Context]) -> Context:
    """Row b of contexts[g] becomes row b * len(contexts) + g: the group layout, materialised."""

    def join(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.stack(tensors, 1).flatten(0, 1)

    pieces = [
        replace(
            same[0],
            keys=tuple(map(join, *(p.keys for p in same))),
            values=tuple(map(join, *(p.values for p in same))),
        )
        for same in zip(*(c.pieces for c in contexts), strict=True)
    ]
    return Context(contexts[0].batch * len(contexts), contexts[0].past, tuple(pieces))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_broadcast_prefix_equals_separate_prefixes_exactly(policy: CachePolicy) -> None:
    """Four prefixes computed one by one, against one prefix read by four candidates: bit for bit."""
    noisy, clean, text = inputs(12, batch=2)
    network = student(policy)
    separate = stack([network.extend(network.begin(text), clean[:, :9], text) for _ in range(4)])
    shared = network.extend(network.begin(text), clean[:, :9], text)
    x_t = noisy[:, 9:].repeat_interleave(4, 0) + torch.randn(8, 1, 1, 1, 1)
    sigma = torch.full((8,), 0.8)
    assert shared.nbytes * 4 == separate.nbytes
    assert torch.equal(network.velocity(x_t, sigma, text, shared), network.velocity(x_t, sigma, text, separate))
    longer = [network.extend(c, x_t, text) for c in (shared.expand(4), separate)]
    assert torch.equal(*(network.velocity(x_t, sigma, text, c) for c in longer))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_branching_rollout_equals_independent_ones(policy: CachePolicy) -> None:
    """Up to the summation order of matrix products, which depends on the number of rows."""
    text, network = inputs(3, batch=2)[2], student(policy)
    plan = RolloutPlan(prefix=2, branch=1, suffix=2, group_size=3)
    noise = network.draw_noise(plan, seeds(2))
    shared = network.rollout(text, plan, noise).latents
    separate = network.rollout(text.repeat_interleave(3, 0), RolloutPlan(0, 5), noise).latents
    assert (shared - separate).abs().max() < 2e-5
    assert (shared[0] - shared[1]).abs().max() > 0.3


def test_chunk_forwards_match_the_published_counts() -> None:
    """AR-CoPO at 7 chunks, 4 steps, 12 candidates: a fork at chunk 4 costs 255 forwards, independent
    rollouts 420.
    """
    text, network = inputs(3)[2], student()
    for plan, count in (
        (RolloutPlan(3, 1, 3, 12, keep_final=True), 255),
        (RolloutPlan(0, 7, 0, 12, keep_final=True), 420),
        (RolloutPlan(0, 2, 0, 2), 18),  # without a clean pass of the last chunk
    ):
        assert network.rollout(text, plan, network.draw_noise(plan, seeds(1))).chunk_forwards == count


def test_forwards_and_seconds_are_those_of_a_prompt_and_of_the_call() -> None:
    text, network = inputs(3, batch=2)[2], student()
    plan = RolloutPlan(0, 2)
    noise, clock, start = network.draw_noise(plan, seeds(2)), Clock(network.device), time.perf_counter()
    out = network.rollout(text, plan, noise, clock=clock)
    elapsed = time.perf_counter() - start
    assert out.chunk_forwards == 9 and [name for name, _ in clock.parts] == ["denoise", "clean", "denoise"]
    assert min(seconds for _, seconds in clock.parts) > 0 and clock.total("denoise") + clock.total("clean") < elapsed


def test_keys_and_values_of_a_text_are_computed_once_a_rollout() -> None:
    """Not once in each of the 14 calls of the network; nothing is kept afterwards."""
    text, network = inputs(3)[2], student()
    calls: list[int] = []
    network.base.blocks[0].attn2.to_k.register_forward_hook(lambda *a: calls.append(1))
    plan = RolloutPlan(0, 3)
    out = network.rollout(text, plan, network.draw_noise(plan, seeds(1)))
    assert out.chunk_forwards == 14 and len(calls) == 1 and network.runtime.text is None


def test_recorded_states_replay_bit_for_bit() -> None:
    text, network = inputs(3, batch=2)[2], student()
    plan = RolloutPlan(prefix=1, branch=1, suffix=1, group_size=2, record=(1,))
    out = network.rollout(text, plan, network.draw_noise(plan, seeds(2)))
    states = out.states[1]
    assert out.branch == slice(3, 6) and out.context.frames == 3 and out.context.batch == 2
    assert torch.equal(states.x0[:, -1], out.latents[:, out.branch])
    for step, sigma in enumerate(states.sigmas):
        level = torch.full((4,), sigma, dtype=torch.float64)
        replay = network.predict_x0(states.x_t[:, step], level, text, out.context)
        assert torch.equal(replay, states.x0[:, step])


def test_teacher_forcing_replays_a_whole_rollout() -> None:
    """One call gives every chunk's last prediction, given the same clean latents."""
    text, network = inputs(3)[2], student(CachePolicy(window=9, sink=3))
    plan = RolloutPlan(0, 5, record=tuple(range(5)))
    out = network.rollout(text, plan, network.draw_noise(plan, seeds(1)))
    last = torch.cat([out.states[c].x_t[:, -1] for c in range(5)], 1)
    sigma = torch.tensor([network.spec.sampler.sigmas[-1]], dtype=torch.float64)
    replay = network.predict_x0(last, sigma, text, clean=out.latents)
    assert (replay - out.latents).abs().max() < 1e-5


def test_a_rollout_can_be_continued() -> None:
    text, network = inputs(3)[2], student(CachePolicy(window=6))
    whole_plan = RolloutPlan(0, 4)
    noise = network.draw_noise(whole_plan, seeds(1))
    whole = network.rollout(text, whole_plan, noise).latents
    half = RolloutPlan(0, 2, keep_final=True)
    first = network.rollout(text, half, Noise(noise.initial[:, :6], noise.renoise[:, :, :6]))
    second = network.rollout(text, half, Noise(noise.initial[:, 6:], noise.renoise[:, :, 6:]), context=first.final)
    assert torch.equal(torch.cat([first.latents, second.latents], 1), whole)


def test_chunks_are_handed_out_as_they_come() -> None:
    text, network = inputs(3)[2], student()
    plan = RolloutPlan(0, 3)
    seen: list[torch.Tensor] = []
    out = network.rollout(text, plan, network.draw_noise(plan, seeds(1)), on_chunk=lambda i, x0: seen.append(x0))
    assert torch.equal(torch.cat(seen, 1), out.latents)


def test_noise_is_shared_where_the_plan_says() -> None:
    plan = RolloutPlan(prefix=1, branch=1, suffix=1, group_size=4)
    noise = Noise.draw(plan, SHAPE, 4, seeds(2), branch="neighbour", scale=0.5, suffix="shared")
    initial, renoise = noise.initial.unflatten(0, (2, 4)), noise.renoise.unflatten(0, (2, 4))
    assert (renoise == renoise[:, :1]).all()
    assert (initial[:, :, :3] == initial[:, :1, :3]).all() and (initial[:, :, 6:] == initial[:, :1, 6:]).all()
    assert (initial[:, 0, 3:6] != initial[:, 1, 3:6]).all()
    own = Noise.draw(plan, SHAPE, 4, seeds(2)).initial.unflatten(0, (2, 4))
    assert (own[:, :, :3] == own[:, :1, :3]).all() and (own[:, 0, 3:] != own[:, 1, 3:]).all()
    small = RolloutPlan(prefix=1, branch=1, suffix=1, group_size=2)
    assert torch.equal(Noise.draw(small, SHAPE, 4, seeds(2)).initial.unflatten(0, (2, 2)), own[:, :2])


def test_neighbours_are_standard_normal_with_the_stated_correlation() -> None:
    plan = RolloutPlan(0, 1, group_size=40)
    initial = Noise.draw(plan, (3, 16, 16, 16), 2, seeds(1), branch="neighbour", scale=0.6).initial.flatten(1).double()
    assert abs(initial.std().item() - 1) < 0.01
    correlation = torch.corrcoef(initial)
    others = correlation[~torch.eye(40, dtype=torch.bool)]
    assert abs(others.mean().item() - (1 - 0.6**2)) < 0.01


def test_neighbours_at_distance_0_and_1_are_the_centre_and_draws_of_their_own() -> None:
    plan = RolloutPlan(0, 1, group_size=2)
    near, far = (Noise.draw(plan, SHAPE, 2, seeds(1), branch="neighbour_all", scale=s) for s in (0, 1))
    own = Noise.draw(plan, SHAPE, 2, seeds(1))
    assert torch.equal(near.initial[0], near.initial[1]) and torch.equal(near.renoise[0], near.renoise[1])
    assert torch.equal(far.initial, own.initial) and torch.equal(far.renoise, own.renoise)
    for scale in (-0.1, 1.1):
        with pytest.raises(UserError, match="neighbour scale"):
            Noise.draw(plan, SHAPE, 2, seeds(1), branch="neighbour", scale=scale)


def test_renoise_can_be_neighbours_too() -> None:
    plan = RolloutPlan(prefix=1, branch=1, suffix=1, group_size=30)
    noise = Noise.draw(plan, (3, 16, 16, 16), 2, seeds(1), branch="neighbour_all", scale=0.6, suffix="shared")
    first = Noise.draw(plan, (3, 16, 16, 16), 2, seeds(1), branch="neighbour", scale=0.6, suffix="shared")
    assert torch.equal(noise.initial, first.initial)
    assert (noise.renoise[:, :, :3] == noise.renoise[:1, :, :3]).all()
    assert (noise.renoise[:, :, 6:] == noise.renoise[:1, :, 6:]).all()
    correlation = torch.corrcoef(noise.renoise[:, 0, 3:6].flatten(1).double())
    assert abs(correlation[~torch.eye(30, dtype=torch.bool)].mean().item() - (1 - 0.6**2)) < 0.02
    assert abs(noise.renoise[:, 0, 3:6].std().item() - 1) < 0.01


def test_one_independent_video_takes_the_first_draws() -> None:
    noise, numbers = Noise.draw(RolloutPlan(0, 2), SHAPE, 2, seeds(1)), seeds(1)[0]
    assert torch.equal(noise.initial[0], torch.randn(6, *SHAPE[1:], generator=numbers))
    assert torch.equal(noise.renoise[0], torch.randn(1, 6, *SHAPE[1:], generator=numbers))


def test_the_original_draw_order() -> None:
    """Self-Forcing: randn([B, F, C, H, W]), then randn([B * F_chunk, C, H, W]) per non-final step,
    chunk-major.
    """
    noise = Noise.like_original(torch.Generator().manual_seed(5), 2, 2, SHAPE, 4)
    torch.manual_seed(5)
    assert torch.equal(noise.initial, torch.randn(2, 6, 16, 6, 8))
    assert noise.renoise.shape == (2, 3, 6, 16, 6, 8)
    for chunk in range(2):
        for step in range(3):
            draw = torch.randn(6, 16, 6, 8).view(2, 3, 16, 6, 8)
            assert torch.equal(noise.renoise[:, step, 3 * chunk : 3 * chunk + 3], draw)


def test_impossible_plans_are_refused() -> None:
    for lengths in ({"branch": 0}, {"prefix": -1}, {"suffix": -1}, {"group_size": 0}):
        with pytest.raises(UserError, match="impossible"):
            RolloutPlan(**{"prefix": 1, "branch": 1, **lengths})
    with pytest.raises(UserError, match="cannot record"):
        RolloutPlan(prefix=1, branch=1, record=(2,))
    with pytest.raises(UserError, match="noise"):
        Noise.draw(RolloutPlan(0, 1), SHAPE, 2, seeds(1), branch="near")


@pytest.mark.parametrize("solver", SOLVERS)
def test_levels_of_the_first_chunk_are_its_own(solver: str) -> None:
    """In a whole video, in one that forks, and behind a context: the list belongs to frame 0."""
    _, clean, text = inputs(6)
    network = student(CachePolicy())
    network.spec.sampler = Sampler(sigmas=[1.0, 0.5], first_sigmas=[1.0, 0.75, 0.5, 0.25], solver=solver)
    own, rest = network.spec.sampler.first_sigmas, network.spec.sampler.sigmas

    def levels(plan: RolloutPlan, context: Context | None = None) -> dict[int, list[float]]:
        noise = network.draw_noise(plan, seeds(1))
        return {n: s.sigmas for n, s in network.rollout(text, plan, noise, context=context).states.items()}

    assert levels(RolloutPlan(prefix=0, branch=3, record=(0, 1, 2))) == {0: own, 1: rest, 2: rest}
    assert levels(RolloutPlan(prefix=1, branch=1, group_size=2, record=(1,))) == {1: rest}
    behind = network.extend(network.begin(text), clean, text)
    assert levels(RolloutPlan(prefix=0, branch=1, record=(0,)), behind) == {0: rest}


def test_a_student_in_memory_samples_and_streams() -> None:
    """`sample` is the rollout of its own noise, decoded; the chunks that are streamed are its parts."""
    import vidalign

    student: Any = vidalign.load_student("world/student")
    seen: list[tuple[int, torch.Tensor]] = []
    prompts = ["a large red circle falls", "a small blue square stays still"]
    clips = student.sample(prompts, frames=6, seed=3, on_chunk=lambda n, part: seen.append((n, part)))
    assert [n for n, _ in seen] == [0, 1] and torch.equal(torch.cat([part for _, part in seen], 1), clips)
    alone = student.sample(prompts[1:], frames=6, seed=3)
    assert clips.shape == (2, 6, 3, 32, 32) and 0 <= float(clips.min()) <= float(clips.max()) <= 1
    assert not torch.equal(alone, clips[1:]), "noise belongs to the number of the prompt"
    assert torch.allclose(student.sample(prompts[:1], frames=6, seed=3), clips[:1], atol=1e-5)
    with pytest.raises(UserError, match="a video of 7 frames is not whole chunks"):
        student.sample(prompts, frames=7)
