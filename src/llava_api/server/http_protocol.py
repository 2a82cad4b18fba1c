"""One connection: uvicorn's, with limits on what a caller may send, how slowly, and how slowly it may read.

Below the app: what is refused here is no whole request yet, or none at all. It is answered in the API's own shape all
the same, in its turn among the connection's answers, and then the connection is closed. uvicorn's part is to parse
(httptools), to speak ASGI and to keep connections alive.
"""

import asyncio
import http
import logging
import uuid
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from llava_api.errors import ApiError, BadHttp, Busy, ErrorCode, HeadersTooLarge, ReceiveTimeout
from llava_api.server.connections import Connections
from llava_api.server.deadline import Deadline
from llava_api.server.error_handlers import rendered
from llava_api.server.framing import NOT_HTTP, check_head, framing_of, has_long_body
from llava_api.server.outlet import Outlet
from llava_api.settings import Settings

log = logging.getLogger(__name__)

WAITING, HEADERS, BODY = range(3)
"""What of a request comes next: its first byte, more of its headers, more of its body."""
WRITE_HIGH_BYTES, WRITE_LOW_BYTES = 65_536, 32_768
MAX_FIELDS = 128
MAX_PIPELINE = 32
"""Requests that wait behind one that is being answered; the connection is closed after them."""
MAX_PIPELINE_BYTES = 65_536
"""Of their first lines and headers together; the same."""
SHORT_BODY_BYTES = 65_536
"""What is left of a body this long when its request has been answered is read and forgotten; longer, nobody waits."""
PIECE_BYTES = 16
"""Frame of one chunk of a body: more than a length and two line ends are no use to anybody."""
LINE_BYTES = 64
"""Of a head beside its target and its headers."""
LINGER_SECONDS = 10.0
"""For the rest of a request that was refused or answered early: it is read and forgotten; its sender may read why."""
LAST_SECONDS = 1.0
"""The same, where the server itself ends."""
FULL = "The server holds as many connections as it may; try again in a moment."
SLOW_HEADERS = "The request's headers did not come in time."
SLOW_BODY = "The request's body did not come in time; send it faster, or less at once."


