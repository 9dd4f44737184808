"""The HTML page of a finished run or benchmark: one data model (`Report`), one renderer, one template."""

from vidalign.report.model import (
    Answer,
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
    ShownAnswers,
    ShownPrompt,
    Table,
    Trace,
    TrainingPath,
)
from vidalign.report.page import render, write_report

__all__ = [
    "Answer",
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
    "ShownAnswers",
    "ShownPrompt",
    "Table",
    "Trace",
    "TrainingPath",
    "render",
    "write_report",
]
