"""Losses: pure tensor functions, one small file a family; the most used ones by name.

Flow matching and noise (`flow_matching`), advantages (`advantages`), forward-process losses (`forward_process`), pairs
of clips (`bradley_terry`), neighbours (`neighbor_grpo`), re-noising steps (`policy_gradient`), divergences over
vocabularies (`divergences`, `projected`), routing (`routing`), distribution matching (`distribution_matching`).
"""

from vidalign.losses.advantages import combine as combine
from vidalign.losses.advantages import group_advantage as group_advantage
from vidalign.losses.advantages import group_statistics as group_statistics
from vidalign.losses.advantages import reward_weight as reward_weight
from vidalign.losses.bradley_terry import bradley_terry_loss as bradley_terry_loss
from vidalign.losses.bradley_terry import margin_advantage as margin_advantage
from vidalign.losses.flow_matching import add_noise as add_noise
from vidalign.losses.flow_matching import flow_matching_loss as flow_matching_loss
from vidalign.losses.forward_process import forward_process_loss as forward_process_loss
from vidalign.losses.forward_process import reference_penalty as reference_penalty
from vidalign.losses.neighbor_grpo import neighbor_grpo_loss as neighbor_grpo_loss
