"""The HTML page of a finished run or benchmark: one data model (`Report`), one renderer, one template."""

from vidalign.report.model import (
    CellWarning,
    Chart,
    EvaluationRow,
    Hacking,
    Metric,
    Pair,
    Pane,
    Report,
    Row,
    Score,
    ShownPrompt,
    Table,
    Trace,
    TrainingPath,
)
from vidalign.report.page import render, write_report

__all__ = [
    "CellWarning",
    "Chart",
    "EvaluationRow",
    "Hacking",
    "Metric",
    "Pair",
    "Pane",
    "Report",
    "Row",
    "Score",
    "ShownPrompt",
    "Table",
    "Trace",
    "TrainingPath",
    "render",
    "write_report",
]
