"""What a run reports: metrics, TensorBoard, live panel, health warnings and clips."""

from vidalign.tracking.health import Health, HealthMonitors
from vidalign.tracking.jsonl import read_history
from vidalign.tracking.tracker import Tracker

__all__ = [
    "Health",
    "HealthMonitors",
    "Tracker",
    "read_history",
]
