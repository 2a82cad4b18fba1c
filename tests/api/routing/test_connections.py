"""The router's own connections, to backends that send what no server should."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from llava_api.routing.backends import Backend
from llava_api.routing.connections import MOST_HEAD_BYTES, READ_AHEAD_BYTES, ConnectionBroken, Connections
from llava_api.settings import Settings

OK = b"HTTP/1.1 200 OK\r\n"
SHORT = OK + b"content-length: 2\r\n\r\n{}"


@asynccontextmanager
async def answering(
    answer: Callable[[int, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[Connections, Backend]]:
    """``answer`` gets the number of the request, from 0 on, and writes what it likes."""
    numbers = iter(range(99))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await answer(next(numbers), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        connections = Connections(Settings(request_timeout_seconds=5))
        yield connections, Backend("strange", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await connections.close()


async def ask(connections: Connections, backend: Backend) -> bytes:
    answer = await connections.send(backend, "GET", "/", [])
    try:
        return await answer.aread()
    finally:
        await answer.aclose()


@pytest.mark.parametrize("endless", [b"x-more: of them\r\n", b"x", b"\r\nHTTP/1.1 103 Early Hints\r\n"])
async def test_headers_without_end_are_given_up(endless: bytes) -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nx: y\r\n")
        for _ in range(2 * MOST_HEAD_BYTES // len(endless)):
            writer.write(endless)
        await writer.drain()

    async with answering(answer) as (connections, backend), asyncio.timeout(5):
        with pytest.raises(ConnectionBroken, match="headers do not end"):
            await connections.send(backend, "GET", "/", [])


@pytest.mark.parametrize("after", [SHORT.replace(b"{}", b"no"), b"no"])
async def test_a_second_answer_to_one_request_is_not_that_to_the_next(after: bytes) -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(SHORT + (b"" if number else after))

    async with answering(answer) as (connections, backend):
        assert [await ask(connections, backend) for _ in range(2)] == [b"{}", b"{}"]


async def test_a_connection_is_used_again_after_a_slow_reader() -> None:
    length = 4 * READ_AHEAD_BYTES

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(SHORT if number else OK + b"content-length: %d\r\n\r\n" % length + b"x" * length)

    async with answering(answer) as (connections, backend), asyncio.timeout(5):
        slow = await connections.send(backend, "GET", "/", [])
        read = 0
        async for piece in slow.stream:
            # All that the connection takes has come before the next piece is read.
            while not (slow.paused or slow.is_complete):
                await asyncio.sleep(0.001)
            read += len(piece)
        await slow.aclose()
        assert read == length
        assert await ask(connections, backend) == b"{}"
