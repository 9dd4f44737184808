"""`vidalign evaluate`: the held-out judgement of a run's student against the one it started from."""

from __future__ import annotations

from vidalign.cli.options import Overrides, Plugins, RunFolder
from vidalign.owner import owned


def evaluate(run: RunFolder, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Judge the student of a run on held-out prompts."""
    from vidalign.runs import check_finished, evaluate_run

    check_finished(run)
    with owned(run):
        evaluate_run(run, overrides or [])
