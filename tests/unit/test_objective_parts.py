"""The small sums that objectives share, against numbers worked out by hand."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidalign.cost import Cost
from vidalign.data.examples import Example
from vidalign.errors import UserError
from vidalign.losses.advantages import SignalFloor
from vidalign.objectives.ar_copo import ARCoPO
from vidalign.objectives.astrolabe import _alphas
from vidalign.objectives.base import Experience, LossOut
from vidalign.objectives.baselines.gan import GAN
from vidalign.objectives.parts import tokens
from vidalign.objectives.parts.around import Around, around
from vidalign.objectives.parts.forward_process import old_rule
from vidalign.objectives.parts.reduction import reduce_metrics, weighted_metrics
from vidalign.objectives.parts.rollouts import candidate_ids, replay_gap
from vidalign.objectives.parts.scoring import (
    advantage_metrics,
    compute_advantages,
    grouped_scores,
    motion,
    score_metrics,
)
from vidalign.objectives.parts.tokens import mask_of, token_weights
from vidalign.rewards.base import ScoreRequest
from vidalign.students.video import Sampler
from vidalign.students.video.rollout import RolloutPlan

NAN = math.nan


def test_numbers_of_candidates() -> None:
    """Of whole groups, and of the half of each that one of two processes has."""
    whole: Any = SimpleNamespace(own_candidates=lambda size: slice(0, size))
    assert candidate_ids(whole, [3, 5], 2).tolist() == [6, 7, 10, 11]
    assert candidate_ids(whole, [4], 1).tolist() == [4]
    second: Any = SimpleNamespace(own_candidates=lambda size: slice(size // 2, size))
    assert candidate_ids(second, [3, 5], 4).tolist() == [14, 15, 22, 23]


def test_motion_is_the_mean_difference_of_consecutive_frames() -> None:
    brightness = torch.tensor([[0.0, 0.5, 0.25], [1.0, 1.0, 0.0]])
    found = motion(brightness[:, :, None, None, None].expand(2, 3, 3, 2, 2))
    assert found == {"health/motion/mean": pytest.approx((0.5 + 0.25 + 0.0 + 1.0) / 4)}


def test_what_is_logged_of_scores() -> None:
    group = torch.tensor([0, 0, 1, 1])
    found = score_metrics({"": torch.tensor([1.0, 3.0, 5.0, 5.0]), "a": torch.tensor([1.0, NAN, 2.0, 6.0])}, group)
    assert found == {"reward/mean": 3.5, "reward/group_std": 0.5, "reward/a/mean": 3.0, "reward/a/group_std": 1.0}


def test_what_is_logged_of_advantages() -> None:
    """A group of equal rewards, one whose spread is the largest that still counts as none, and one a little wider."""
    reward = torch.tensor([1.0, 1.0, 0.0, 2.0, -1e-6, 1e-6, NAN, 3.0, -1.5e-6, 1.5e-6], dtype=torch.float64)
    advantage = torch.tensor([0.0, 0.0, -3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    found = advantage_metrics(reward, advantage, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]))
    expected = {"health/reward_nan/mean": 0.1, "health/zero_std_groups/mean": 0.6, "objective/advantage/max": 3.0}
    assert found == pytest.approx(expected)


def test_scores_by_prompt_and_the_clips_that_are_shown() -> None:
    shown: list[Any] = []
    ctx: Any = SimpleNamespace(show=lambda *arguments: shown.append(arguments))
    clips = torch.rand(4, 2, 3, 4, 4)
    data = Experience({}, torch.tensor([0, 0, 1, 1]), None, ["a", "b"], scores={"bright": torch.arange(4)})
    assert grouped_scores(ctx, data)["bright"].tolist() == [[0, 1], [2, 3]] and shown == []
    for kept, rows in ((None, [0, 1, 2, 3]), ((1, 2), [1, 2])):
        request = ScoreRequest(clips[rows], data.prompts, data.group_index, kept=kept)
        data.request, shown[:] = request, []
        assert grouped_scores(ctx, data)["bright"].tolist() == [[0, 1], [2, 3]]
        ((held, prompts, scores),) = shown
        assert held is request.clips and prompts == [["a", "a", "b", "b"][row] for row in rows]
        assert scores["bright"].tolist() == rows


def test_a_reward_that_learns_is_compared_inside_a_prompt_alone() -> None:
    scores = {"bright": torch.tensor([[1.0, 3.0], [10.0, 14.0]]), "learned": torch.tensor([[1.0, 3.0], [10.0, 14.0]])}
    ctx: Any = SimpleNamespace(
        signal=SignalFloor(),
        reward_weights={"bright": 1.0, "learned": 3.0},
        rewards=SimpleNamespace(trainable=[SimpleNamespace(name="learned")]),
        world_size=1,
        spread=1,
        gather=lambda value: value,
    )
    judged = compute_advantages(ctx, scores, combination="raw_sum", normalise="none")
    assert judged.advantage.tolist() == [[-4.0, 4.0], [-8.0, 8.0]]
    assert judged.scores["bright"].tolist() == [scores["bright"].tolist()]
    assert judged.scores["learned"].tolist() == [[[-1.0, 1.0], [-2.0, 2.0]]]
    assert judged.metrics["reward/mean"] == 7.0 and judged.metrics["reward/group_std"] == 1.5, "a weighted mean"


def test_the_gap_of_a_replay() -> None:
    """Root mean square over spread, of which 0.05 is the least; the largest of the samples."""
    recorded = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    off = torch.tensor([[0.3, 0.4, 0.0, 0.0], [0.0, 0.01, 0.01, 0.0]], dtype=torch.float64)
    assert float(replay_gap(recorded[:1] + off[:1], recorded[:1])) == pytest.approx(0.25 / math.sqrt(4 / 3))
    assert float(replay_gap(recorded[1:] + off[1:], recorded[1:])) == pytest.approx(math.sqrt(0.5e-4) / 0.05)
    both = replay_gap(recorded + off, recorded)
    assert float(both) == pytest.approx(0.25 / math.sqrt(4 / 3)) and both.shape == ()
    assert replay_gap(recorded.bfloat16(), recorded.bfloat16()).dtype == torch.float32


def test_weights_of_tokens_and_the_mask_of_the_longest() -> None:
    response = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    data: Any = {"response": response}
    assert mask_of(data).tolist() == response[:, :2].tolist()
    assert token_weights(mask_of(data)).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3])
    data = {"response": response[2:]}
    assert mask_of(data).shape == (1, 1)


def test_responses_come_in_slices_and_are_as_wide_as_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def generate(prompts: list[str], generators: list[int], sampling: Any) -> Any:
        asked.append((prompts, generators))
        ones = torch.ones(len(prompts), 3 - len(asked))
        return SimpleNamespace(response=ones.bool(), response_ids=len(asked) * ones.long(), logprobs=-ones)

    sampling = SimpleNamespace(max_new_tokens=2)
    spec = SimpleNamespace(sampling=sampling)
    ctx: Any = SimpleNamespace(
        generator=None,
        student=SimpleNamespace(prompts=lambda examples: examples, generate=generate, spec=spec, rollout_batch=0),
        generators=lambda purpose, ids: list(ids),
        gathered=contextlib.nullcontext,
        gather=lambda value: value,
        roles=SimpleNamespace(engines={"student": SimpleNamespace(network=torch.nn.Linear(1, 1))}),
    )
    monkeypatch.setattr(tokens, "GENERATE_SLICE", 3)
    batch: Any = SimpleNamespace(prompts=["a", "b"], ids=[3, 5])
    data = tokens.sample(ctx, batch, 2)
    assert asked == [(["a", "a", "b"], [6, 7, 10]), (["b"], [11])]
    assert data["sample"].tolist() == [6, 7, 10, 11] and data.group_index.tolist() == [0, 0, 1, 1]
    assert data["response"].int().tolist() == [[1, 1]] * 3 + [[1, 0]]
    assert data["response_ids"].tolist() == [[1, 1]] * 3 + [[2, 0]]
    assert data["logp"].tolist() == [[-1, -1]] * 3 + [[-1, 0]]
    assert data.metrics == {"health/response_tokens/mean": 7 / 4, "health/at_length_limit/mean": 3 / 4}
    for temperature, found in ((0.0, 1.0), (0.7, 0.7)):
        sampling.temperature = temperature
        assert tokens.temperature_of(ctx) == found, "greedy sampling counts as 1"


def test_pictures_on_some_processes_are_refused_under_zero_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batch by micro-batch; without ZeRO-3, and where all processes agree, nothing is said."""
    examples = [Example("a"), Example("b", images=("picture",))]
    data = Experience({"sample": torch.arange(4)}, torch.tensor([0, 0, 1, 1]), None, examples)
    engines = {"student": SimpleNamespace(network=torch.nn.Linear(1, 1))}
    ctx: Any = SimpleNamespace(roles=SimpleNamespace(engines=engines), micro_batch=2)
    other = [True, False]
    monkeypatch.setattr(tokens.distributed, "all_gather_object", lambda own: [own, other])
    tokens.check_pictures(ctx, data)
    monkeypatch.setattr(tokens, "is_sharded", lambda network: True)
    with pytest.raises(UserError, match=r"pictures on one process and none on another - data\.prompts"):
        tokens.check_pictures(ctx, data)
    other.reverse()
    tokens.check_pictures(ctx, data)


