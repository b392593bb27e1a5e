"""Metrics for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flowturbo.serve.batching import Tick

__all__ = ["Metrics"]

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"registry": self.registry, "namespace": "flowturbo"}
        self._requests = Counter("requests", "Requests answered.", ["route", "status"], **shared)
        self._refused = Counter("refused", "Requests refused, by reason.", ["code"], **shared)
        self._images = Counter("images", "Images drawn.", **shared)
        self._rows = Histogram("tick_rows", "Rows in a batch.", buckets=ROWS, **shared)
        self._padding = Counter("padded_rows", "Rows added to reach a batch size.", **shared)
        self._ticks = Histogram("tick_seconds", "Time of the network.", buckets=SECONDS, **shared)
        self._first = Histogram(
            "first_image_seconds", "To the first image, partial or not.", buckets=SECONDS, **shared
        )
        self._total = Histogram("request_seconds", "To the last image.", buckets=SECONDS, **shared)
        self.waiting = Gauge("requests_waiting", "Requests in the queue.", **shared)
        self.running = Gauge("requests_running", "Requests that run.", **shared)

    def tick(self, tick: Tick) -> None:
        """Count a batch."""
        self._rows.observe(tick.rows)
        self._padding.inc(tick.padded)
        self._ticks.observe(tick.seconds)

    def answered(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def refused(self, code: str) -> None:
        """Count a request that was refused."""
        self._refused.labels(code).inc()

    def first(self, seconds: float) -> None:
        """Record the time to the first image of a request."""
        self._first.observe(seconds)

    def finished(self, seconds: float, images: int) -> None:
        """Record the time to the end of a request."""
        self._total.observe(seconds)
        self._images.inc(images)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self.registry)
