"""The HTTP protocol of one connection: uvicorn's, with limits on what a client sends and on how slow it is.

Requests that are refused here never reach the app. They get an error in the API's own shape, and the connection is
closed. uvicorn parses (by httptools), speaks ASGI and keeps connections alive. ``tests/unit/test_uvicorn_names.py``
lists which of its names are used here.
"""

import asyncio
import http
import logging
import uuid
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llava_api.errors import ApiError, BadHttp, Busy, ErrorCode, InvalidRequest
from llava_api.server.connections import ConnectionLimit
from llava_api.server.error_handlers import rendered
from llava_api.server.framing import NOT_HTTP, body_framing, check_head, has_long_body
from llava_api.settings import Settings

log = logging.getLogger(__name__)

IDLE, HEADERS, BODY, ANSWERING = range(4)
"""What the connection waits for: a request, the rest of its head, the rest of its body, the end of the answer."""
WRITE_HIGH_BYTES, WRITE_LOW_BYTES = 65_536, 32_768
MAX_HEADERS = 128
SHORT_BODY_BYTES = 65_536
"""If a request is answered before its body has come, a body up to this size is read and the connection stays open."""
CHUNK_FRAME_BYTES = 16
"""Framing bytes that each piece of a body may have: the length of a chunk and two line ends."""
REQUEST_LINE_BYTES = 64
"""Bytes of a head that are in neither the target nor a header."""
LINGER_SECONDS = 10.0
"""Longest time for which the rest of a refused request is read, so that its client can read the answer."""
SHUTDOWN_LINGER_SECONDS = 1.0
FULL = "The server has as many open connections as it allows. Try again in a moment."
SLOW_HEADERS = "The request's headers did not come in time."
SLOW_BODY = "The request's body did not come in time. Send it faster, or send less at once."


class ClosingTransport(asyncio.Transport):
    """The transport that uvicorn sees. ``close`` calls the protocol, which knows what the client may still send."""

    def __init__(self, real: asyncio.Transport, on_close: Callable[[], None]) -> None:
        super().__init__()
        self.real = real
        self.on_close = on_close
        self.closing = False
        self.write = real.write  # type: ignore[method-assign]
        self.pause_reading = real.pause_reading  # type: ignore[method-assign]
        self.resume_reading = real.resume_reading  # type: ignore[method-assign]
        self.get_extra_info = real.get_extra_info  # type: ignore[method-assign]

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.on_close()

    def is_closing(self) -> bool:
        return self.closing or self.real.is_closing()


