"""What a run tells: metrics, TensorBoard, live panel, health warnings, clips and the HTML report."""

from vidalign.tracking.health import Health, HealthMonitors
from vidalign.tracking.jsonl import read_history
from vidalign.tracking.report import EvaluationRow, ReportClip, ReportData, write_report
from vidalign.tracking.tracker import Tracker

__all__ = [
    "EvaluationRow",
    "Health",
    "HealthMonitors",
    "ReportClip",
    "ReportData",
    "Tracker",
    "read_history",
    "write_report",
]
