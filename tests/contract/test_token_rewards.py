"""A reward beside distillation: its gradient written out, what rewards are given, nothing where it has no weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_objective_helpers import collect, examples, make, make_student
from objective_helpers import network_of, nudge, whole
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.data.examples import Example
from vidalign.data.graders import Equals
from vidalign.errors import RecipeError
from vidalign.losses.projected import Reinforced, Written, projected_loss
from vidalign.objectives.base import Experience, MicroBatch, Objective, Phase
from vidalign.rewards.base import CompositeReward
from vidalign.rewards.exact_match import ExactMatch
from vidalign.trainer import judge_experience

NAMES = ("opd", "dopd")


class Lengths:
    """As many characters as a response has, and what it was given."""

    name, judges = "lengths", "texts"

    def __init__(self) -> None:
        self.seen: list[tuple[str, Example, Any]] = []

    def score(
        self, responses: Sequence[str], asked: Sequence[Example], metadata: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        self.seen += zip(responses, asked, metadata, strict=True)
        return {"lengths": torch.tensor([float(len(text)) for text in responses])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    make_student(folder / "student.safetensors", 1, tied=True)
    make_student(folder / "teacher.safetensors", 2, tied=False)
    return folder


def judged(objective: Objective, ctx: TrainContext, given: list[Example] | None = None) -> Experience:
    return judge_experience(ctx, objective, collect(objective, ctx, given))


def with_lengths(folder: Path, name: str, weight: float) -> tuple[Objective, TrainContext, Lengths]:
    objective, ctx = make(folder, name, "objective.group_size=4", "student.sampling.temperature=0.7")
    objective.config.reward_weight = weight
    reward = Lengths()
    ctx.rewards = CompositeReward({"lengths": reward}, {"lengths": 1.0})
    return objective, ctx, reward


def gradient_of(objective: Objective, ctx: TrainContext, data: Experience) -> dict[str, Tensor]:
    network = network_of(ctx)
    with ctx.roles.phase("student"):
        loss = objective.loss(ctx, MicroBatch(data, 1.0), Phase()).loss
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        return dict(zip([n for n, _ in named], torch.autograd.grad(loss, [p for _, p in named]), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_formula(name: str, folder: Path) -> None:
    """fp64: with the weight minus without is ``- w mean_n mean_t A_n grad log S(y_t)``, responses scored one by one."""
    objective, ctx, _ = with_lengths(folder, name, 0.3)
    data = judged(objective, ctx)
    nudge(network_of(ctx))
    lengths = data.scores["lengths"].double().view(-1, 4)
    assert (lengths.std(1) > 0).any(), "some group has a spread"
    spread = lengths.std(1, unbiased=False, keepdim=True)
    advantage = ((lengths - lengths.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
    torch.testing.assert_close(data["advantage"].double(), 0.3 * advantage, rtol=1e-5, atol=1e-6)
    found, student = gradient_of(objective, ctx, data), network_of(ctx)
    plain = replace(data, tensors={k: v for k, v in data.tensors.items() if k != "advantage"})
    without = gradient_of(objective, ctx, plain)
    with ctx.roles.phase("student"):
        total = torch.zeros((), dtype=torch.float64)
        for n, factor in enumerate(data["advantage"].double()):
            count = int(data["response"][n].sum())
            ids, mask = data["response_ids"][n : n + 1, :count], data["response"][n : n + 1, :count]
            batch = student.compose([data.prompts[int(data.group_index[n])]], ids, mask)
            logp = (student.project(student.response_hidden(batch))[0] / 0.7).log_softmax(-1)
            total = total - factor * logp.gather(1, ids[0, :, None]).mean() / len(data)
        expected = torch.autograd.grad(total, [p for p in student.parameters() if p.requires_grad])
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for (key, value), target in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(value - without[key], target, rtol=1e-5, atol=1e-8, msg=key)
    policy = whole(objective, ctx, data).metrics["objective/policy_loss/mean"]
    assert float(policy) == pytest.approx(float(total.detach()), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_weight_nothing_is_asked_for(name: str, folder: Path) -> None:
    objective, ctx, reward = with_lengths(folder, name, 0.0)
    data = judged(objective, ctx)
    assert not reward.seen and "advantage" not in data.tensors and "reward/mean" not in data.metrics
    assert "objective/policy_loss/mean" not in whole(objective, ctx, data).metrics


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_given_texts_examples_and_metadata(name: str, folder: Path) -> None:
    objective, ctx, reward = with_lengths(folder, name, 0.3)
    given = [replace(example, metadata={"row": n}) for n, example in enumerate(examples())]
    data = judged(objective, ctx, given)
    texts = ctx.student.chat.decode(data["response_ids"], data["response"])
    assert [text for text, _, _ in reward.seen] == texts and len(texts) == 12
    assert [known["row"] for _, _, known in reward.seen] == [0] * 4 + [1] * 4 + [2] * 4
    assert [one.answer for _, one, _ in reward.seen] == [given[n // 4].answer for n in range(12)]
    assert data.metrics["reward/lengths/mean"] == pytest.approx(sum(map(len, texts)) / 12)


def test_a_group_without_spread_and_a_failed_reward_teach_nothing(folder: Path) -> None:
    objective, ctx, _ = with_lengths(folder, "opd", 1.0)
    data = collect(objective, ctx)
    data.scores = {"lengths": torch.tensor([3.0] * 4 + [1.0, float("nan"), 5.0, 3.0] + [2.0, 4.0] * 2)}
    found = objective.digest(ctx, data)["advantage"].view(3, 4)
    assert found[0].tolist() == [0] * 4 and found[1, 1] == 0
    assert found[2].tolist() == pytest.approx([-1, 1, -1, 1], rel=1e-3)


def test_exact_match_teaches(folder: Path) -> None:
    """The known answer is whatever the first response said: it gets likelier, by a step along the gradient."""
    objective, ctx, _ = with_lengths(folder, "opd", 1.0)
    ctx.rewards = CompositeReward({"exact_match": ExactMatch()}, {"exact_match": 1.0})
    first = collect(objective, ctx)
    texts = ctx.student.chat.decode(first["response_ids"], first["response"])
    given = [replace(example, answer=texts[4 * n].strip(), grader=Equals()) for n, example in enumerate(examples())]
    data = judged(objective, ctx, given)
    right = data.scores["exact_match"] == 1
    assert right.view(3, 4)[:, 0].any() and not right.all()
    assert (data["advantage"][right] > 0).any() and (data["advantage"][right] >= 0).all()


def test_the_gradient_of_one_token() -> None:
    """``w (p - e_y)`` in the logits, through a head of numbers; and the losses of rows are those of the other parts."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    rows, tokens = torch.tensor([0, 1]), torch.tensor([2, 4])
    parts = [Written(rows[:1], torch.ones(1), tokens[:1]), Reinforced(rows, torch.tensor([0.5, -2.0]), tokens)]
    out = projected_loss(hidden, head, None, parts)
    p = (hidden @ head.T).softmax(-1).detach()
    slope = (p - torch.nn.functional.one_hot(tokens, 5)) * torch.tensor([[1.5], [-2.0]])
    of_hidden, of_head = torch.autograd.grad(out.total, (hidden, head))
    torch.testing.assert_close(of_hidden, slope @ head.detach())
    torch.testing.assert_close(of_head, slope.T @ hidden.detach())
    assert out.losses.tolist() == pytest.approx([-float(p[0, 2].log()), 0.0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.reward_weight=1"], "there is no reward for objective.reward_weight"),
        (
            ["objective.reward_weight=1", "rewards={exact_match: 1}", "objective.group_size=1"],
            "a group size of 1 is too small for objective.reward_weight",
        ),
        (["objective.reward_weight=-1"], "objective.reward_weight"),
    ],
)
def test_one_clear_error(overrides: list[str], message: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        make(folder, "opd", *overrides)
    assert len(raised.value.problems) == 1
