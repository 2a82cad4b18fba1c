"""The metrics of a router. Clients cannot create label values, as in ``metrics.py``."""

import asyncio
from collections.abc import Callable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from llava_api.errors import ErrorCode
from llava_api.telemetry.metrics import METHODS, MOST_MODELS, NO_CODE, OTHER, STATES, TOTAL_SECONDS, State, page
from llava_api.telemetry.record import OUTCOMES, RequestRecord


class RouterMetrics:
    """All methods but ``page`` run on the event loop."""

    def __init__(self, versions: Mapping[str, str | None]) -> None:
        registry = self.registry = CollectorRegistry()
        self.running = 0
        self.models: set[str] = set()
        """Values of the label ``model``."""
        self.sample_backends: Callable[[], None] = lambda: None
        """Sets the gauges that mirror the state of the backends."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"llava_api_router_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"llava_api_router_{name}", text, labels, registry=registry)

        self.requests = counter(
            "requests_total",
            "Requests that ended. key: the API key's name.",
            *("route", "method", "status", "key", "model"),
        )
        self.outcomes = counter("request_outcomes_total", "Requests by how they ended, without probes.", "outcome")
        self.rejections = counter("rejections_total", "Errors that the router itself sent, by code.", "reason")
        self.retries = counter(
            "retries_total", "Requests that another backend got because one was lost before it answered.", "model"
        )
        self.duration = Histogram(
            "llava_api_router_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            ("route",),
            registry=registry,
            buckets=TOTAL_SECONDS,
        )
        self.own_state = gauge("state", "1 for the state of the router.", "state")
        self.in_progress = gauge("requests_in_progress", "Open requests.")
        self.waiting = gauge("waiting_requests", "Requests that wait for a server of a sleeping model.", "model")
        self.tasks = gauge("asyncio_tasks", "Tasks of the event loop.")
        self.backend_up = gauge("backend_up", "1 if the backend takes requests.", "model", "backend")
        self.backend_requests = gauge("backend_requests", "Open requests at the backend.", "backend")
        build = {name: found or "" for name, found in versions.items()}
        gauge("build_info", "Versions; 1.", *build).labels(**build).set(1)
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)
        registry.register(REGISTRY)

    def begin(self, record: RequestRecord) -> None:
        self.running += 1

    def end(self, record: RequestRecord) -> None:
        self.running -= 1
        method = record.method if record.method in METHODS else OTHER
        self.requests.labels(record.route, method, str(record.status), record.key, self.model_of(record)).inc()
        self.duration.labels(record.route).observe(record.seconds)
        if not record.probe:
            self.outcomes.labels(record.outcome).inc()
            if record.error is not None:
                self.reject(record.error or None)

    def retry(self, record: RequestRecord) -> None:
        self.retries.labels(self.model_of(record)).inc()

    def model_of(self, record: RequestRecord) -> str:
        """The router notes only models that there are, but adapters come and go: when there were very many, "other"."""
        name = record.model or ""
        if len(self.models) < MOST_MODELS:
            self.models.add(name)
        return name if name in self.models else OTHER

    def reject(self, code: ErrorCode | None) -> None:
        self.rejections.labels(code or NO_CODE).inc()

    def sample(self, state: State) -> None:
        """Set the gauges. To be called on the event loop before ``page``."""
        for each in STATES:
            self.own_state.labels(each).set(each == state)
        self.in_progress.set(self.running)
        self.tasks.set(len(asyncio.all_tasks()))
        self.sample_backends()

    def page(self, accept: str) -> tuple[bytes, str]:
        return page(self.registry, accept)
