"""The router's connections to backends, which may send what no server should."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientResponse

from llava_api.routing.backends import Backend
from llava_api.routing.connections import NETWORK_ERRORS, NOT_SENT_ERRORS, Connections
from llava_api.settings import Settings

SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n" + b"x" * 4_000_000


@dataclass
class Server:
    connections: Connections
    backend: Backend
    heads: list[bytes] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    """Of the connections that the requests came over."""

    def ask(self, method: str) -> AbstractAsyncContextManager[ClientResponse]:
        return self.connections.request(self.backend, method, "/")

    async def get(self) -> tuple[int, bytes]:
        return await self.connections.get(self.backend, "/")


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[Server]:
    """A server that sends an answer for each request, and closes after one that is not whole."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                server.heads.append(await reader.readuntil(b"\r\n\r\n"))
                server.ports.append(writer.get_extra_info("peername")[1])
                writer.write(answer := left.pop(0))
                await writer.drain()
                if not answer.endswith((b"ok", b"no", b"x")):
                    break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        server = Server(Connections(Settings(request_timeout_seconds=5)), Backend("strange", address))
        async with asyncio.timeout(5):
            yield server
        await server.connections.close()


async def test_a_connection_serves_many_requests() -> None:
    async with answering(SHORT, LONG, SHORT) as server:
        assert [len((await server.get())[1]) for _ in range(3)] == [2, 4_000_000, 2]
        assert len(set(server.ports)) == 1


async def test_an_answer_that_is_not_read_to_its_end_costs_its_connection() -> None:
    async with answering(LONG, SHORT) as server:
        async with server.ask("GET") as answer:
            assert answer.status == 200
        assert await server.get() == (200, b"ok")
        assert len(set(server.ports)) == 2


async def test_a_second_answer_to_one_request_is_not_that_to_the_next() -> None:
    async with answering(SHORT + SHORT.replace(b"ok", b"no"), SHORT) as server:
        assert [await server.get() for _ in range(2)] == [(200, b"ok")] * 2


@pytest.mark.parametrize(
    ("first", "more"), [(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), (b"HTTP/1.1 200 OK\r\n", b"x-a: 1\r\n")]
)
async def test_a_head_that_does_not_end_is_not_waited_for(first: bytes, more: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(more)
                await writer.drain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), 0.05)
        writer.close()

    connections = Connections(Settings())
    connections.most_seconds = 0.5
    async with asyncio.timeout(5), await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        backend = Backend("strange", f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        with pytest.raises(NETWORK_ERRORS):
            await connections.get(backend, "/")
        await connections.close()


async def test_what_came_over_an_idle_connection_is_no_answer_to_the_next_request() -> None:
    entered, idle = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SHORT.removesuffix(b"ok"))
        await entered.wait()
        writer.write(b"ok")
        await idle.wait()
        writer.write(SHORT.replace(b"ok", b"no"))
        await reader.read()
        writer.close()

    connections = Connections(Settings())
    async with asyncio.timeout(5), await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        backend = Backend("strange", f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        async with connections.request(backend, "GET", "/") as answer:
            assert answer.connection is not None
            protocol = answer.connection.protocol
            assert protocol is not None
            entered.set()
            assert await answer.read() == b"ok"
        idle.set()
        while not protocol.should_close:
            await asyncio.sleep(0.01)
        with pytest.raises(NOT_SENT_ERRORS):
            await connections.get(backend, "/")
        await connections.close()


async def test_nothing_is_added_unpacked_or_renamed() -> None:
    packed = gzip.compress(b"a picture")
    given = [
        (b"Content-Encoding", b"gzip"),
        (b"Content-Length", b"%d" % len(packed)),
        (b"X-a", b"1"),
        (b"x-A", b"\xe9"),
    ]
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in given)
    async with answering(head + b"\r\n" + packed) as server:
        async with server.connections.request(
            server.backend, "POST", "/a%20b?c=%2f", [(b"x-b", b"2")], b"{}"
        ) as answer:
            assert list(answer.raw_headers) == given
            assert await answer.content.readany() == packed
        host = server.backend.address.removeprefix("http://").encode()
        lines = server.heads[0].lower().split(b"\r\n")
        assert lines[0] == b"post /a%20b?c=%2f http/1.1"
        assert sorted(lines[1:-2]) == [b"content-length: 2", b"host: " + host, b"x-b: 2"]


async def test_a_long_header_passes() -> None:
    given = (b"x-llava-ignored", b"field, " * 8000)
    whole = b"HTTP/1.1 200 OK\r\n%b: %b\r\ncontent-length: 2\r\n\r\nok" % given
    async with answering(whole) as server, server.ask("GET") as answer:
        assert answer.raw_headers[0] == (given[0], given[1].strip())


async def test_an_interim_answer_is_skipped() -> None:
    async with answering(b"HTTP/1.1 100 Continue\r\nX-Other: 1\r\n\r\n" + SHORT) as server, server.ask("GET") as answer:
        assert (answer.status, list(answer.raw_headers)) == (200, [(b"content-length", b"2")])


async def test_an_answer_to_head_has_no_body() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n") as server, server.ask("HEAD") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-more: of them\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"x" * 1_000_000,
    ],
)
async def test_a_connection_that_ends_or_is_not_http_is_broken(answer: bytes) -> None:
    async with answering(answer) as server:
        with pytest.raises(NETWORK_ERRORS) as caught:
            await server.get()
        assert not isinstance(caught.value, NOT_SENT_ERRORS)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "https://127.0.0.1:9", "unix:/nowhere.sock"])
async def test_nothing_listens(address: str) -> None:
    connections = Connections(Settings())
    with pytest.raises(NOT_SENT_ERRORS):
        await connections.get(Backend("one", address), "/")
    await connections.close()
