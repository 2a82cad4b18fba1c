"""What sse-starlette does by itself, and this server does otherwise."""

import httpx
from sse_starlette.sse import AppStatus

from llava_api.server.sse import EventStream
from tests.api.test_chat import CHAT, text_body


def test_a_signal_does_not_end_streams() -> None:
    """The drain decides how long they go on."""
    assert EventStream.__mro__[1].__module__ == "sse_starlette.sse"
    assert not AppStatus.enable_automatic_graceful_drain


async def test_headers_and_framing(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=text_body(stream=True))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers.get_list("cache-control") == ["no-cache"]
    assert reply.headers.get_list("x-accel-buffering") == ["no"]
    # Only the HTTP server knows whether the connection is kept.
    assert "connection" not in reply.headers
    assert b"\r" not in reply.content
    assert all(block.startswith(b"data: ") for block in reply.content.removesuffix(b"\n\n").split(b"\n\n"))
    assert reply.content.endswith(b"\n\ndata: [DONE]\n\n")
