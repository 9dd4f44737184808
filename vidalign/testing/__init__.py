"""Checks for plugin authors: real training steps on tiny networks, and one sentence for a promise that is broken."""

from vidalign.testing.objectives import check_objective

__all__ = ["check_objective"]
