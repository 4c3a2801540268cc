"""What Prometheus reads at ``/metrics``; a registry for each service, so that two in one process do not mix."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        at: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "self1e_requests", "Answered requests; 499: the client left.", ["method", "route", "status"], **at
        )
        self.seconds = Histogram(
            "self1e_request_seconds", "From first byte to last.", ["route"], buckets=_SECONDS, **at
        )
        self.accepted = Gauge("self1e_accepted_requests", "Accepted, not yet answered.", **at)
        self.waiting = Gauge("self1e_waiting_jobs", "Waiting for the model.", **at)
        self.batch_queries = Histogram("self1e_batch_queries", "Queries of one pass.", buckets=_ROWS, **at)
        self.batch_requests = Histogram("self1e_batch_requests", "Requests of one pass.", buckets=_ROWS, **at)
        self.model_seconds = Counter("self1e_model_seconds", "Time that the model worked.", **at)
        self.queries = Counter("self1e_queries", "Queries answered, classes of maps included.", **at)
        self.dropped = Counter("self1e_dropped_jobs", "Given up before they were done.", ["reason"], **at)
        self.images = Gauge("self1e_cache_images", "Pictures kept.", **at)
        self.sessions = Gauge("self1e_cache_sessions", "Conversations kept.", **at)
        self.cache_bytes = Gauge("self1e_cache_bytes", "What these take.", **at)
        self.forgotten = Counter("self1e_cache_forgotten", "Pictures no longer kept.", ["reason"], **at)
        self.upload_bytes = Gauge("self1e_upload_bytes", "Bodies of requests in memory.", **at)

    def text(self) -> bytes:
        """Write all of them."""
        return generate_latest(self.registry)