class HttpProtocol(HttpToolsProtocol):
    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
        registry: Connections,
        count_refusal: Callable[[ErrorCode | None], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.settings = settings
        self.registry = registry
        self.count_refusal = count_refusal
        self.outlet: Outlet
        self.phase = WAITING
        self.received = 0
        """Whole requests."""
        self.field_bytes = 0
        """Of the first line and the headers that are complete."""
        self.loose_bytes = 0
        """Received, and not yet part of a complete header or of a body."""
        self.active: Any = None
        """uvicorn's cycle of the request that is being answered; its own ``cycle`` is the one that came last."""
        self.refusal: ApiError | None = None
        """Why the parser was stopped."""
        self.parting: ApiError | None = None
        """What is still to be said when all answers have been given."""
        self.persistent = False
        """Whether the last request's sender wants the connection kept."""
        self.waiting_bytes = 0
        """First lines and headers of requests that wait behind the one that is being answered."""
        self.last = False
        """Whether there is to be no further request."""
        self.deaf = False
        self.declined_body: bytes | None = None
        """Of a request that asks for an upgrade and has a body: the header that says how long it is."""
        self.muted = False
        """While a parser is told what another has read already."""
        self.ending = False
        self.timed: tuple[int, int] | None = None
        self.deadline = Deadline(self.loop, self.on_late)
        self.reader_timer: asyncio.TimerHandle | None = None
        self.close_timer: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        self.outlet = Outlet(transport, self.on_close)
        super().connection_made(self.outlet)
        if self.client is not None and self.client[0].startswith("::ffff:"):
            # An IPv4 address as a socket for both kinds writes it; limits and --trusted-proxies mean the same caller.
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        if not self.registry.admit(self):
            self.refuse(Busy(FULL))
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self.deaf = self.outlet.closing = True
        self.registry.forget(self)
        self.deadline.cancel_timer()
        for timer in (self.reader_timer, self.close_timer, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        self.drop(self.active)
        self.pipeline.clear()
        super().connection_lost(exc)

    def drop(self, cycle: Any) -> None:
        """Tell the app that its caller has gone."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def on_close(self) -> None:
        """All ends that uvicorn or this class wants to make. What has been written still goes out, but not for ever."""
        self.deaf = True
        self.deadline.set(None)
        wire = self.outlet.wire
        lingers = self.phase != WAITING or self.refusal is not None
        if lingers:
            # Closed while bytes come in, the kernel answers with a reset, and the caller never reads why.
            self.registry.is_idle(self)
            self.flow.resume_reading()
            if wire.can_write_eof():
                wire.write_eof()
        else:
            wire.close()
        unread = wire.get_write_buffer_size() > 0
        if lingers or unread:
            seconds = LAST_SECONDS if self.ending else LINGER_SECONDS
            if unread:
                seconds = self.settings.reader_timeout_seconds
            self.close_timer = self.loop.call_later(seconds, wire.abort)

    def evict(self) -> None:
        self.deaf = self.outlet.closing = True
        wire = self.outlet.wire
        if wire.get_write_buffer_size():
            wire.close()
            self.close_timer = self.loop.call_later(self.settings.reader_timeout_seconds, wire.abort)
        else:
            wire.abort()

    def shutdown(self) -> None:
        self.ending = True
        if self.outlet.closing and not self.outlet.wire.get_write_buffer_size():
            self.outlet.abort()
        super().shutdown()

    # Bytes in

    def data_received(self, data: bytes) -> None:
        if self.deaf:
            return
        self._unset_keepalive_if_required()
        if self.phase == WAITING:
            self.phase = HEADERS
        before = self.received
        self.loose_bytes += len(data)
        try:
            self.feed(data)
        except httptools.HttpParserError:
            # An error of our own callbacks, or the parser's.
            if not self.deaf:
                self.refuse(self.refusal or BadHttp(NOT_HTTP))
            return
        if self.received != before:
            # Where in these bytes the next request begins is not known; what it says counts from now on.
            self.loose_bytes = 0
        if self.phase != WAITING and self.loose_bytes > self.settings.max_header_bytes:
            self.refuse(too_large(self.settings.max_header_bytes))
            return
        if (self.received, self.phase) != self.timed:
            self.timed = (self.received, self.phase)
            self.expect_more()

    def feed(self, data: bytes) -> None:
        """An upgrade is declined by answering as if it had not been asked for."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self.declined_body is not None:
                    self.go_on_with(self.declined_body)

    def go_on_with(self, framing: bytes) -> None:
        """httptools takes the body behind an upgrade for another protocol's; a second parser is told what it is."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.muted = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        self.muted = False
        self.declined_body = None

    def _should_upgrade(self) -> bool:
        return False

    def stop(self, refusal: ApiError) -> None:
        """Within the parser's callbacks: end the parsing and answer with ``refusal``."""
        self.refusal = refusal
        raise refusal

    def hear_no_more(self) -> None:
        """Within the parser's callbacks: what comes now is read and forgotten, and so a caller that leaves is seen."""
        self.deaf = True
        self.deadline.set(None)
        raise BadHttp(NOT_HTTP)

    def on_message_begin(self) -> None:
        if self.muted:
            return
        if self.last:
            self.hear_no_more()
        self.phase = HEADERS
        self.field_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.muted:
            return
        self.count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.muted:
            return
        self.count(len(name) + len(value) + 4)
        # Trailers come when the headers have been judged already, so nobody gets to see them.
        if self.phase == HEADERS:
            super().on_header(name, value)

    def count(self, size: int) -> None:
        self.field_bytes += size
        if self.field_bytes > self.settings.max_header_bytes or len(self.headers) > MAX_FIELDS:
            self.stop(too_large(self.settings.max_header_bytes))

    def on_headers_complete(self) -> None:
        if self.muted:
            return
        version = self.parser.get_http_version()
        try:
            self.url = check_head(version, self.parser.get_method(), self.url, self.headers)
        except ApiError as refusal:
            self.stop(refusal)
        waits = self.active is not None and not self.active.response_complete
        if waits and framing_of(self.headers) is not None:
            # Nobody would count this body in memory, nor read it, and unread it would hide that the caller leaves. So
            # the connection ends after what came before. RFC 9112, 9.3.2: a client must not pipeline behind a POST, and
            # sends again what a closed connection left unanswered; none of the known ones pipelines POSTs.
            self.cycle.keep_alive = False
            self.hear_no_more()
        super().on_headers_complete()
        self.declined_body = framing_of(self.headers) if self.parser.should_upgrade() else None
        self.phase = BODY
        self.loose_bytes = max(0, self.loose_bytes - self.field_bytes - LINE_BYTES)
        self.registry.is_busy(self)
        self.persistent = version == "1.1" and self.parser.should_keep_alive()
        # An answer that comes before a long body has come ends the connection, and says so.
        self.cycle.keep_alive = (
            self.persistent and not self.ending and not has_long_body(self.headers, SHORT_BODY_BYTES)
        )
        if waits:
            # uvicorn reads no more while a request waits behind another, and would not see the caller go.
            self.flow.resume_reading()
            self.waiting_bytes += self.field_bytes
            self.last = len(self.pipeline) >= MAX_PIPELINE or self.waiting_bytes > MAX_PIPELINE_BYTES
        else:
            self.active = self.cycle

    def on_body(self, body: bytes) -> None:
        self.loose_bytes = max(0, self.loose_bytes - len(body) - PIECE_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.declined_body is not None:
            return
        super().on_message_complete()
        self.phase = WAITING
        self.received += 1
        if not self.cycle.response_started:
            self.cycle.keep_alive = self.persistent and not self.ending and not self.last
        self.last = not self.cycle.keep_alive

    # Answers

    def on_response_complete(self) -> None:
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if self.outlet.is_closing():
            return
        if not self.pipeline:
            self.waiting_bytes = 0
        if following is not None:
            self.active = following
        elif self.parting is not None:
            self.say(self.parting)
        else:
            self.registry.is_idle(self)

    def refuse(self, error: ApiError) -> None:
        """The last word on this connection, said in its turn, or not at all where the answer has begun already."""
        self.deaf = True
        self.refusal = error
        self.deadline.set(None)
        waits = self.active is not None and not self.active.response_complete
        if self.phase == BODY:
            if self.active.response_started:
                self.drop(self.active)
                self.outlet.close()
                return
            else:
                self.drop(self.active)
                waits = False
        if waits:
            self.parting = error
        else:
            self.say(error)

    def say(self, error: ApiError) -> None:
        request_id = f"req_{uuid.uuid4().hex}"
        caller = self.client[0] if self.client else "a Unix socket"
        log.info("%s from %s refused: %d %s", request_id, caller, error.status, error.code)
        self.count_refusal(error.code)
        # It belongs to no request that has a record, though this may run in the midst of one.
        answer = rendered(error, {"x-request-id": request_id, "connection": "close"})
        lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}".encode()]
        lines += [name + b": " + value for name, value in [*self.server_state.default_headers, *answer.raw_headers]]
        self.outlet.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.outlet.close()

    # Time

    def expect_more(self) -> None:
        """The time runs from now for what comes next."""
        if self.phase == WAITING:
            self.deadline.set(None)
        elif self.phase == HEADERS:
            self.deadline.set(self.settings.receive_timeout_seconds)
        else:
            self.deadline.set(self.settings.body_timeout_seconds)

    def on_late(self) -> None:
        if self.flow.read_paused:
            # We are the slow ones.
            self.expect_more()
        else:
            self.refuse(ReceiveTimeout(SLOW_HEADERS if self.phase == HEADERS else SLOW_BODY))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reader_timer = self.loop.call_later(self.settings.reader_timeout_seconds, self.cut_reader)

    def resume_writing(self) -> None:
        if self.reader_timer is not None:
            self.reader_timer.cancel()
        super().resume_writing()

    def cut_reader(self) -> None:
        log.info("%s does not read its answer: cut off", self.client[0] if self.client else "a Unix socket")
        self.outlet.abort()


def too_large(limit: int) -> ApiError:
    return HeadersTooLarge(f"The request's first line and headers are larger than the {limit} bytes this server takes.")
