"""Branching rollouts with explicit noise."""

from vidalign.rollout.noise import Noise
from vidalign.rollout.plan import ChunkStates, Rollout, RolloutPlan

__all__ = ["ChunkStates", "Noise", "Rollout", "RolloutPlan"]
