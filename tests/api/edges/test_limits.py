"""Callers that send too much or too slowly, that open too many connections, or that do not read."""

import asyncio
import resource
import socket

import pytest
from fastapi import FastAPI

from llava_api.server.http_protocol import SHORT_BODY_BYTES
from llava_api.server.listening import OTHER_FILES, room_for_connections
from tests.api.test_chat import CHAT, text_body
from tests.support.running_server import HEALTH, Connection, RunningServer, post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

GET = b"GET /health/live HTTP/1.1\r\nHost: a\r\n"


class TestSizes:
    @pytest.fixture
    def settings_made(self) -> dict[str, object]:
        return {"max_header_bytes": 4096}

    @pytest.mark.parametrize(
        "request_line",
        [
            GET + b"X: " + b"a" * 5000 + b"\r\n\r\n",
            GET + b"X: a\r\n" * 1000 + b"\r\n",
            GET + b"X: " + b"a" * 5000,
            GET + b"a" * 5000,
            b"GET /health/live?" + b"a" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /" + b"a" * 5000,
            b"\r\n" * 3000,
        ],
        ids=["a header", "headers", "half a header", "half a name", "a target", "half a target", "empty lines"],
    )
    async def test_large_headers(self, edge: RunningServer, request_line: bytes) -> None:
        for size in (len(request_line), 1000):
            caller = await edge.connect()
            for start in range(0, len(request_line), size):
                caller.writer.write(request_line[start : start + size])
                await asyncio.sleep(0.01)
            answer = await caller.answer()
            assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
            assert "4096" in answer.error["message"]
            assert answer.headers["connection"] == "close"
            assert await caller.end() == b""
        assert await edge.is_well()

    async def test_many_headers(self, edge: RunningServer) -> None:
        assert (await edge.ask(GET + b"X: a\r\n" * 100 + b"\r\n")).status == 200
        assert (await edge.ask(GET + b"X: a\r\n" * 200 + b"\r\n")).status == 431

    async def test_almost_large_headers_one_after_another(self, edge: RunningServer) -> None:
        """The limit holds for each request, not for the connection, and bodies do not count."""
        caller = await edge.connect()
        for _ in range(5):
            requests = (post(CHAT, b"[" * 100_000), GET + b"X: " + b"a" * 3500 + b"\r\n\r\n")
            assert [(await caller.ask(request)).status for request in requests] == [400, 200]

    async def test_the_reason_is_read_although_much_more_was_to_come(self, edge: RunningServer) -> None:
        """If the server did not read the rest, the kernel would reset the connection and the answer would be lost."""
        caller = await edge.connect()
        for _ in range(50):
            await caller.send(b"GET /" + b"a" * 100_000)
        assert (await caller.answer()).status == 431


