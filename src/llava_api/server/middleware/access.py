"""One record of each request. When its exchange ends, it goes into the metrics, the log and the trace.

It comes before all middleware that may answer, so that their refusals are reported too. An error in here
must not harm a request.
"""

import logging
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.errors import ErrorCode
from llava_api.server.exchange import Exchange
from llava_api.server.state import exchange_of
from llava_api.telemetry.log_lines import FIELDS, request_fields
from llava_api.telemetry.metrics import RequestMetrics
from llava_api.telemetry.record import RECORD, RequestRecord
from llava_api.telemetry.tracing import CARRIED, Tracing

log = logging.getLogger("llava_api.access")
IGNORED = b"x-llava-ignored"
"""Header of answers: the request's fields that were ignored."""


class Access:
    """``routes``: templates of the paths that exist. ``probes``: those that machines ask every few seconds."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics,
        routes: Collection[str],
        probes: Collection[str],
        tracing: Tracing | None,
        log_prompts: bool,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = routes
        self.probes = probes
        self.tracing = tracing
        self.log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        record = self.open_record(scope, exchange)
        exchange.callback(self.report, record, scope, exchange)

        async def receive_noted() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not record.complete:
                record.client_gone = True
            return message

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if record.ignored:
                    message["headers"] = [*message["headers"], (IGNORED, record.ignored.encode())]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record.complete = True

        token = RECORD.set(record)
        self.metrics.begin(record)
        try:
            await self.app(scope, receive_noted, send_noted)
        except Exception:
            # Starlette answers this outside of all middleware (error_handlers.on_unforeseen).
            record.status = record.status or 500
            record.note_error(ErrorCode.INTERNAL_ERROR)
            raise
        finally:
            RECORD.reset(token)

    def open_record(self, scope: Scope, exchange: Exchange) -> RequestRecord:
        record = RequestRecord(
            request_id=exchange.request_id,
            method=scope["method"],
            path=scope["path"],
            scheme=scope.get("scheme", "http"),
            client=exchange.address,
            keeps_prompt=self.log_prompts,
        )
        if self.tracing is not None:
            record.traced = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in CARRIED
            }
        return record

    def report(self, record: RequestRecord, scope: Scope, exchange: Exchange) -> None:
        try:
            record.end(self.route_of(scope), exchange.key_name)
            record.probe = record.route in self.probes
            self.metrics.end(record)
            trace_id = None if self.tracing is None or record.probe else self.tracing.export(record)
            is_quiet = record.probe or (record.logged and record.error is None)
            level = logging.DEBUG if is_quiet else logging.INFO
            if log.isEnabledFor(level):
                log.log(level, "request", extra={FIELDS: request_fields(record, trace_id)})
        except Exception:
            log.exception("a request could not be reported")

    def route_of(self, scope: Scope) -> str:
        """The template of the path, or "other" if this server has no such path."""
        # A request that was refused early has no route.
        path = str(getattr(scope.get("route"), "path", scope["path"]))
        return path if path in self.routes else "other"
