"""The load generator: closed-loop streaming requests over kept-alive connections, as lean as Python allows.

While the clock runs it only sends ready bytes and keeps what arrives with a time stamp; nothing is parsed beyond
HTTP's framing (httptools, in C) until the last answer is there. It shares the machine with the server it measures.
"""

import asyncio
import gc
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import httptools
import orjson
import uvloop

ANSWER_LIMIT_SECONDS = 300.0


@dataclass(slots=True)
class Exchange:
    """One request and what came back, unread."""

    sent: float
    ended: float = 0.0
    status: int = 0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    broken: str | None = None
    """Why there is no whole answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A streamed answer, read. Times in seconds."""

    first_token: float
    """From sending the request to the first piece of text."""
    gaps: tuple[float, ...]
    """Between one piece of text and the next."""
    total: float
    prompt_tokens: int
    completion_tokens: int
    problem: str | None = None


class Connection(asyncio.Protocol):
    """One kept-alive connection: one request at a time."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.exchange: Exchange | None = None
        self.done: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.arrived = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, not the base class.

    def data_received(self, data: bytes) -> None:
        self.arrived = time.perf_counter()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.finish(f"not HTTP: {error}")

    def on_body(self, piece: bytes) -> None:
        if self.exchange is not None:
            self.exchange.pieces.append((self.arrived, piece))

    def on_message_complete(self) -> None:
        if self.exchange is not None:
            self.exchange.status = self.parser.get_status_code()
        self.finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.finish(f"the connection was closed ({error or 'by the server'})")

    def finish(self, broken: str | None) -> None:
        if self.exchange is not None and self.done is not None and not self.done.done():
            self.exchange.ended = time.perf_counter()
            self.exchange.broken = broken
            self.done.set_result(None)

    async def ask(self, head: bytes, body: bytes, limit_seconds: float) -> Exchange:
        assert self.transport is not None
        self.done = asyncio.get_running_loop().create_future()
        self.exchange = exchange = Exchange(time.perf_counter())
        self.transport.writelines((head, body))
        try:
            await asyncio.wait_for(self.done, limit_seconds)
        except TimeoutError:
            exchange.broken = f"no whole answer within {limit_seconds:.0f} s"
        return exchange


def head_of(body: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Accept: text/event-stream\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    )


async def send_all(port: int, bodies: Sequence[bytes], concurrency: int, end: float) -> list[Exchange]:
    waiting = iter([(head_of(body), body) for body in bodies])
    exchanges: list[Exchange] = []

    async def client() -> None:
        connection: Connection | None = None
        for head, body in waiting:
            left = end - time.monotonic()
            if left <= 0:
                break
            if connection is None or exchanges_broken(connection):
                _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
            exchanges.append(await connection.ask(head, body, min(left, ANSWER_LIMIT_SECONDS)))
        if connection is not None and connection.transport is not None:
            connection.transport.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return exchanges


def exchanges_broken(connection: Connection) -> bool:
    last = connection.exchange
    return (last is not None and last.broken is not None) or (
        connection.transport is not None and connection.transport.is_closing()
    )


def send(port: int, bodies: Sequence[bytes], concurrency: int, end: float = math.inf) -> list[Exchange]:
    """Send ``bodies``, ``concurrency`` at a time; blocks until all are answered, or the monotonic clock shows ``end``.

    Requests that had no turn until then are missing in the result.
    """
    gc.collect()
    gc.disable()  # A collection between two time stamps would be counted against the server.
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(send_all(port, bodies, concurrency, end))
    finally:
        gc.enable()


def events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """(when its last byte arrived, data) of each Server-Sent Event."""
    stream = b"".join(piece for _, piece in pieces)
    ends: list[int] = []
    for _, piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    separator = b"\r\n\r\n" if b"\r\n\r\n" in stream else b"\n\n"
    start = 0
    while (end := stream.find(separator, start)) >= 0:
        event = stream[start:end]
        start = end + len(separator)
        if event.startswith(b"data:"):
            yield pieces[bisect_left(ends, start)][0], event[5:].strip()


def read_answer(exchange: Exchange, expected_tokens: int | None) -> Answer:
    """``expected_tokens``: an answer of another length is a problem; None where any length is right."""
    times: list[float] = []
    usage: dict[str, int] = {}
    finished = done = False
    problem = exchange.broken
    if problem is None and exchange.status != 200:
        problem = f"status {exchange.status}: {b''.join(piece for _, piece in exchange.pieces)[:500].decode()}"
    if problem is None:
        for arrived, data in events(exchange.pieces):
            if data == b"[DONE]":
                done = True
                continue
            chunk = orjson.loads(data)
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                finished = finished or choice.get("finish_reason") is not None
                if choice["delta"].get("content"):
                    times.append(arrived)
            if "error" in chunk:
                problem = f"error in the stream: {chunk['error']}"
    tokens = usage.get("completion_tokens", 0)
    as_expected = tokens > 0 if expected_tokens is None else tokens == expected_tokens
    if problem is None and not (finished and done and times and as_expected):
        problem = f"finished {finished}, [DONE] {done}, {len(times)} pieces of text, {tokens} tokens"
    return Answer(
        first_token=times[0] - exchange.sent if times else float("nan"),
        gaps=tuple(later - earlier for earlier, later in pairwise(times)),
        total=exchange.ended - exchange.sent,
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=tokens,
        problem=problem,
    )
