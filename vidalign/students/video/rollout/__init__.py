"""Branching rollouts with explicit noise."""

from vidalign.students.video.rollout.noise import Noise
from vidalign.students.video.rollout.plan import ChunkStates, Rollout, RolloutPlan

__all__ = ["ChunkStates", "Noise", "Rollout", "RolloutPlan"]