def test_metrics_are_weighted_by_their_share_or_their_count() -> None:
    loss, one = torch.tensor(2.0), torch.tensor(1.0)
    out = LossOut(loss, {"a/mean": one, "b/mean": 3 * one, "c/mean": one}, counts={"b/mean": 5, "c/mean": 0})
    assert weighted_metrics(out, 0.25) == {
        "objective/loss/mean": (0.25, 2.0),
        "a/mean": (0.25, 1.0),
        "b/mean": (5.0, 3.0),
    }
    parts = {"a/mean": [(1.0, 2.0), (3.0, 6.0)], "a/max": [(1.0, 2.0), (3.0, -6.0)]}
    assert reduce_metrics(parts) == {"a/mean": 5.0, "a/max": 2.0}


def test_slices_are_whole_groups_or_equal_parts_of_one() -> None:
    def slices(prompts: int, group: int, size: int) -> list[tuple[int, int]]:
        places = torch.arange(prompts).repeat_interleave(group)
        return list(Experience({}, places, None, ["p"] * prompts).slices(size))

    assert slices(3, 4, 8) == [(0, 8), (8, 12)] and slices(3, 4, 7) == [(0, 4), (4, 8), (8, 12)]
    assert slices(1, 6, 5) == slices(1, 6, 3) == [(0, 3), (3, 6)] and slices(1, 6, 1) == [(n, n + 1) for n in range(6)]


