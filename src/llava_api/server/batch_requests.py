"""Runs the requests of batches through the same endpoints as requests over HTTP.

The endpoints are in an application of their own, without authentication, origins and a body's size on the wire. The
owner is known, and the tokens count as the owner's. How long a batch's request waits says nothing about the server, so
it is not in the histograms of interactive requests, and its log line is of level debug.
"""

import copy
from contextlib import suppress

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.batch.lines import Answer
from llava_api.batch.room import LineRun, Room
from llava_api.batch.runner import Runner
from llava_api.batch.store import BatchStore
from llava_api.errors import ErrorCode
from llava_api.limits.account import BatchLimiter
from llava_api.limits.keys import KeyRing
from llava_api.limits.table import caller_of_key
from llava_api.server import error_handlers
from llava_api.server.answer import CLIENT_CLOSED_REQUEST
from llava_api.server.endpoint import routes_of
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.middleware.access import Access
from llava_api.server.middleware.availability import Availability, refusal
from llava_api.server.middleware.exchange import ExchangeMiddleware
from llava_api.server.routes import chat, completions, responses
from llava_api.server.services import Services
from llava_api.server.state import AppState, begin_batch_request, exchange_of, owner_of_batch, set_state
from llava_api.telemetry.metrics import Metrics
from llava_api.telemetry.record import RequestRecord


class TokensOnly:
    """``RequestMetrics`` that count what the owner has used."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def begin(self, record: RequestRecord) -> None: ...

    def end(self, record: RequestRecord) -> None:
        if record.outcome == "ok":
            self.metrics.end_tokens(record)

    def reject(self, code: ErrorCode | None) -> None: ...


class Owner:
    """Notes the batch's owner in the exchange."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).key_name = owner_of_batch(scope)
        await self.app(scope, receive, send)


class BatchRequests:
    """``ask`` runs one request and returns its answer, whatever it is."""

    def __init__(self, services: Services, lifecycle: Lifecycle) -> None:
        endpoints = (*chat.ENDPOINTS, *responses.ENDPOINTS, *completions.ENDPOINTS)
        self.services = services
        self.limiter = BatchLimiter(services.limiter.table, services.limiter.windows)
        paths = {endpoint.pattern for endpoint in endpoints}
        self.app = Starlette(routes=routes_of(endpoints))
        state = AppState()
        state.services = services
        set_state(self.app, state)
        # The middleware that is added last is called first.
        self.app.add_middleware(Availability, lifecycle=lifecycle, is_loaded=lambda: True, open_paths=())
        self.app.add_middleware(Owner)
        metrics = TokensOnly(services.metrics)
        self.app.add_middleware(
            Access,
            metrics=metrics,
            routes=paths,
            probes=paths,
            tracing=None,
            log_prompts=services.settings.log_prompts,
        )
        self.app.add_middleware(ExchangeMiddleware)
        error_handlers.install(self.app)

    async def ask(self, run: LineRun, owner: str, path: str, body: bytes) -> Answer:
        services = copy.copy(self.services)
        services.turns, services.limiter, services.enter = run, self.limiter, lambda: run
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-length", str(len(body)).encode())],
        }
        begin_batch_request(scope, services, owner)
        sent = SentAnswer()
        with suppress(Exception):
            # Starlette raises what was unforeseen again, after it has been logged and answered.
            await self.app(scope, receive_once(body, run), sent.send)
        return Answer(sent.status or CLIENT_CLOSED_REQUEST, sent.request_id, b"".join(sent.pieces))


class SentAnswer:
    def __init__(self) -> None:
        self.status = 0
        self.request_id = ""
        self.pieces: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.request_id = dict(message["headers"]).get(b"x-request-id", b"").decode()
        else:
            self.pieces.append(message.get("body", b""))


def receive_once(body: bytes, run: LineRun) -> Receive:
    """A client that sends its body and leaves when the run is given up."""
    waiting = [body]

    async def receive() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        await run.given_up.wait()
        return {"type": "http.disconnect"}

    return receive


async def start_batches(services: Services, keys: KeyRing, lifecycle: Lifecycle) -> None:
    """Go on with the batches that are on the disk, if there is --data-dir."""
    if services.data is None:
        return
    database, files = services.data.database, services.data.files
    table = services.limiter.table
    services.batches = Runner(
        services.settings,
        BatchStore(database),
        files,
        Room(services.capacity),
        BatchRequests(services, lifecycle).ask,
        services.metrics,
        # A key that was removed may come back: until then its batches rest.
        is_owner=lambda owner: owner in keys.names() if keys.needed else owner == "",
        weight_of=lambda owner: table.limits_of(caller_of_key(owner)).weight,
        may_start=lambda: refusal(lifecycle, loaded=True) is None,
    )
    await services.batches.start()
