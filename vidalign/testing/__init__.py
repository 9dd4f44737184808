"""Checks for plugin authors: each promise of a contract is tried at work, and one sentence says which is broken.

Use: ``check_objective(MyObjective)`` in a test; see docs/testing_a_plugin.md.
"""

from vidalign.testing.graders import check_grader
from vidalign.testing.metrics import check_metric
from vidalign.testing.objectives import check_objective
from vidalign.testing.rewards import check_reward
from vidalign.testing.students import check_student

__all__ = ["check_grader", "check_metric", "check_objective", "check_reward", "check_student"]