class TestAnsweredEarly:
    async def test_a_large_body_is_refused_before_it_comes(self, edge: RunningServer, engine: ScriptedEngine) -> None:
        caller = await edge.connect()
        answer = await caller.ask(post(CHAT, b"", length=10_000_000))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert answer.headers["connection"] == "close"
        # A caller that goes on sending is not blocked.
        for _ in range(20):
            await caller.send(b"a" * 100_000)
        assert await caller.end(3) == b""

    async def test_what_will_be_refused_is_not_asked_for(self, edge: RunningServer) -> None:
        refused = {
            post(CHAT, b"", "Expect: 100-continue", length=10_000_000): 413,
            post(CHAT, b"", "Expect: 100-continue", "Content-Encoding: br", length=1000): 415,
            post("/v1/nowhere", b"", "Expect: 100-continue", length=1000): 404,
            post("/v1/models", b"", "Expect: 100-continue", length=1000): 405,
        }
        for request, status in refused.items():
            caller = await edge.connect()
            answer = await caller.ask(request)
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert await caller.end() == b""

    async def test_what_is_welcome_is_asked_for(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        for _ in range(2):
            head, _, body = post(CHAT, text_body(), "Expect: 100-continue").partition(b"\r\n\r\n")
            await caller.send(head + b"\r\n\r\n")
            assert (await caller.head())[0] == 100
            answer = await caller.ask(body)
            assert (answer.status, answer.headers.get("connection")) == (200, None)

    async def test_a_short_rest_costs_no_connection(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        answer = await caller.ask(post("/v1/nowhere", b"", length=SHORT_BODY_BYTES))
        assert (answer.status, answer.headers.get("connection")) == (404, None)
        await caller.send(b"a" * SHORT_BODY_BYTES)
        assert (await caller.ask(HEALTH)).status == 200


@pytest.mark.parametrize("encoding", ["br", "deflate, gzip", "zstd", "gzip\tx", ""])
async def test_other_encodings_are_not_unpacked(edge: RunningServer, encoding: str) -> None:
    answer = await edge.ask(post(CHAT, text_body(), f"Content-Encoding: {encoding}"))
    assert (answer.status, answer.error["code"]) == (415, "unsupported_content_encoding")
    assert (await edge.ask(post(CHAT, text_body(), "Content-Encoding: identity"))).status == 200


class TestTimes:
    @pytest.fixture
    def settings_made(self) -> dict[str, object]:
        return {"receive_timeout_seconds": 0.5, "body_timeout_seconds": 1, "keep_alive_seconds": 1}

    async def test_headers_that_do_not_end(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        await caller.send(b"GET /health/live HTTP/1.1\r\n")
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (408, "receive_timeout")
        assert await caller.end() == b""

    async def test_headers_that_trickle(self, edge: RunningServer) -> None:
        """Each byte is in time, but all of them together are not."""
        caller = await edge.connect()
        await caller.send(b"GET / HTTP/1.1\r\nX: ")

        async def trickle() -> None:
            while True:
                await caller.send(b"a")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert (await caller.answer(2)).status == 408
        trickling.cancel()

    @pytest.mark.parametrize("chunked", [True, False])
    async def test_a_body_that_does_not_end(self, edge: RunningServer, engine: ScriptedEngine, chunked: bool) -> None:
        caller = await edge.connect()
        start = post(CHAT, b"{", length=100)
        if chunked:
            start = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{".encode()
        await caller.send(start)
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (408, "receive_timeout")
        assert "body" in answer.error["message"]
        assert await caller.end() == b""
        assert engine.requests == []

    async def test_an_answer_that_takes_longer_is_no_slow_request(
        self, edge: RunningServer, engine: ScriptedEngine
    ) -> None:
        engine.pause_seconds = 0.5
        caller = await edge.connect()
        assert (await caller.ask(post(CHAT, text_body()))).status == 200

    async def test_a_request_after_a_long_answer_is_not_slow(self, edge: RunningServer, engine: ScriptedEngine) -> None:
        engine.pause_seconds = 0.5
        caller = await edge.connect()
        for _ in range(2):
            assert (await caller.ask(post(CHAT, text_body()))).status == 200

    async def test_a_body_sent_during_a_long_answer_is_not_slow(
        self, edge: RunningServer, engine: ScriptedEngine
    ) -> None:
        """The server does not wait for it, and closes the connection after the answer."""
        engine.pause_seconds = 0.5
        caller = await edge.connect()
        await caller.send(post(CHAT, text_body()) + post(CHAT, b"", length=1000)[:-30])
        await caller.send(post(CHAT, b"", length=1000)[-30:])
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.end() == b""

    async def test_a_broken_off_request_after_an_answer(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        assert (await caller.ask(post(CHAT, text_body()))).status == 200
        assert (await caller.ask(b"GET /")).status == 408

    async def test_the_rest_of_a_refused_body_does_not_come(self, edge: RunningServer) -> None:
        """There is no second answer: the first has been given."""
        caller = await edge.connect()
        assert (await caller.ask(post("/v1/nowhere", b"", length=100))).status == 404
        await caller.send(b"a")
        assert await caller.end() == b""

    async def test_a_connection_may_be_idle_after_the_rest_of_a_refused_body(self, edge: RunningServer) -> None:
        caller = await edge.connect()
        assert (await caller.ask(post("/v1/nowhere", b"", length=100))).status == 404
        await caller.send(b"a" * 100)
        assert await caller.end(3) == b""
        assert not edge.server.server_state.connections

    async def test_a_silent_connection_gets_no_answer(self, edge: RunningServer) -> None:
        silent, idle = await edge.connect(), await edge.connect()
        assert (await idle.ask(HEALTH)).status == 200
        assert await silent.end(3) == await idle.end(3) == b""
        assert not edge.server.server_state.connections


class TestManyConnections:
    @pytest.fixture
    def settings_made(self) -> dict[str, object]:
        return {"max_connections": 40}

    async def test_five_hundred_slow_callers_do_not_delay_others(self, edge: RunningServer) -> None:
        slow = [await edge.connect() for _ in range(500)]
        for number, caller in enumerate(slow):
            if number % 2:
                caller.writer.write(b"GET /health/live HTTP/1.1\r\nX: ")
        for _ in range(20):
            assert await edge.is_well()
        assert len(edge.server.server_state.connections) <= 41
        # The oldest went first.
        assert await slow[0].end() == b""

    async def test_connections_that_are_being_answered_are_never_closed(
        self, edge: RunningServer, engine: ScriptedEngine
    ) -> None:
        engine.texts = ("word ",) * 1000
        engine.pause_seconds = 0.01
        streams = [await edge.connect() for _ in range(40)]
        for caller in streams:
            await caller.send(post(CHAT, text_body(stream=True)))
        await until(lambda: len(engine.requests) == engine.max_num_seqs)
        refused = await edge.ask(HEALTH)
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "server_busy", "5")
        # However many come and keep their connections open.
        for _ in range(100):
            await edge.connect()
        assert len(edge.server.server_state.connections) <= 42
        for caller in streams[8:]:
            assert not caller.reader.at_eof()
        await streams.pop().close()
        await until(lambda: len(edge.server.server_state.connections) <= 40)
        assert await edge.is_well()

    def test_there_are_files_for_all_of_them(self, caplog: pytest.LogCaptureFixture) -> None:
        allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (600, most))
            assert room_for_connections(100) == 100
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100 + OTHER_FILES
            assert not caplog.records
            far = most + 1000
            room = room_for_connections(far)
            assert room == most - OTHER_FILES
            assert "ulimit" in caplog.text
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


class TestReaders:
    @pytest.fixture
    def settings_made(self) -> dict[str, object]:
        return {"reader_timeout_seconds": 1, "keep_alive_seconds": 1}

    @pytest.fixture
    def engine(self) -> ScriptedEngine:
        made = ScriptedEngine()
        made.texts = ("word " * 400,) * 100_000
        return made

    async def narrow_caller(self, edge: RunningServer) -> Connection:
        """A connection with a small receive buffer, and without a reader that would empty it."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, edge.address)
        reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
        caller = Connection(reader, writer)
        edge.connections.append(caller)
        return caller

    async def test_a_caller_that_stops_reading_is_cut_off(self, edge: RunningServer, engine: ScriptedEngine) -> None:
        caller = await self.narrow_caller(edge)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await caller.send(post(CHAT, text_body(stream=True)))
        await until(lambda: engine.unfinished == 1)
        said_then = engine.unfinished
        # Others are answered meanwhile.
        for _ in range(5):
            assert await edge.is_well()
        await until(lambda: engine.unfinished == 0, 4)
        assert said_then == 1
        assert not [one for one in edge.server.server_state.connections if one.flow.write_paused]  # type: ignore[union-attr]

    async def test_a_caller_that_reads_a_byte_at_a_time_is_cut_off(
        self, edge: RunningServer, engine: ScriptedEngine
    ) -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        loop = asyncio.get_running_loop()
        with plain:
            await loop.sock_connect(plain, edge.address)
            await loop.sock_sendall(plain, post(CHAT, text_body(stream=True)))

            async def dribble() -> None:
                while True:
                    await loop.sock_recv(plain, 1)
                    await asyncio.sleep(0.1)

            dribbling = asyncio.create_task(dribble())
            await until(lambda: engine.unfinished == 1)
            await until(lambda: engine.unfinished == 0, 6)
            dribbling.cancel()

    async def test_a_caller_that_reads_slowly_but_steadily_is_not(
        self, edge: RunningServer, engine: ScriptedEngine
    ) -> None:
        engine.texts = ("word " * 400,) * 700
        caller = await self.narrow_caller(edge)
        await caller.send(post(CHAT, text_body(stream=True), "Connection: close"))
        size = 0
        async with asyncio.timeout(30):
            while piece := await caller.reader.read(65_536):
                size += len(piece)
                await asyncio.sleep(0.005)
        assert size > 700 * 2000

    async def test_a_whole_answer_that_is_not_read_is_given_up(
        self, edge: RunningServer, engine: ScriptedEngine
    ) -> None:
        """The engine has done its work, but the connection must not stay open for ever."""
        engine.texts = ("word " * 400,) * 300
        caller = await self.narrow_caller(edge)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await caller.send(post(CHAT, text_body()))
        await until(lambda: len(engine.requests) == 1 and engine.unfinished == 0)
        await until(lambda: not edge.server.server_state.connections, 6)

    async def test_memory_for_one_connection_is_bounded(self, edge: RunningServer, engine: ScriptedEngine) -> None:
        caller = await self.narrow_caller(edge)
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await caller.send(post(CHAT, text_body(stream=True)))
        await until(lambda: engine.unfinished == 1)
        await asyncio.sleep(0.5)
        (one,) = edge.server.server_state.connections
        assert one.transport.real.get_write_buffer_size() < 100_000  # type: ignore[union-attr]


async def test_an_end_with_a_slow_caller_does_not_wait(app: FastAPI) -> None:
    async with serve_app(app) as edge:
        silent, half = await edge.connect(), await edge.connect()
        await half.send(b"GET /health/live HTTP/1.1\r\n")
        await asyncio.sleep(0.05)
        edge.server.should_exit = True
        assert await silent.end(3) == await half.end(3) == b""
