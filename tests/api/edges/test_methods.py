"""HEAD, OPTIONS and methods that no route has."""

import pytest

from tests.support.endpoints import ALL, example_address
from tests.support.running_server import HEALTH, RunningServer

RESPONSE = "/v1/responses/{response_id}"


@pytest.mark.parametrize(
    "path",
    # No response is stored here, and the metrics change with every request.
    [
        example_address(each)
        for each in ALL
        if each.method == "GET" and not each.path.startswith((RESPONSE, "/metrics"))
    ],
)
async def test_head_is_get_without_its_body(edge: RunningServer, path: str) -> None:
    caller = await edge.connect()
    got = await caller.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    await caller.send(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    head = await caller.answer(has_body=False)
    assert (head.status, head.headers["content-length"]) == (200, str(len(got.body)))
    # Nothing of a body comes before the next answer.
    assert (await caller.ask(HEALTH)).body == b'{"status":"live"}'


async def test_head_where_get_is_refused(edge: RunningServer) -> None:
    caller = await edge.connect()
    for path, status in (("/v1/chat/completions", 405), ("/nowhere", 404), ("/v1/models/other", 404)):
        await caller.send(f"HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await caller.answer(has_body=False)).status == status
    assert (await caller.ask(HEALTH)).status == 200


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "PATCH", "PROPFIND", "PURGE", "QUERY"])
async def test_other_methods(edge: RunningServer, method: str) -> None:
    answer = await edge.ask(f"{method} /v1/models HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    answer = await edge.ask(f"{method} /nowhere HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert (answer.status, answer.error["code"]) == (404, "not_found")


async def test_options_of_the_server_as_a_whole(edge: RunningServer) -> None:
    answer = await edge.ask(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (answer.status, answer.error["code"]) == (404, "not_found")
