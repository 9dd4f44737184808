"""Objectives: how a judgement becomes a gradient. What a new one imports stands here, see docs/adding_an_objective.md.

The four methods and the mixture lie in this folder, and those they are compared with in `baselines/`. What objectives
share is in `parts/`, and what is in no paper in `experimental/`.
"""

from vidalign.context import Batch as Batch
from vidalign.context import TrainContext as TrainContext
from vidalign.cost import Cost as Cost
from vidalign.cost import StepSizes as StepSizes
from vidalign.objectives.base import Blueprint as Blueprint
from vidalign.objectives.base import Experience as Experience
from vidalign.objectives.base import LossOut as LossOut
from vidalign.objectives.base import MicroBatch as MicroBatch
from vidalign.objectives.base import Needs as Needs
from vidalign.objectives.base import Objective as Objective
from vidalign.objectives.base import Phase as Phase
from vidalign.objectives.base import TrainedRole as TrainedRole
from vidalign.objectives.parts.forward_process import Noised as Noised
from vidalign.objectives.parts.forward_process import noise_again as noise_again
from vidalign.objectives.parts.forward_process import three_policy_loss as three_policy_loss
from vidalign.objectives.parts.rollouts import roll_videos as roll_videos
from vidalign.objectives.parts.rollouts import video_groups as video_groups
from vidalign.objectives.parts.scoring import Judging as Judging
from vidalign.objectives.parts.scoring import compute_advantages as compute_advantages
from vidalign.objectives.parts.scoring import grouped_scores as grouped_scores
from vidalign.objectives.parts.scoring import request_groups as request_groups
from vidalign.objectives.parts.scoring import weigh_candidates as weigh_candidates
from vidalign.registry import register as register
from vidalign.rewards.base import ScoreRequest as ScoreRequest
from vidalign.students.video.rollout import RolloutPlan as RolloutPlan