class HttpProtocol(HttpToolsProtocol):
    transport: ClosingTransport

    def __init__(
        self,
        *,
        settings: Settings,
        connection_limit: ConnectionLimit,
        count_refusal: Callable[[ErrorCode | None], None],
        **uvicorn_arguments: Any,
    ) -> None:
        super().__init__(**uvicorn_arguments)
        self.settings = settings
        self.connection_limit = connection_limit
        self.count_refusal = count_refusal
        self.phase = IDLE
        self.head_bytes = 0
        """Size of the headers that the parser has read of the current request, trailers included."""
        self.framing_bytes = 0
        """Bytes received of the current request that are not yet part of a complete head, or not part of its body."""
        self.body_bytes = 0
        """Bytes of the current body since its timer was set."""
        self.stays_open = False
        """Whether the client wants the connection to stay open after the answer to its current request."""
        self.declined_framing: bytes | None = None
        """For a request with a body that asks for an upgrade: the header that frames the body."""
        self.ignores_input = False
        self.linger_seconds = LINGER_SECONDS
        self.timer: asyncio.TimerHandle | None = None
        """Limits the time for what the client must send next, and after ``close`` for the end of the connection."""
        self.reader_timer: asyncio.TimerHandle | None = None

    # Opening and closing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(WRITE_HIGH_BYTES, WRITE_LOW_BYTES)
        super().connection_made(ClosingTransport(transport, self.on_close))
        if self.client is not None and self.client[0].startswith("::ffff:"):
            # An IPv4 address, as a socket for both kinds writes it. Limits and --trusted-proxies need the usual form.
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        if self.connection_limit.add(self):
            self.start_timer()
        else:
            self.refuse(Busy(FULL))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ignores_input = self.transport.closing = True
        self.connection_limit.remove(self)
        self.set_timer(None)
        self._unset_keepalive_if_required()
        if self.reader_timer is not None:
            self.reader_timer.cancel()
        super().connection_lost(exc)

    def on_close(self) -> None:
        """Called by the transport's ``close``. What has been written is still sent, within a time limit."""
        lingers = self.ignores_input or self.phase in (HEADERS, BODY)
        self.ignores_input = True
        transport = self.transport.real
        if lingers:
            # If the socket were closed while bytes come in, the kernel would reset the connection, and the client
            # would never read the answer.
            self.connection_limit.mark_idle(self)
            self.flow.resume_reading()
            if transport.can_write_eof():
                transport.write_eof()
        else:
            transport.close()
        unsent = transport.get_write_buffer_size() > 0
        self.set_timer(self.settings.reader_timeout_seconds if unsent else self.linger_seconds, transport.abort)

    def evict(self) -> None:
        self.ignores_input = self.transport.closing = True
        transport = self.transport.real
        if transport.get_write_buffer_size():
            transport.close()
            self.set_timer(self.settings.reader_timeout_seconds, transport.abort)
        else:
            transport.abort()

    def shutdown(self) -> None:
        self.stays_open = False
        self.linger_seconds = SHUTDOWN_LINGER_SECONDS
        if self.transport.closing and not self.transport.real.get_write_buffer_size():
            self.transport.real.abort()
        super().shutdown()

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self.ignores_input:
            return
        self._unset_keepalive_if_required()
        before = (self.cycle, self.phase)
        if self.phase == IDLE:
            self.phase = HEADERS
            self.framing_bytes = 0
        self.framing_bytes += len(data)
        try:
            self.parse(data)
        except httptools.HttpParserError as error:
            if self.phase == ANSWERING:
                # The next request has come before the answer to this one. Requests that wait would need limits on their
                # number and size, and uvicorn does not notice that a client has gone while one waits. HTTP clients in
                # use wait for the answer. So the connection is closed after it, and no more is read.
                self.cycle.keep_alive = False
                self.ignores_input = True
                self.set_timer(None)
            else:
                # httptools puts what one of our callbacks raised into __context__.
                reason = error.__context__
                self.refuse(reason if isinstance(reason, ApiError) else BadHttp(NOT_HTTP))
            return
        if self.phase != ANSWERING and self.framing_bytes > self.settings.max_header_bytes:
            self.refuse(too_large(self.settings.max_header_bytes))
        elif (self.cycle, self.phase) != before:
            self.start_timer()

    def parse(self, data: bytes) -> None:
        """An upgrade is declined: the request is answered as if it had not asked for one."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                if self.declined_framing is not None:
                    # httptools would leave the body to another protocol. A second parser gets it, after a head that the
                    # callbacks ignore in BODY.
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                    self.parser.feed_data(b"POST / HTTP/1.1\r\n" + self.declined_framing + b"\r\n\r\n")
                    self.declined_framing = None

    def on_message_begin(self) -> None:
        if self.phase == BODY:
            return
        if self.phase == ANSWERING:
            raise BadHttp(NOT_HTTP)
        self.phase = HEADERS
        self.head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count_head(len(name) + len(value) + 4)
        # Trailers come after the head has been checked, so the app never sees them.
        if self.phase == HEADERS:
            super().on_header(name, value)

    def count_head(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > self.settings.max_header_bytes or len(self.headers) > MAX_HEADERS:
            raise too_large(self.settings.max_header_bytes)

    def on_headers_complete(self) -> None:
        if self.phase == BODY:
            return
        self.count_head(len(self.url))
        self.url = check_head(self.parser.get_http_version(), self.parser.get_method(), self.url, self.headers)
        super().on_headers_complete()
        self.phase = BODY
        self.framing_bytes = max(0, self.framing_bytes - self.head_bytes - REQUEST_LINE_BYTES)
        self.declined_framing = body_framing(self.headers) if self.parser.should_upgrade() else None
        self.connection_limit.mark_busy(self)
        self.stays_open = self.cycle.keep_alive
        # An answer that comes before all of a long body closes the connection, and its headers must say so.
        self.cycle.keep_alive = self.stays_open and not has_long_body(self.headers, SHORT_BODY_BYTES)

    def on_body(self, body: bytes) -> None:
        self.framing_bytes = max(0, self.framing_bytes - len(body) - CHUNK_FRAME_BYTES)
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.declined_framing is not None:
            return
        super().on_message_complete()
        self.phase = IDLE if self.cycle.response_complete else ANSWERING
        if not self.cycle.response_started:
            self.cycle.keep_alive = self.stays_open

    # Answering

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self.connection_limit.mark_idle(self)
            if self.phase == ANSWERING:
                self.phase = IDLE

    def refuse(self, error: ApiError) -> None:
        """Answer with ``error``, unless the request's answer has begun, and close the connection."""
        self.ignores_input = True
        if self.phase == BODY:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.phase != BODY or not self.cycle.response_started:
            self.write_error(error)
        self.transport.close()

    def write_error(self, error: ApiError) -> None:
        request_id = f"req_{uuid.uuid4().hex}"
        log.info("%s from %s refused: %d %s", request_id, self.client_name(), error.status, error.code)
        self.count_refusal(error.code)
        # Not error_response: the request has no record, and the current record may be another request's.
        answer = rendered(error, "", request_id, {"x-request-id": request_id, "connection": "close"})
        lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}".encode()]
        lines += [name + b": " + value for name, value in [*self.server_state.default_headers, *answer.raw_headers]]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))

    def client_name(self) -> str:
        return self.client[0] if self.client else "a Unix socket"

    # Time

    def set_timer(self, seconds: float | None, action: Callable[[], None] = lambda: None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, action)

    def start_timer(self) -> None:
        """Limit the time for what the client must send now."""
        if self.phase == IDLE:
            self.set_timer(self.settings.keep_alive_seconds, self.transport.close)
        elif self.phase == HEADERS:
            self.set_timer(self.settings.receive_timeout_seconds, self.on_late)
        elif self.phase == BODY:
            self.body_bytes = 0
            self.set_timer(self.settings.body_timeout_seconds, self.on_late)
        else:
            self.set_timer(None)

    def on_late(self) -> None:
        if self.flow.read_paused or (self.phase == BODY and self.body_bytes >= self.settings.max_body_bytes):
            # It is the app that is slow, or this is an upload, larger than a body of JSON may be and no slower.
            self.start_timer()
        else:
            text = SLOW_HEADERS if self.phase == HEADERS else SLOW_BODY
            self.refuse(InvalidRequest(text, code=ErrorCode.RECEIVE_TIMEOUT, status=408))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reader_timer = self.loop.call_later(self.settings.reader_timeout_seconds, self.cut_reader)

    def resume_writing(self) -> None:
        if self.reader_timer is not None:
            self.reader_timer.cancel()
        super().resume_writing()

    def cut_reader(self) -> None:
        log.info("%s does not read its answer: cut off", self.client_name())
        self.transport.real.abort()


def too_large(limit: int) -> ApiError:
    return InvalidRequest(
        f"The request's first line and headers are larger than the {limit} bytes this server takes.",
        code=ErrorCode.HEADERS_TOO_LARGE,
        status=431,
    )
