"""One record for each request, told at its end: the metrics count it, the log has one line of it, traces its spans.

Stands outside of all that answers, so that refusals of the other middleware are told too, and ends with the last byte
or with what cut it off. Nothing that goes wrong in here may harm a request.
"""

import logging
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_api.errors import ErrorCode
from llava_api.telemetry.log_lines import FIELDS, request_fields
from llava_api.telemetry.metrics import Metrics
from llava_api.telemetry.record import RequestRecord, closed, opened
from llava_api.telemetry.tracing import CARRIED, Tracing

log = logging.getLogger("llava_api.access")


class Access:
    """``routes``: templates of the addresses that there are. ``probes``: those that machines ask every few seconds."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
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
        record = self.begin(scope)

        async def receive_noted() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not record.complete:
                record.client_gone = True
            return message

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record.complete = True

        token = opened(record)
        self.metrics.begin()
        try:
            await self.app(scope, receive_noted, send_noted)
        except Exception:
            # Starlette answers it outside of here (error_handlers.on_unforeseen).
            record.status = record.status or 500
            record.tell(ErrorCode.INTERNAL_ERROR)
            raise
        finally:
            closed(token)
            self.end(record, scope)

    def begin(self, scope: Scope) -> RequestRecord:
        client = scope.get("client")
        record = RequestRecord(
            request_id=scope["state"]["request_id"],
            method=scope["method"],
            path=scope["path"],
            scheme=scope.get("scheme", "http"),
            client=client[0] if client else "",
            keeps_prompt=self.log_prompts,
        )
        if self.tracing is not None:
            record.traced = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in CARRIED
            }
        return record

    def end(self, record: RequestRecord, scope: Scope) -> None:
        try:
            record.end(self.route_of(scope), scope["state"].get("key_name"))
            record.probe = record.route in self.probes
            self.metrics.end(record)
            trace_id = None if self.tracing is None or record.probe else self.tracing.tell(record)
            level = logging.DEBUG if record.probe else logging.INFO
            if log.isEnabledFor(level):
                log.log(level, "request", extra={FIELDS: request_fields(record, trace_id)})
        except Exception:
            log.exception("a request could not be told of")

    def route_of(self, scope: Scope) -> str:
        """The template of the address; "other" for one that nobody answers."""
        # What was refused early has no route.
        path = str(getattr(scope.get("route"), "path", scope["path"]))
        return path if path in self.routes else "other"
