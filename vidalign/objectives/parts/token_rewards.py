"""A reward of whole responses beside distillation: a policy gradient on the sampled tokens.

For response n of a group with advantage ``A_n = (r_n - mean(r)) / (std(r) + 1e-4)`` (GRPO, arXiv 2402.03300, outcome
supervision) the loss has ``- w A_n log S(y_t)`` more for every token t that the student sampled, mean over the tokens
of a response, then over responses. r is the weighted sum of the recipe's rewards.

What is left out of GRPO: the ratio to an old policy and its clip, since one update follows a rollout and the ratio is
1; the penalty towards a reference, for which there is the distillation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.errors import UserError
from vidalign.losses.projected import Reinforced
from vidalign.objectives.parts.scoring import compute_advantages
from vidalign.ranges import require
from vidalign.rewards.base import ScoreRequest

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import TrainContext
    from vidalign.objectives.base import Experience
    from vidalign.objectives.parts.around import Around
    from vidalign.students.language import LanguageStudent

    Context = TrainContext[LanguageStudent]


@dataclass
class TokenRewards:
    """Settings of a reward beside distillation."""

    reward_weight: float = 0.0
    """Weight of the policy gradient of the recipe's `rewards`; 0 leaves them out of the training."""

    def __post_init__(self) -> None:
        require(self, "reward_weight", least=0)

    def fit_rewards(self, around: Around, group_size: int) -> None:
        """Raises `UserError` where there is nothing to learn from."""
        if not self.reward_weight:
            return
        if not any(around.rewards.values()):
            raise UserError(
                "there is no reward for objective.reward_weight",
                where="objective.reward_weight",
                why=f"it is {self.reward_weight:g}, and no reward has a weight",
                fix="add rewards: {exact_match: 1}, or set it to 0",
            )
        if group_size < 2:
            raise UserError(
                f"a group size of {group_size} is too small for objective.reward_weight",
                where="objective.group_size",
                why="the rewards of one prompt's responses are compared with each other",
                fix="use 2 or more, or objective.reward_weight=0",
            )

    def request(self, ctx: Context, data: Experience) -> None:
        """Ask for the rewards of the texts of all responses; they are given the examples of `data`."""
        if self.reward_weight:
            texts = ctx.student.chat.decode(data["response_ids"], data["response"])
            data.request = ScoreRequest(texts, data.prompts, data.group_index)

    def digest(self, ctx: Context, data: Experience) -> Experience:
        """Scores to ``advantage [N]``, times the weight; 0 where a reward failed, and in groups without a spread."""
        if self.reward_weight:
            scores = {name: value.to(ctx.device).view(len(data.prompts), -1) for name, value in data.scores.items()}
            judged = compute_advantages(ctx, scores, combination="raw_sum", normalise="group")
            data.tensors["advantage"] = self.reward_weight * judged.advantage.flatten().to(ctx.device)
            data.metrics |= judged.metrics
        return data


def reinforced(data: Experience, mask: Tensor, weights: Tensor, tokens: Tensor) -> list[Reinforced]:
    """The part of the loss that the rewards ask for; none where they do not take part. weights ``[M]``: of the tokens
    in the mean; tokens ``[M]``."""
    if "advantage" not in data.tensors:
        return []
    advantage = data["advantage"][:, None].expand(mask.shape)[mask]
    rows = advantage.nonzero()[:, 0]
    return [Reinforced(rows, (advantage * weights)[rows], tokens[rows])]
