"""OpenTelemetry traces: one for each request, made from its record when it has ended.

The spans' times are the record's, so tracing costs nothing while a request is answered. OpenTelemetry is imported only
with ``--otlp-endpoint``. The caller's W3C trace context is continued, but not sent on to image hosts. Attributes follow
OpenTelemetry's conventions for HTTP and generative AI, and contain no prompt, no image and no image URL.

Sampling and the rest of the SDK are set by its OTEL_* variables (OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS).
"""

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llava_api import __version__
from llava_api.errors import StartupError
from llava_api.telemetry.log_lines import cut
from llava_api.telemetry.metrics import METHODS
from llava_api.telemetry.record import AnswerRecord, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORT_SECONDS = 5
"""Longest time for one export."""
CLOSING_SECONDS = 5
"""Longest time that the last export delays the server's end."""
NOT_INSTALLED = "--otlp-endpoint needs OpenTelemetry, which is not installed: pip install 'llava-api[otel]'"
CARRIED = (b"traceparent", b"tracestate")
"""Headers of the W3C trace context."""


class Tracing:
    """``processor`` receives the ended spans."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # A name from the OTEL_* variables wins over ours. Given to Resource.create, ours would win.
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "llava-api"}))
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("llava_api", __version__)
        self.propagator = TraceContextTextMapPropagator()

    def export(self, record: RequestRecord) -> str:
        """Queue a request's spans for sending, without waiting. Returns the trace id in hexadecimal."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        def nanoseconds(counter: float) -> int:
            """``perf_counter`` seconds -> Unix nanoseconds."""
            return record.started_unix_ns + round((counter - record.started) * 1e9)

        def add_child(
            name: str,
            started: float,
            ended: float,
            failed: bool,
            attributes: dict[str, Any] | None = None,
            first_token: float = 0.0,
        ) -> None:
            child = self.tracer.start_span(name, parent, attributes=attributes, start_time=nanoseconds(started))
            if first_token:
                child.add_event("first_token", timestamp=nanoseconds(first_token))
            if failed:
                child.set_status(Status(StatusCode.ERROR))
            child.end(nanoseconds(ended))

        method = record.method if record.method in METHODS else "_OTHER"
        span = self.tracer.start_span(
            f"{'HTTP' if method == '_OTHER' else method} {record.route}",
            self.propagator.extract(record.traced),
            SpanKind.SERVER,
            start_time=nanoseconds(record.started),
            attributes=http_attributes(record, method),
        )
        parent = set_span_in_context(span)
        outcome = record.outcome
        if outcome != "ok":
            span.set_attribute("error.type", record.error or (str(record.status) if outcome == "refused" else outcome))
        if outcome in ("failed", "cut"):
            span.set_status(Status(StatusCode.ERROR))
        for step in record.steps:
            add_child(f"image {step.name}", step.started, step.ended, not step.ok)
        for answer in record.answers:
            ended = answer.ended or record.ended
            if answer.waiting_from:
                add_child("queue", answer.waiting_from, answer.admitted or ended, not answer.admitted)
            if answer.admitted:
                attributes = engine_attributes(record, answer)
                name = f"{attributes['gen_ai.operation.name']} {cut(record.model or '')}"
                add_child(name, answer.admitted, ended, outcome == "failed", attributes, answer.first_token)
        span.end(nanoseconds(record.ended))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send the queued spans. Blocks for CLOSING_SECONDS at most; spans left then are lost."""
        # The SDK has a timeout for each batch only, which can add up to half a minute.
        closing = threading.Thread(target=self.provider.shutdown, daemon=True, name="traces")
        closing.start()
        closing.join(CLOSING_SECONDS)


def http_attributes(record: RequestRecord, method: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "url.scheme": record.scheme,
        "url.path": cut(record.path, 200),
        "client.address": record.client,
        "llava_api.request_id": record.request_id,
        "llava_api.key_name": record.key,
        "llava_api.outcome": record.outcome,
    }
    if record.route != "other":
        attributes["http.route"] = record.route
    if record.status:
        attributes["http.response.status_code"] = record.status
    return attributes


def engine_attributes(record: RequestRecord, answer: AnswerRecord) -> dict[str, Any]:
    is_completion = record.route.endswith("/completions") and "chat" not in record.route
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "text_completion" if is_completion else "chat",
        "gen_ai.provider.name": "llava-api",
        "gen_ai.request.model": cut(record.model or ""),
        "gen_ai.response.model": cut(record.model or ""),
        "gen_ai.request.max_tokens": answer.max_tokens,
        "gen_ai.request.temperature": answer.temperature,
        "gen_ai.request.stream": record.stream,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": answer.cached_tokens,
        "gen_ai.response.finish_reasons": answer.finish_reasons,
        "llava_api.images": answer.images,
        "llava_api.image_tokens": answer.image_tokens,
    }
    if answer.choices > 1:
        attributes["gen_ai.request.choice.count"] = answer.choices
    if answer.first_token:
        attributes["gen_ai.response.time_to_first_chunk"] = answer.first_token - answer.waiting_from
    return attributes


def open_tracing(endpoint: str | None) -> Tracing | None:
    """``endpoint``: --otlp-endpoint. Raises StartupError for a wrong URL, and if OpenTelemetry is not installed."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise StartupError("--otlp-endpoint: write it as http://HOST:4318 (OTLP over HTTP)")
    if parts.path in ("", "/"):
        endpoint = parts._replace(path="/v1/traces").geturl()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError(NOT_INSTALLED) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)))
