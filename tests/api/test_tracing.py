"""The trace of a request: complete, in the caller's trace, and nothing of it for anybody else."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llava_api.images.fetch import Resolve
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.telemetry.record import RequestRecord
from llava_api.telemetry.tracing import CLOSING_SECONDS, Tracing, open_tracing
from tests.api.test_chat import CHAT, image_message, text_body
from tests.support.endpoints import PROBES
from tests.support.scripted_engine import ScriptedEngine
from tests.support.web import Web

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value"}


@pytest.fixture
def settings_made(web: Web) -> dict[str, Any]:
    return web.settings()


@pytest.fixture
def resolver(web: Web) -> Resolve:
    return web.names


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    made = Tracing(SimpleSpanProcessor(exporter))
    yield made
    made.close()


@pytest_asyncio.fixture
async def traced(app: FastAPI, tracing: Tracing) -> AsyncIterator[httpx.AsyncClient]:
    """The same server, which tells of what it does."""
    services = app.state.services
    second = create_app(services.settings, KeyRing(services.settings), services, tracing=tracing)
    transport = httpx.ASGITransport(second, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


def spans_of(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    spans = exporter.get_finished_spans()
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


async def test_the_tree_of_a_streamed_question_about_an_image(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter, web: Web, engine: ScriptedEngine
) -> None:
    engine.pause_seconds = 0.01
    body = {"model": "tiny", "messages": [image_message("What?", web.host.url("/good.png?secret"))], "stream": True}
    reply = await traced.post(CHAT, json={**body, "max_tokens": 50}, headers=CALLER)
    assert reply.text.endswith("data: [DONE]\n\n")
    spans = spans_of(exporter)
    assert list(spans) == ["image fetch", "image decode", "queue", "chat tiny", f"POST {CHAT}"]
    server = spans[f"POST {CHAT}"]
    assert server.kind == SpanKind.SERVER
    assert server.parent is not None
    assert (f"{server.parent.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, PARENT)
    assert server.context is not None
    assert server.context.trace_state["vendor"] == "value"
    for name, span in spans.items():
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.start_time is not None and span.end_time is not None  # noqa: PT018
        assert span.start_time <= span.end_time
        if span is not server:
            assert span.parent == server.context, name
            assert server.start_time <= span.start_time  # type: ignore[operator]
            assert span.end_time <= server.end_time  # type: ignore[operator]
    order = [spans[name] for name in ("image fetch", "image decode", "queue", "chat tiny")]
    assert all(a.end_time <= b.start_time for a, b in pairwise(order))  # type: ignore[operator]
    assert server.attributes is not None
    said = dict(server.attributes)
    assert said.pop("llava_api.request_id") == reply.headers["x-request-id"]
    assert said == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": CHAT,
        "client.address": "127.0.0.1",
        "llava_api.key_name": "-",
        "llava_api.outcome": "ok",
    }
    inference = spans["chat tiny"]
    assert inference.attributes is not None
    said = dict(inference.attributes)
    assert said.pop("gen_ai.response.time_to_first_chunk") > 0  # type: ignore[operator]
    assert said.pop("gen_ai.usage.input_tokens") > 36  # type: ignore[operator]
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llava-api",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.stream": True,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.response.finish_reasons": ("stop",),
        "llava_api.images": 1,
        "llava_api.image_tokens": 36,
    }
    [first_token] = inference.events
    assert first_token.name == "first_token"
    assert inference.start_time < first_token.timestamp < inference.end_time  # type: ignore[operator]
    # Nothing of it for the host of the image, and nothing of the image's address in it.
    [asked] = web.host.requests
    assert asked.headers.keys().isdisjoint({"traceparent", "tracestate", "baggage"})
    assert all("pictures.test" not in span.to_json() and "secret" not in span.to_json() for span in spans.values())


async def test_without_a_caller_it_is_a_trace_of_its_own(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    for header in ({}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"}):
        exporter.clear()
        await traced.post("/v1/completions", json={"model": "tiny", "prompt": "x"}, headers=header)
        spans = spans_of(exporter)
        assert list(spans) == ["queue", "text_completion tiny", "POST /v1/completions"]
        assert spans["POST /v1/completions"].parent is None


async def test_what_a_caller_does_not_want_recorded_is_not(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter
) -> None:
    await traced.post(CHAT, json=text_body(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert exporter.get_finished_spans() == ()


async def test_errors_are_marked(
    traced: httpx.AsyncClient, exporter: InMemorySpanExporter, engine: ScriptedEngine
) -> None:
    await traced.post(CHAT, json={**text_body(), "model": "other"})
    engine.fail_at = 1
    await traced.post(CHAT, json=text_body(stream=True))
    servers = [span for span in exporter.get_finished_spans() if span.kind == SpanKind.SERVER]
    told = [(span.attributes["error.type"], span.status.status_code) for span in servers if span.attributes]
    # A client's mistake is no error of the server's span, as the conventions have it.
    assert told == [("model_not_found", StatusCode.UNSET), ("engine_failed", StatusCode.ERROR)]


async def test_health_leaves_no_trace(traced: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    for path in PROBES:
        assert (await traced.get(path)).status_code == 200
    assert exporter.get_finished_spans() == ()


async def test_odd_clients_do_no_harm(traced: httpx.AsyncClient, exporter: InMemorySpanExporter) -> None:
    odd = {"traceparent": b"\x80" * 5000, "tracestate": b",".join([b"a=b"] * 5000)}
    assert (await traced.request("X" * 500, "/" + "y" * 5000, headers=list(odd.items()))).status_code == 404
    assert (await traced.post(CHAT, json={**text_body(), "model": "m" * 5000})).status_code == 404
    for span in exporter.get_finished_spans():
        assert len(span.name) < 100
        assert all(len(str(value)) < 300 for value in (span.attributes or {}).values())


async def test_a_failure_to_export_harms_nobody(app: FastAPI, tracing: Tracing) -> None:
    def fail(record: object) -> str:
        raise RuntimeError("the collector is on fire")

    services = app.state.services
    tracing.export = fail  # type: ignore[method-assign]
    second = create_app(services.settings, KeyRing(services.settings), services, tracing=tracing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(second), base_url="http://test") as client:
        assert (await client.post(CHAT, json=text_body())).status_code == 200
        page = (await client.get("/metrics")).text
        assert 'llava_api_request_outcomes_total{model="tiny",outcome="ok"} 1.0' in page


class Collector(BaseHTTPRequestHandler):
    """Keeps what it is sent in its server's ``received``."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, self.headers["content-type"], body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def ended_record() -> RequestRecord:
    record = RequestRecord(method="GET", status=200, complete=True, traced=CALLER)
    record.end("/v1/models", None)
    return record


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_collector_is_sent_the_spans(path: str) -> None:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    received = server.received = []  # type: ignore[attr-defined]
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        tracing = open_tracing(f"http://127.0.0.1:{server.server_port}{path}")
        assert tracing is not None
        assert tracing.export(ended_record()) == TRACE
        tracing.close()
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    [(at, kind, body)] = received
    assert (at, kind) == ("/v1/traces", "application/x-protobuf")
    assert bytes.fromhex(TRACE) in body


def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = open_tracing(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert tracing is not None
        before = time.perf_counter()
        for _ in range(2000):
            tracing.export(ended_record())
        tracing.close()
        assert time.perf_counter() - before < CLOSING_SECONDS + 5


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Blocker())
from llava_api.cli.main import main
main(["serve", "/no/such/folder", "--port", "0", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--otlp-endpoint", "http://127.0.0.1:4318"], "pip install 'llava-api[otel]'"),
        (["--otlp-endpoint", "collector:4318"], "write it as http://HOST:4318"),
        ([], "there is no folder"),
    ],
)
def test_without_the_extra(flags: list[str], words: str) -> None:
    """With the setting the server says what to install; without it nothing of OpenTelemetry is looked for."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
