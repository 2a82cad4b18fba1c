"""The server's metrics, and the page that Prometheus reads: ours, then those of vLLM and Python.

Clients cannot create label values: routes, methods, keys, models and error codes come from closed sets, and everything
else is "other". Each ``Metrics`` has a registry of its own.

A new metric belongs in ``Metrics.__init__``. A gauge that mirrors a value of another object, such as the length of a
queue, is set in ``Services.sample``, or read by a function that is given to it (``Gauge.set_function``).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector

from llava_api.errors import ErrorCode
from llava_api.telemetry.record import GAP_BOUNDS_SECONDS, OUTCOMES, Loss, RequestRecord

State = Literal["loading", "ready", "restarting", "draining", "lost"]
"""lost: the engine is gone for good, and the process ends."""

MOST_MODELS = 1000
OTHER = "other"
NONE = "-"
"""The label of requests that named no model."""
OPENMETRICS = "application/openmetrics-text"
STATES: tuple[State, ...] = get_args(State)
LOSSES: tuple[Loss, ...] = get_args(Loss)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BATCH_OUTCOMES = ("completed", "failed", "expired", "put_back")
NO_CODE = "invalid_request"
"""The label of errors without a code."""

TOTAL_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 240, 480)
FIRST_TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80, 160),
)
QUEUE_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)
FETCH_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
DECODE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class GapHistogram(Collector):
    """Times between tokens, added once a request: prometheus_client's ``Histogram`` takes 1 µs for every token."""

    NAME = "llava_api_inter_token_latency_seconds"
    HELP = "Time from one token of an answer to the next, as it left the engine for the client."

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counts = [0] * (len(GAP_BOUNDS_SECONDS) + 1)
        self.seconds = 0.0
        registry.register(self)

    def add(self, counts: list[int], seconds: float) -> None:
        self.counts = [before + more for before, more in zip(self.counts, counts, strict=True)]
        self.seconds += seconds

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self.NAME, self.HELP)]

    def collect(self) -> Iterable[Metric]:
        so_far, buckets = 0, []
        for bound, count in zip((*map(str, GAP_BOUNDS_SECONDS), "+Inf"), self.counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        family = HistogramMetricFamily(self.NAME, self.HELP)
        family.add_metric([], buckets, self.seconds)
        return [family]


class WithModel(Collector):
    """A registry whose series of ours all have the served model as a label, so that alerts can be by model."""

    def __init__(self, registry: Collector, model: str) -> None:
        self.registry = registry
        self.label = {"model": model} if model else {}

    def collect(self) -> Iterable[Metric]:
        for family in self.registry.collect():
            if family.name.startswith("llava_api_"):
                # Counts of requests have the name that the request used, which may be an adapter's.
                family.samples = [sample._replace(labels=self.label | sample.labels) for sample in family.samples]
            yield family


class RequestMetrics(Protocol):
    """What is told of each request. All methods but ``page`` run on the event loop."""

    def begin(self, record: RequestRecord) -> None: ...

    def end(self, record: RequestRecord) -> None: ...

    def reject(self, code: ErrorCode | None) -> None:
        """Count an error that was sent to a caller, including those from below the app, which have no record."""


class Metrics:
    """The metrics of one application. All methods but ``page`` run on the event loop."""

    def __init__(self, versions: Mapping[str, str | None]) -> None:
        registry = self.registry = CollectorRegistry()
        self.sample_services: Callable[[], None] = lambda: None
        """Sets the gauges that mirror the state of the loaded server."""
        self.models: frozenset[str] = frozenset()
        """Names that labels may contain."""
        self.model = ""
        """The served model."""
        self.running = 0

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"llava_api_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"llava_api_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"llava_api_{name}", text, labels, registry=registry, buckets=tuple(buckets))

        # Requests
        self.requests = counter(
            "requests_total", "Requests that ended. key: the API key's name.", "route", "method", "status", "key"
        )
        self.outcomes = counter(
            "request_outcomes_total", "Requests by how they ended, streams included.", "outcome", "model"
        )
        self.failures = counter(
            "request_failures_total", "Requests that the server or its engine failed, streams included.", "model", "key"
        )
        self.rejections = counter("rejections_total", "Errors sent to callers, in streams too, by code.", "reason")
        self.ignored_fields = counter("ignored_fields_total", "Requests with an ignored field, by its name.", "field")
        self.in_progress = gauge("requests_in_progress", "Open requests, to /health and /metrics too.")
        self.duration = histogram(
            "request_duration_seconds", "Time from a request to the last byte of its answer.", TOTAL_SECONDS, "route"
        )
        # Answers
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "Time from a request to the engine's first token: images, queue and prefill.",
            FIRST_TOKEN_SECONDS,
        )
        self.gaps = GapHistogram(registry)
        self.prompt_tokens = counter("prompt_tokens_total", "Tokens of prompts, including images.", "model", "key")
        self.completion_tokens = counter("completion_tokens_total", "Tokens of answers.", "model", "key")
        # The queue in front of the engine
        self.queue_wait = histogram("queue_wait_seconds", "Time that prompts waited for their turn.", QUEUE_SECONDS)
        self.queue_depth = gauge("queue_depth", "Prompts that wait for their turn.")
        self.slots_in_use = gauge("slots_in_use", "Answers that are being generated.")
        self.slots = gauge("slots", "Answers that can be generated at the same time.")
        # Images
        self.image_fetch = histogram(
            "image_fetch_seconds",
            "Time to fetch an image from the web, including the wait for a place.",
            FETCH_SECONDS,
            "outcome",
        )
        self.image_decode = histogram(
            "image_decode_seconds",
            "Time to decode and resize an image, including the wait for a thread.",
            DECODE_SECONDS,
        )
        self.image_cache = counter("image_cache_lookups_total", "Look-ups in the cache of prepared images.", "result")
        self.image_cache_bytes = gauge("image_cache_bytes", "Memory of the cache of prepared images.")
        self.images_waiting = gauge("images_waiting", "Images that wait for a thread.")
        self.inflight_bytes = gauge("inflight_bytes", "Memory that requests hold: bodies, fetched images, pixels.")
        self.stored_files = gauge("stored_files", "Files in --data-dir, counted every half minute.", "purpose")
        self.stored_bytes = gauge("stored_bytes", "Bytes of the files in --data-dir.", "purpose")
        self.images = counter("images_total", "Images of requests.")
        self.image_bytes = counter("image_bytes_total", "Bytes of encoded images.")
        self.image_pixels = counter("image_pixels_total", "Pixels of images, as sent.")
        self.image_tokens = counter("image_tokens_total", "Tokens of images.")
        # Batches
        self.batches = gauge("batches", "Batches that have not ended.")
        self.batch_requests_running = gauge("batch_requests_running", "Requests of batches that are being run.")
        self.batch_requests_waiting = gauge("batch_requests_waiting", "Requests of batches that wait for their turn.")
        self.batch_requests = counter(
            "batch_requests_total",
            "Runs of batches' requests by how they ended. put_back: broken off for others, to be run again.",
            "outcome",
        )
        # The process
        self.state = gauge("state", "1 for what the server does now: /health/ready is 200 in state ready.", "state")
        self.tasks = gauge("asyncio_tasks", "Tasks of the event loop.")
        self.connections = gauge("connections", "Open connections to the port of the API.")
        self.rate_limit_fallback = gauge(
            "rate_limit_fallback", "1 while Redis does not answer, and this server counts rate limits for itself."
        )
        # The engine
        self.load_bytes = gauge("load_bytes", "Weights that an engine has loaded which is being started, else 0.")
        self.checkpoint_bytes = gauge("checkpoint_bytes", "Size of the files of the checkpoint.")
        self.engine_restarts = counter("engine_restarts_total", "Restarts of the engine, including failed ones.")
        self.engine_lost = gauge(
            "engine_lost_timestamp_seconds", "When this process last lost an engine, by the reason; 0: never.", "reason"
        )
        self.engine_silence = gauge(
            "engine_silence_seconds", "Time since an engine that has work last gave a token of any answer."
        )
        self.engine_stall = gauge(
            "engine_stall_seconds", "--engine-stall-seconds: an engine that is silent for longer is replaced."
        )
        build = {name: found or "" for name, found in versions.items()}
        gauge("build_info", "Versions; 1.", *build).labels(**build).set(1)
        self.model_info = gauge(
            "model_info", "The served model; 1.", "model", "family", "image_mode", "version", "format"
        )
        for ended in BATCH_OUTCOMES:
            self.batch_requests.labels(ended)
        for lost in LOSSES:
            self.engine_lost.labels(lost)
        for reason in sorted([NO_CODE, *ErrorCode]):
            self.rejections.labels(reason)
        for fetched in ("ok", "failed"):
            self.image_fetch.labels(fetched)
        for result in ("hit", "miss"):
            self.image_cache.labels(result)
        # vLLM and prometheus_client register theirs there.
        registry.register(REGISTRY)

    def serve_model(self, names: Iterable[str], model: str, **labels: str) -> None:
        """Publish the model. ``names``: all model names that requests may use, including adapters.

        Earlier names stay: an adapter that was unloaded may still be answering. When there have been very many, such as
        an adapter for each user, new ones are "other".
        """
        new = [name for name in names if name not in self.models]
        self.models |= frozenset(new[: MOST_MODELS - len(self.models)])
        self.model = model
        for name in (*self.models, NONE, OTHER):
            for outcome in OUTCOMES:
                # A rate does not see the first increase of a series that was not there before.
                self.outcomes.labels(outcome, name)
        self.model_info.clear()
        self.model_info.labels(model=model, **labels).set(1)

    def publish_certificate(self, expires_at: Callable[[], float]) -> None:
        """Without TLS there is no such series. ``expires_at``: Unix time."""
        name = "llava_api_tls_certificate_expiry_timestamp_seconds"
        gauge = Gauge(name, "When the server's certificate, or one that signed it, expires.", registry=self.registry)
        gauge.set_function(expires_at)

    def publish_files(self, totals: Mapping[str, tuple[int, int]]) -> None:
        """``totals``: purpose -> number and bytes of files."""
        self.stored_files.clear()
        self.stored_bytes.clear()
        for purpose, (count, size) in totals.items():
            self.stored_files.labels(purpose).set(count)
            self.stored_bytes.labels(purpose).set(size)

    def begin(self, record: RequestRecord) -> None:
        self.running += 1
        record.observe_queue_wait = self.queue_wait.observe
        record.observe_first_token = self.first_token.observe

    def end(self, record: RequestRecord) -> None:
        self.running -= 1
        method = record.method if record.method in METHODS else OTHER
        self.requests.labels(record.route, method, str(record.status), record.key).inc()
        self.duration.labels(record.route).observe(record.seconds)
        if record.probe:
            # Errors that probes get while the model loads are not failures.
            return
        model, outcome = self.model_label(record), record.outcome
        self.outcomes.labels(outcome, model).inc()
        if outcome == "failed":
            self.failures.labels(model, record.key).inc()
        if record.error is not None:
            self.reject(record.error or None)
        for name in record.ignored_labels:
            self.ignored_fields.labels(name).inc()
        self.end_tokens(record)
        for answer in record.answers:
            if answer.gap_seconds:
                self.gaps.add(answer.gaps, answer.gap_seconds)

    def model_label(self, record: RequestRecord) -> str:
        return NONE if record.model is None else record.model if record.model in self.models else OTHER

    def lose_engine(self, why: Loss) -> None:
        self.engine_lost.labels(why).set_to_current_time()

    def reject(self, code: ErrorCode | None) -> None:
        """Count an error that was sent to a caller, including those from below the app, which have no record."""
        self.rejections.labels(code or NO_CODE).inc()

    def end_tokens(self, record: RequestRecord) -> None:
        """Count the images and the tokens of a request, interactive or of a batch."""
        if record.images or record.steps:
            self.end_images(record)
        if record.answers:
            model = self.model_label(record)
            self.prompt_tokens.labels(model, record.key).inc(record.prompt_tokens)
            self.completion_tokens.labels(model, record.key).inc(record.completion_tokens)

    def end_images(self, record: RequestRecord) -> None:
        self.images.inc(record.images)
        self.image_bytes.inc(record.image_bytes)
        self.image_pixels.inc(record.image_pixels)
        self.image_tokens.inc(record.image_tokens)
        if record.cache_hits:
            self.image_cache.labels("hit").inc(record.cache_hits)
        if record.cache_misses:
            self.image_cache.labels("miss").inc(record.cache_misses)
        for step in record.steps:
            if step.name == "fetch":
                self.image_fetch.labels("ok" if step.ok else "failed").observe(step.seconds)
            else:
                self.image_decode.observe(step.seconds)

    def sample(self, state: State) -> None:
        """Set the gauges. To be called on the event loop before ``page``."""
        for each in STATES:
            self.state.labels(each).set(each == state)
        self.in_progress.set(self.running)
        self.tasks.set(len(asyncio.all_tasks()))
        self.sample_services()

    def page(self, accept: str) -> tuple[bytes, str]:
        return page(WithModel(self.registry, self.model), accept)


def page(registry: Collector, accept: str) -> tuple[bytes, str]:
    """The page and its content type, in the format that ``accept`` asks for.

    Takes milliseconds, and may run in any thread.
    """
    if choose_encoder(accept)[1].startswith(OPENMETRICS):
        # The default escaping turns half of vLLM's names into vllm_* (prometheus/client_python#1177).
        made: bytes = openmetrics.generate_latest(registry, escaping=ALLOWUTF8)  # type: ignore[no-untyped-call]
        return made, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
