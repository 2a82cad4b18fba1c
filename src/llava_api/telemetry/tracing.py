"""Traces for OpenTelemetry: one of each request, made of its record when it has ended.

The spans' times are the record's, so nothing is measured or carried along while a request is worked on, and nothing of
OpenTelemetry is imported unless ``--otlp-endpoint`` is set. The caller's W3C context is continued; it is not sent on:
hosts of pictures learn nothing of it. Attributes are those of OpenTelemetry's conventions for HTTP and generative AI;
no prompt, no picture, no URL of one.

Sampling and the rest of the SDK is set as everywhere, by OTEL_* variables (OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS).
"""

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llava_api import __version__
from llava_api.errors import StartupError
from llava_api.telemetry.log_lines import shown
from llava_api.telemetry.metrics import METHODS
from llava_api.telemetry.record import AnswerRecord, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

EXPORT_SECONDS = 5
"""Longest time for one export."""
CLOSING_SECONDS = 5
"""Longest time that the last export holds up the end of the server."""
NOT_INSTALLED = "--otlp-endpoint needs OpenTelemetry, which is not installed: pip install 'llava-api[otel]'"
CARRIED = (b"traceparent", b"tracestate")
"""Headers of the W3C trace context."""


class Tracing:
    """``processor``: where ended spans go."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Variables win over what is given here, but for those it names itself.
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "llava-api"}))
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("llava_api", __version__)
        self.propagator = TraceContextTextMapPropagator()

    def tell(self, record: RequestRecord) -> str:
        """Make a request's spans, and hand them over without waiting. The id of its trace, in hexadecimal."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        method = record.method if record.method in METHODS else "_OTHER"
        span = self.tracer.start_span(
            f"{'HTTP' if method == '_OTHER' else method} {record.route}",
            self.propagator.extract(record.traced),
            SpanKind.SERVER,
            start_time=moment(record, record.started),
            attributes=http_attributes(record, method),
        )
        outcome = record.outcome
        if outcome != "ok":
            span.set_attribute("error.type", record.error or (str(record.status) if outcome == "refused" else outcome))
        if outcome in ("failed", "cut"):
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for step in record.steps:
            self.child(record, inside, f"image {step.name}", step.started, step.ended, {}, failed=not step.ok)
        for answer in record.answers:
            self.tell_answer(record, answer, inside)
        span.end(moment(record, record.ended))
        return format_trace_id(span.get_span_context().trace_id)

    def tell_answer(self, record: RequestRecord, answer: AnswerRecord, inside: "Context") -> None:
        if not answer.waiting_from:
            return
        admitted = answer.admitted or answer.ended or record.ended
        self.child(record, inside, "queue", answer.waiting_from, admitted, {}, failed=not answer.admitted)
        if answer.admitted:
            operation = (
                "text_completion" if record.route.endswith("/completions") and "chat" not in record.route else "chat"
            )
            self.child(
                record,
                inside,
                f"{operation} {shown(record.model or '')}",
                answer.admitted,
                answer.ended or record.ended,
                engine_attributes(record, answer, operation),
                failed=record.outcome == "failed",
                first_token=answer.first_token,
            )

    def child(
        self,
        record: RequestRecord,
        inside: "Context",
        name: str,
        started: float,
        ended: float,
        attributes: dict[str, Any],
        *,
        failed: bool = False,
        first_token: float = 0.0,
    ) -> None:
        from opentelemetry.trace import Status, StatusCode

        span = self.tracer.start_span(name, inside, attributes=attributes, start_time=moment(record, started))
        if first_token:
            span.add_event("first_token", timestamp=moment(record, first_token))
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(moment(record, ended))

    def close(self) -> None:
        """Send what waits; blocks, but for no longer than CLOSING_SECONDS, and then the rest is lost."""
        # The SDK waits for each batch by itself, up to half a minute in all.
        closing = threading.Thread(target=self.provider.shutdown, daemon=True, name="traces")
        closing.start()
        closing.join(CLOSING_SECONDS)


def moment(record: RequestRecord, counter: float) -> int:
    """A moment of ``perf_counter`` -> Unix nanoseconds."""
    return record.started_unix_ns + round((counter - record.started) * 1e9)


def http_attributes(record: RequestRecord, method: str) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "url.scheme": record.scheme,
        "url.path": shown(record.path, 200),
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


def engine_attributes(record: RequestRecord, answer: AnswerRecord, operation: str) -> dict[str, Any]:
    """OpenTelemetry's for an inference, and the pictures'."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "llava-api",
        "gen_ai.request.model": shown(record.model or ""),
        "gen_ai.response.model": shown(record.model or ""),
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
    """``endpoint``: --otlp-endpoint; without it there is none. Raises StartupError where it cannot be done."""
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
