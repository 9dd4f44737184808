"""The page of one run, or of several side by side, made anew from their files: nothing is judged or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vidalign.errors import UsageError
from vidalign.report import write_report
from vidalign.workflows.run_files import RunFiles, check_run, file_of, judged_steps, read_run
from vidalign.workflows.side_by_side import side_by_side
from vidalign.workflows.training_report import training_report

REPORT, SEVERAL = "report.html", Path("report.html")


def report_runs(folders: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Write the page of one run, or of several, and return where; every folder is checked before any is read.

    One run: RUN/report.html, and RUN/report-step-N.html for every judged step. Several: one page, `out` or report.html
    in the working directory. Raises `UsageError` for what is no run, or is named twice.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        check_run(path)
    if len({path.resolve() for path in paths}) < len(paths):
        twice = next(path for n, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:n]])
        raise UsageError(f"the run {str(twice)!r} is named twice", where="RUN", fix="name each run once")
    if len(paths) > 1:
        return [write_report(out or SEVERAL, side_by_side(_named(paths)))]
    (folder,) = paths
    if out is not None:
        return [write_report(out, training_report(read_run(folder)))]
    steps = [None, *judged_steps(folder)]
    return [write_report(file_of(folder, REPORT, step), training_report(read_run(folder, step))) for step in steps]


def _named(paths: Sequence[Path]) -> dict[str, RunFiles]:
    """Runs by the name of their folder, with as many folders before it as it takes to separate them."""
    parts = [path.resolve().parts for path in paths]
    depth = next(n for n in range(1, max(map(len, parts)) + 1) if len({one[-n:] for one in parts}) == len(parts))
    return {"/".join(one[-depth:]): read_run(path) for one, path in zip(parts, paths, strict=True)}
