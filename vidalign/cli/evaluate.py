"""`vidalign evaluate`: the held-out judgement of a run's student against the one it started from."""

from __future__ import annotations

from vidalign.cli.options import Overrides, Plugins, RunFolder


def evaluate(run: RunFolder, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Judge the student of a run on held-out prompts."""
    from vidalign.runs import evaluate_run

    evaluate_run(run, overrides or [])
