"""What is no HTTP request, or an ambiguous one, gets an error in the API's shape, and the connection is closed."""

import asyncio
import tracemalloc

import pytest

from tests.api.test_chat import CHAT, text_body
from tests.support.running_server import HEALTH, RunningServer, post
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

BODY = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
CHUNKED = BODY + b"Transfer-Encoding: chunked\r\n\r\n"
HIDDEN = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"

DOUBTFUL = {
    "nothing": b"\0\0\0\0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 in a line": b"GET /health/live HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /health/live\r\n\r\n",
    "a version to come": b"GET /health/live HTTP/1.2\r\nHost: a\r\n\r\n",
    "another protocol": b"DESCRIBE /health/live RTSP/2.0\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target without a slash": b"GET health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /health/live#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "letters beyond ASCII": b"GET /health/l\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no Host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a host twice": b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "a host with a path": b"GET /health/live HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a host with a query": b"GET /health/live HTTP/1.1\r\nHost: a?\r\n\r\n",
    "two hosts in two places": b"GET http://b/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "a length twice": BODY + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": BODY + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a list of lengths": BODY + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": BODY + b"Content-Length: +2\r\n\r\n{}",
    "a length in hex": BODY + b"Content-Length: 0x2\r\n\r\n{}",
    "an empty length": BODY + b"Content-Length:\r\n\r\n",
    "a length of many digits": BODY + b"Content-Length: " + b"0" * 5000 + b"2\r\n\r\n{}",
    "a length beyond all": BODY + b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "a space before the colon": BODY + b"Content-Length : 2\r\n\r\n{}",
    "length and chunks": BODY + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks and length": BODY + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked twice": BODY + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip and chunked": BODY + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked, in the middle": BODY + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "identity": BODY + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "xchunked": BODY + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked behind a tab": BODY + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n" + HIDDEN,
    "a folded header": b"GET /health/live HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "a folded length": BODY + b"Content-Length: 2\r\n 0\r\n\r\n{}",
    "a header before all": b"GET /health/live HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
    "line feeds alone": b"GET /health/live HTTP/1.1\nHost: a\n\n",
    "a line feed alone": b"GET /health/live HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "a line feed at the end": b"GET /health/live HTTP/1.1\r\nHost: a\r\n\n",
    "a carriage return alone": b"GET /health/live HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "a zero byte": b"GET /health/live HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "a header without a colon": b"GET /health/live HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "a header without a name": b"GET /health/live HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "a chunk's line feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "a line feed in a chunk's extension": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a chunk with a space": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "a chunk in 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"2\r\n{}}\r\n0\r\n\r\n",
    "a chunk below nothing": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond all": CHUNKED + b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", DOUBTFUL)
async def test_in_doubt_refused(edge: RunningServer, engine: ScriptedEngine, name: str) -> None:
    caller = await edge.connect()
    answer = await caller.ask(DOUBTFUL[name])
    assert (answer.status, answer.error["code"]) == (400, "invalid_http")
    assert answer.headers["connection"] == "close"
    # A second request that is hidden in the first is not answered.
    assert await caller.end() == b""
    assert engine.requests == []
    assert await edge.is_well()


@pytest.mark.parametrize("name", DOUBTFUL)
async def test_one_byte_at_a_time_the_verdict_is_the_same(edge: RunningServer, name: str) -> None:
    caller = await edge.connect()
    head, _, rest = DOUBTFUL[name].partition(b"0" * 5000)
    pieces = [bytes([byte]) for byte in head] + ([b"0" * 5000, rest] if rest else [])
    for piece in pieces:
        caller.writer.write(piece)
        await asyncio.sleep(0)
    answer = await caller.answer()
    assert (answer.status, answer.error["code"]) == (400, "invalid_http")
    assert await caller.end() == b""


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /health/live HTTP/1.0\r\n\r\n",
        b"GET /health/live HTTP/1.0\r\nHost: a\r\n\r\n",
        b"GET http://a/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://A:80/health/live HTTP/1.1\r\nHost: a:8000\r\n\r\n",
        b"GET http://[::1]/health/live HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n",
        b"\r\n\r\nGET /health/live HTTP/1.1\r\nHost: a\r\nEmpty:\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n\r\n",
    ],
)
async def test_odd_but_clear_answered(edge: RunningServer, request_line: bytes) -> None:
    assert (await edge.ask(request_line)).status == 200


async def test_a_question_that_asks_for_an_upgrade_is_answered_as_any_other(edge: RunningServer) -> None:
    """Java's own client does this with its first request. The body may come later."""
    caller = await edge.connect()
    for _ in range(2):
        request = post(CHAT, text_body(), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
        head, _, body = request.partition(b"\r\n\r\n")
        await caller.send(head + b"\r\n\r\n")
        await asyncio.sleep(0.05)
        answer = await caller.ask(body)
        assert (answer.status, answer.headers.get("connection")) == (200, None)
    # So is one without a body, and the request after it.
    upgrade = b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    assert [(await caller.ask(request)).status for request in (upgrade, HEALTH)] == [200, 200]


async def test_trailers_are_no_headers(edge: RunningServer) -> None:
    """They come when the headers have been checked, and are not headers of the next request either."""
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}'
    caller = await edge.connect()
    for _ in range(2):
        await caller.send(CHUNKED + b"%x\r\n%s\r\n0\r\nContent-Encoding: gzip\r\nHost: b\r\n\r\n" % (len(body), body))
        assert (await caller.answer()).status == 200