def test_candidates_are_those_of_whole_groups_or_of_one() -> None:
    data = Experience({"x": torch.arange(12)}, torch.arange(3).repeat_interleave(4), None, ["a", "b", "c"])
    last, part = data.candidates(4, 12), data.candidates(5, 7)
    assert last["x"].tolist() == list(range(4, 12)) and last.prompts == ["b", "c"]
    assert last.group_index.tolist() == [0] * 4 + [1] * 4
    assert part["x"].tolist() == [5, 6] and part.prompts == ["b"] and part.group_index.tolist() == [0, 0]
    for start, stop in ((0, 6), (2, 8), (3, 5)):
        with pytest.raises(AssertionError, match="whole groups or a part of one"):
            data.candidates(start, stop)


def test_what_surrounds_an_objective_whose_student_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(*arguments: Any) -> None:
        raise UserError("no such weights")

    monkeypatch.setattr("vidalign.registry.get", lambda kind, name: SimpleNamespace(sizes=sizes))
    recipe = SimpleNamespace(
        objective=SimpleNamespace(rewards=None),
        reward_weights={"bright": 1.0},
        trainer=SimpleNamespace(prompts_per_step=3),
        student=SimpleNamespace(name="video"),
        data=SimpleNamespace(frames=9),
    )
    draft: Any = SimpleNamespace(recipe=recipe)
    assert around(draft) == Around(0, {"bright": 1.0}, 3, None)


def test_an_old_policy_without_decay_is_the_current_one() -> None:
    assert old_rule(0) == "current" and old_rule(0.5) == old_rule(None) == "own"


def test_a_step_of_gan_costs_a_rollout_a_replay_and_a_teacher_clip() -> None:
    asked: list[RolloutPlan] = []
    sizes: Any = SimpleNamespace(prompts=2, chunks=3, rewards=4, teacher_forcing=lambda chunks: 2 * chunks)
    sizes.rollout = lambda plan: asked.append(plan) or 100
    assert GAN(GAN.Config()).cost(sizes) == Cost(forwards=100 + 2 * 6, reward_calls=8, teacher_calls=2)
    assert asked == [RolloutPlan(prefix=0, branch=3)]


@pytest.mark.parametrize(("pivot", "steps"), [(0, 4), (1, 2), (2, 2)])
def test_a_step_of_ar_copo_costs_its_groups_and_both_policies_at_every_state(pivot: int, steps: int) -> None:
    objective = ARCoPO(ARCoPO.Config(anchors=3, inner_updates=5))
    objective.groups = SimpleNamespace(cost=lambda sizes: (pivot, Cost(forwards=7, reward_calls=1)))  # type: ignore[assignment]
    sampler = Sampler(sigmas=[1.0, 0.5], first_sigmas=[1.0, 0.75, 0.5, 0.25])
    sizes: Any = SimpleNamespace(prompts=2, sampler=sampler)
    assert objective.cost(sizes) == Cost(forwards=7 + 2 * 5 * 2 * 3 * steps, reward_calls=1)


def test_levels_that_round_to_one_are_logged_together() -> None:
    means, counts = _alphas(torch.tensor([1.0, 0.0, 0.25]), torch.tensor([0.801, 0.799, 0.4]))
    assert {name: float(mean) for name, mean in means.items()} == {
        "objective/alpha_0.80/mean": 0.5,
        "objective/alpha_0.40/mean": 0.25,
    }
    assert counts == {"objective/alpha_0.80/mean": 2, "objective/alpha_0.40/mean": 1}
