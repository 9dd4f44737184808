"""Judging students: held-out evaluation with intervals."""