async def test_a_flood_of_trailers_and_extensions_is_cut(edge: RunningServer) -> None:
    for flood in (b"1;" + b"a" * 100_000, b"1\r\n{\r\n0\r\nX: " + b"a" * 100_000):
        answer = await edge.ask(CHUNKED + flood)
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")


PIPELINED = {
    "a request": HEALTH,
    "many requests": HEALTH * 10_000,
    "long headers": HEALTH.replace(b"\r\n\r\n", b"\r\nX: " + b"a" * 30_000 + b"\r\n\r\n") * 10,
    "a question": post(CHAT, text_body()),
    "a body in chunks": CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    "a broken chunk": CHUNKED + b"zz\r\n",
    "half a request": b"GET /",
    "no HTTP": b"nonsense\r\n\r\n",
    "an upgrade": post(CHAT, text_body(), "Connection: Upgrade", "Upgrade: h2c"),
}


class TestPipelining:
    """If a client sends several requests without waiting, only the first is answered, and the connection is closed."""

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("later", PIPELINED)
    async def test_what_comes_in_the_same_bytes_is_ignored(
        self, edge: RunningServer, engine: ScriptedEngine, later: str, stream: bool
    ) -> None:
        engine.pause_seconds = 0.05
        caller = await edge.connect()
        await caller.send(post(CHAT, text_body(stream=stream)) + PIPELINED[later])
        received = await caller.end()
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert received.count(b"HTTP/1.1") == received.count(b"connection: close") == 1
        assert (b"[DONE]" in received) == stream
        assert len(engine.requests) == 1

    @pytest.mark.parametrize("later", PIPELINED)
    async def test_what_comes_during_the_answer_is_ignored(
        self, edge: RunningServer, engine: ScriptedEngine, later: str
    ) -> None:
        """It is too late for a Connection header, but the answer is complete, and the connection is closed after it."""
        engine.texts = ("word ",) * 20
        engine.pause_seconds = 0.02
        caller = await edge.connect()
        await caller.send(post(CHAT, text_body(stream=True)))
        status, headers = await caller.head()
        assert (status, headers.get("connection")) == (200, None)
        await caller.send(PIPELINED[later])
        received = await caller.end()
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b"HTTP/1.1" not in received
        assert len(engine.requests) == 1

    async def test_a_short_answer_is_no_exception(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        await caller.send(HEALTH + HEALTH)
        assert (await caller.answer()).headers["connection"] == "close"
        assert await caller.end() == b""

    async def test_an_empty_line_after_a_body_is_no_request(self, edge: RunningServer) -> None:
        """Some old clients send one."""
        caller = await edge.connect()
        for _ in range(3):
            answer = await caller.ask(post(CHAT, text_body()) + b"\r\n")
            assert (answer.status, answer.headers.get("connection")) == (200, None)

    async def test_requests_one_after_another_share_a_connection(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        requests = (post(CHAT, text_body()), HEALTH, post("/v1/nowhere", b""), HEALTH)
        assert [(await caller.ask(request)).status for request in requests] == [200, 200, 404, 200]

    @pytest.mark.parametrize("more", [post(CHAT, b"a" * 60_000), post(CHAT, b"a" * 150_000, length=250_000)])
    async def test_it_takes_no_memory_and_does_not_hide_that_the_caller_leaves(
        self, edge: RunningServer, engine: ScriptedEngine, more: bytes
    ) -> None:
        engine.texts = ("word ",) * 1000
        engine.pause_seconds = 0.02
        caller = await edge.connect()
        await caller.send(post(CHAT, text_body(stream=True)))
        await caller.head()
        tracemalloc.start()
        try:
            async with asyncio.timeout(10):
                for _ in range(200):
                    await caller.send(more)
            assert tracemalloc.get_traced_memory()[1] < 1_200_000
        finally:
            tracemalloc.stop()
        assert engine.unfinished == 1
        await caller.close()
        await until(lambda: not engine.unfinished)

    async def test_nothing_is_answered_after_a_farewell(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        await caller.send(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + HEALTH)
        assert (await caller.end()).count(b"HTTP/1.1") == 1

    async def test_a_caller_that_has_sent_more_may_leave(self, edge: RunningServer, engine: ScriptedEngine) -> None:
        engine.texts = ("word ",) * 1000
        engine.pause_seconds = 0.02
        caller = await edge.connect()
        await caller.send(post(CHAT, text_body(stream=True)) + HEALTH)
        await caller.head()
        assert engine.unfinished == 1
        await caller.close()
        async with asyncio.timeout(2):
            while engine.unfinished:
                await asyncio.sleep(0.01)
