"""Connections of the router to backends that answer as they like."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llava_api.routing.backends import Backend
from llava_api.routing.connections import ConnectionBroken, Connections, NotConnected
from llava_api.settings import Settings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def answering(*answers: bytes | None) -> AsyncIterator[tuple[Connections, Backend, list[int]]]:
    """A server that sends an answer for each request, or closes for None; and the connection that each came over."""
    used: list[int] = []
    left = list(answers)
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left and await reader.read(65_536):
            used.append(writer.get_extra_info("peername")[1])
            answer = left.pop(0)
            if answer is None:
                break
            writer.write(answer)
            if not answer.endswith(b"ok"):
                break
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connections = Connections(Settings())
    try:
        host, port = server.sockets[0].getsockname()
        yield connections, Backend("one", f"http://{host}:{port}"), used
    finally:
        await connections.close()
        server.close()
        await asyncio.wait_for(ended.wait(), 5)


async def read(connections: Connections, backend: Backend, method: str = "GET") -> tuple[int, bytes]:
    answer = await connections.send(backend, method, "/", [])
    try:
        return answer.status, await answer.aread()
    finally:
        await answer.aclose()


async def test_a_connection_serves_many_requests() -> None:
    async with answering(OK, OK, OK) as (connections, backend, used):
        assert [await read(connections, backend) for _ in range(3)] == [(200, b"ok")] * 3
        assert len(set(used)) == 1


async def test_an_answer_that_is_not_read_to_its_end_costs_its_connection() -> None:
    async with answering(OK, OK) as (connections, backend, used):
        await (await connections.send(backend, "GET", "/", [])).aclose()
        assert await read(connections, backend) == (200, b"ok")
        assert len(set(used)) == 2


async def test_an_interim_answer_is_skipped() -> None:
    async with answering(b"HTTP/1.1 100 Continue\r\nX-Other: 1\r\n\r\n" + OK) as (connections, backend, _):
        answer = await connections.send(backend, "GET", "/", [])
        assert (answer.status, answer.headers) == (200, [(b"Content-Length", b"2")])
        assert await answer.aread() == b"ok"
        await answer.aclose()


async def test_an_answer_to_head_has_no_body() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\nX: ok") as (connections, backend, _):
        with pytest.raises(ConnectionBroken):
            await read(connections, backend)
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n") as (connections, backend, _):
        assert await read(connections, backend, "HEAD") == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
async def test_a_connection_that_ends_or_is_not_http_is_broken(answer: bytes | None) -> None:
    async with answering(answer) as (connections, backend, _):
        with pytest.raises(ConnectionBroken) as caught:
            await read(connections, backend)
        assert not isinstance(caught.value, NotConnected)


async def test_nobody_listens() -> None:
    with pytest.raises(NotConnected):
        await Connections(Settings()).send(Backend("one", "http://127.0.0.1:9"), "GET", "/", [])
