"""What ``/metrics`` reports, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CLIPS_IN_A_CALL = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Measures:
    """The counters of one server."""

    def __init__(self) -> None:
        kept = self._kept = CollectorRegistry()
        self.requests = Counter("vidalign_requests", "Requests to /v1/score", ["status"], registry=kept)
        self.clips = Counter("vidalign_clips", "Clips by what became of them", ["outcome"], registry=kept)
        self.calls = Histogram(
            "vidalign_call_clips", "Clips in one call of the reward", registry=kept, buckets=CLIPS_IN_A_CALL
        )
        self.seconds = Histogram(
            "vidalign_call_seconds", "Seconds of one call of the reward", registry=kept, buckets=SECONDS
        )
        self.outstanding = Gauge("vidalign_outstanding", "Requests that are read, wait or are scored", registry=kept)

    def call(self, count: int, seconds: float, values: list[float | None] | None) -> None:
        """One call of the reward on `count` clips; values: its scores, None where it failed."""
        self.calls.observe(count)
        self.seconds.observe(seconds)
        failed = 0 if values is None else sum(value is None for value in values)
        scored = 0 if values is None else count - failed
        self.clips.labels("scored").inc(scored)
        self.clips.labels("nan").inc(failed)
        self.clips.labels("failed").inc(count - scored - failed)

    def text(self) -> bytes:
        """The answer to a scrape."""
        return generate_latest(self._kept)
