"""`vidalign evaluate`: the held-out judgement of a run's student against the one it started from."""

from __future__ import annotations

from vidalign.cli.options import Best, Overrides, Plugins, RunFolder, Step, Trust
from vidalign.owner import owned


def evaluate(
    run: RunFolder,
    overrides: Overrides = None,
    step: Step = None,
    best: Best = False,
    trust_checkpoint: Trust = False,
    plugin: Plugins = None,
) -> None:
    """Judge the student of a run on held-out prompts."""
    from vidalign.workflows.evaluate import evaluate_run
    from vidalign.workflows.opened import check_finished
    from vidalign.workflows.saved import Saved

    saved = Saved(step, best, trust_checkpoint)
    check_finished(run, saved)
    with owned(run):
        evaluate_run(run, overrides or [], saved=saved)
