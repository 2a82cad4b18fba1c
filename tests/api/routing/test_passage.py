"""What passes through the router, and what it answers itself."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from llava_api.routing.backends import Backend, Wanted
from llava_api.routing.proxy import Router
from llava_api.server.lifecycle import Lifecycle
from llava_api.settings import Settings
from tests.support.metrics_page import read_page
from tests.support.routing import FixedBackends, Replica, replica, routed
from tests.support.running_server import Connection, post
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
KEY = "sk-a-key-of-this-test-1234"


def question(model: str = "one", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "What is it?"}], **fields}


@pytest.fixture
def chosen() -> dict[str, Any]:
    """Settings of the servers and of the router."""
    return {}


@pytest_asyncio.fixture
async def servers(tmp_path: Path, chosen: dict[str, Any]) -> AsyncIterator[list[Replica]]:
    async with replica(tmp_path, "one", **chosen) as one, replica(tmp_path, "two", **chosen) as two:
        yield [one, two]


@pytest_asyncio.fixture
async def backends(servers: list[Replica]) -> FixedBackends:
    return FixedBackends(servers)


@pytest_asyncio.fixture
async def client(backends: FixedBackends, chosen: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    async with routed(backends, **chosen) as (opened, _):
        yield opened


async def test_requests_go_to_the_server_of_their_model(client: httpx.AsyncClient, servers: list[Replica]) -> None:
    for name in ("one", "two", "two"):
        answer = await client.post(CHAT, json=question(name))
        assert answer.json()["model"] == name
        assert answer.json()["choices"][0]["message"]["content"] == "A red circle."
    assert [server.asked for server in servers] == [1, 2]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, question()),
        (CHAT, question(stream=True)),
        (CHAT, question(n=99)),
        (CHAT, question(strange=1)),
        ("/v1/explain", question()),
        ("/v1/responses", {"model": "one", "input": "What is it?", "stream": True}),
        ("/v1/messages", question(max_tokens=9, stream=True)),
        ("/v1/messages", question()),
        ("/tokenize", {"model": "one", "prompt": "What?"}),
    ],
)
async def test_answers_pass_byte_for_byte(
    client: httpx.AsyncClient, servers: list[Replica], path: str, body: dict[str, Any]
) -> None:
    """Only ids, times and the date differ, as they do between two requests to one server."""
    async with httpx.AsyncClient(base_url=servers[0].backend.address) as direct:
        expected, answer = await direct.post(path, json=body), await client.post(path, json=body)
    assert answer.status_code == expected.status_code
    assert without_ids(answer) == without_ids(expected)
    assert [name for name, _ in sorted(answer.headers.raw)] == [name for name, _ in sorted(expected.headers.raw)]
    assert answer.headers["content-type"] == expected.headers["content-type"]
    if answer.status_code != 200 and "messages" in path:
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def without_ids(answer: httpx.Response) -> str:
    text = re.sub(r'"[a-z]*[-_][0-9a-f]{32}[^"]*"', '"id"', answer.text)
    return re.sub(r'"(created|created_at|completed_at)":[0-9.]+', '"time"', text)


class TestKeysAndLimits:
    @pytest.fixture
    def chosen(self) -> dict[str, Any]:
        return {"api_key": [f"ann={KEY}"], "requests_per_minute": 2}

    async def test_a_key_is_asked_for_before_the_body(self, client: httpx.AsyncClient) -> None:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(post(CHAT, b"", length=1000))
        answer = await Connection(reader, writer).answer()
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        writer.close()

    async def test_the_key_is_passed_on_and_its_limits_hold(self, client: httpx.AsyncClient) -> None:
        client.headers["authorization"] = f"Bearer {KEY}"
        first, _, third = [await client.post(CHAT, json=question()) for _ in range(3)]
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(third.headers["retry-after"]) > 0
        assert third.headers.get_list("x-request-id") == [third.headers["x-request-id"]]

    async def test_a_body_over_the_limit_is_refused(self, client: httpx.AsyncClient, servers: list[Replica]) -> None:
        client.headers["authorization"] = f"Bearer {KEY}"
        answer = await client.post(CHAT, content=b"{" + b" " * 400_000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_what_the_router_cannot_place_is_refused_as_the_server_does(client: httpx.AsyncClient) -> None:
    unknown, missing = await client.post(CHAT, json=question("three")), await client.post(CHAT, json={"messages": []})
    assert (unknown.status_code, unknown.json()["error"]) == (
        404,
        {
            "message": "This server has no model of that name; it serves one, two.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        },
    )
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "missing_required_parameter")
    assert (await client.post(CHAT, content=b"no")).json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/metrics/", "/docs", "/openapi.json", "/admin", "/v1/files"]
)
async def test_no_other_address_is_open(client: httpx.AsyncClient, path: str) -> None:
    for answer in (await client.post(path, json={}), await client.get(path)):
        assert answer.status_code in (404, 405) or path == "/metrics/"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file-1/content", "/v1/batches"])
async def test_files_and_batches_are_kept_at_the_servers(client: httpx.AsyncClient, path: str) -> None:
    for answer in (await client.post(path, json={}), await client.get(path)):
        assert answer.status_code == 404
        assert "llava-api serve --data-dir, and by no router" in answer.json()["error"]["message"]


def test_these_addresses_are_passed_on() -> None:
    """One that a server gets is not open here before it is named here."""
    router = Router(Settings(), FixedBackends([]), Lifecycle())
    passed = {each.path for each in router.endpoints() if each.handle in (router.ask, router.stored)}
    stored = "/v1/responses/{response_id}"
    assert passed == {
        *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/explain"),
        *("/tokenize", "/detokenize", "/api/chat", "/api/generate", "/api/show"),
        *("/v1/responses", "/v1/responses/input_tokens", stored, f"{stored}/input_items", f"{stored}/cancel"),
    }


async def test_adapters_are_loaded_at_the_servers(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/load_lora_adapter", json={"lora_name": "birds", "lora_path": "birds"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("Adapters are not loaded through this address")


async def test_models_are_those_of_all_servers(client: httpx.AsyncClient) -> None:
    found = (await client.get("/v1/models")).json()
    assert [(model["id"], model["status"]) for model in found["data"]] == [("one", "ready"), ("two", "ready")]
    assert (await client.get("/v1/models/two")).json() == found["data"][1]
    assert (await client.get("/v1/models/three")).json()["error"]["code"] == "model_not_found"
    anthropic = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
    assert anthropic.json()["last_id"] == "two"


async def test_a_client_that_leaves_ends_its_answer(client: httpx.AsyncClient, servers: list[Replica]) -> None:
    servers[0].engine.pause_seconds = 0.2
    async with client.stream("POST", CHAT, json=question(stream=True)) as answer:
        await anext(answer.aiter_bytes())
        assert servers[0].engine.unfinished == 1
    await until(lambda: servers[0].engine.unfinished == 0)
    assert servers[0].engine.deltas < 3


class TestReplicas:
    @pytest_asyncio.fixture
    async def servers(self, tmp_path: Path) -> AsyncIterator[list[Replica]]:
        async with replica(tmp_path, "one", 0) as first, replica(tmp_path, "one", 1) as second:
            yield [first, second]

    async def test_a_request_that_had_no_answer_goes_to_another_replica(
        self, client: httpx.AsyncClient, servers: list[Replica], backends: FixedBackends
    ) -> None:
        gone = Backend("one-gone", "http://127.0.0.1:9")
        servers.insert(0, Replica("one", servers[0].engine, servers[0].app, gone))
        servers[1].app.state.lifecycle.draining = True
        answer = await client.post(CHAT, json=question())
        assert answer.status_code == 200
        assert backends.lost == ["one-gone", "one-0"]
        assert servers[2].asked == 1

    async def test_the_last_refusal_is_passed_on(self, client: httpx.AsyncClient, servers: list[Replica]) -> None:
        for server in servers:
            server.app.state.lifecycle.draining = True
        answer = await client.post(CHAT, json=question())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "server_stopping"


class SlowBackends(FixedBackends):
    """Loads a model when it is asked for."""

    loaded = asyncio.Event()

    @asynccontextmanager
    async def place(self, wanted: Wanted, tried: Any) -> AsyncIterator[Backend]:
        await self.loaded.wait()
        async with super().place(wanted, tried) as backend:
            yield backend


@pytest.mark.parametrize("status", [200, 400])
async def test_a_stream_gets_comments_while_its_model_loads(servers: list[Replica], status: int) -> None:
    backends = SlowBackends(servers)
    backends.loaded = asyncio.Event()
    times = {"stream_head_seconds": 0.01, "stream_keep_alive_seconds": 0.01}
    fields = {} if status == 200 else {"n": 99}
    body = question(stream=True, **fields)
    async with routed(backends, **times) as (client, _), client.stream("POST", CHAT, json=body) as answer:
        lines = answer.aiter_lines()
        assert answer.status_code == 200
        assert [await anext(lines) for _ in range(4)] == [": loading one", ""] * 2
        backends.loaded.set()
        rest = [line async for line in lines if line and not line.startswith(":")]
    if status == 200:
        assert rest[-1] == "data: [DONE]"
    else:
        assert len(rest) == 1
        assert rest[0].startswith('data: {"error":{"message":')


async def test_a_drain_that_takes_too_long_ends_requests_with_an_error(servers: list[Replica]) -> None:
    for server in servers:
        server.engine.pause_seconds = 0.3
    async with routed(FixedBackends(servers)) as (client, router):
        whole = asyncio.create_task(client.post(CHAT, json=question()))
        async with client.stream("POST", CHAT, json=question("two", stream=True)) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            router.abandon()
            rest = [line async for line in lines if line]
        refused = await whole
    assert "server_stopping" in rest[-1]
    assert rest[-1].startswith('data: {"error":')
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
    await until(lambda: not any(server.engine.unfinished for server in servers))


class SlowlyLeftBackends(FixedBackends):
    left = asyncio.Event()

    @asynccontextmanager
    async def place(self, wanted: Wanted, tried: Any) -> AsyncIterator[Backend]:
        async with super().place(wanted, tried) as backend:
            try:
                yield backend
            finally:
                await self.left.wait()


async def test_a_drain_ends_requests_whose_clients_have_left(servers: list[Replica]) -> None:
    servers[0].engine.pause_seconds = 0.2
    backends = SlowlyLeftBackends(servers)
    backends.left = asyncio.Event()
    async with routed(backends) as (client, router):
        async with client.stream("POST", CHAT, json=question(stream=True)):
            (passage,) = router.passages
        await until(passage.expired)
        router.abandon()
        backends.left.set()
        await until(lambda: not router.passages)


async def test_a_packed_body_is_passed_on_unpacked(client: httpx.AsyncClient, servers: list[Replica]) -> None:
    body = gzip.compress(json.dumps(question("two")).encode())
    answer = await client.post(CHAT, content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 200
    assert servers[1].asked == 1


async def test_a_page_that_may_call_the_router_may_call_its_servers(servers: list[Replica]) -> None:
    """The servers have no keys and would refuse a page of another origin."""
    page = {"origin": "https://chat.example.com", "sec-fetch-site": "cross-site"}
    async with routed(FixedBackends(servers), cors_allow_origins=[page["origin"]]) as (client, _):
        answer = await client.post(CHAT, json=question(), headers=page)
        assert answer.status_code == 200
        assert answer.headers.get_list("access-control-allow-origin") == [page["origin"]]
        other = await client.post(CHAT, json=question(), headers=page | {"origin": "https://evil.example.com"})
        assert (other.status_code, other.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert servers[0].asked == 1


class TestOtherApis:
    @pytest.fixture
    def chosen(self) -> dict[str, Any]:
        return {"ollama_api": True, "short_paths": True}

    async def test_ollamas_api(self, client: httpx.AsyncClient, servers: list[Replica]) -> None:
        assert [model["name"] for model in (await client.get("/api/tags")).json()["models"]] == [
            "one:latest",
            "two:latest",
        ]
        answer = await client.post("/api/chat", json=question("two:latest"))
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert "".join(line["message"]["content"] for line in lines).strip() == "A red circle."
        assert servers[1].asked == 1
        assert (await client.get("/")).text == "Ollama is running"
        unknown = await client.post("/api/chat", json=question("three"))
        assert unknown.status_code == 404
        assert isinstance(unknown.json()["error"], str)

    async def test_short_paths(self, client: httpx.AsyncClient, servers: list[Replica]) -> None:
        assert (await client.post("/chat/completions", json=question("two"))).status_code == 200
        assert (await client.post("/responses", json={"model": "two", "input": "What?"})).status_code == 200
        assert servers[1].asked == 2


async def test_servers_on_unix_sockets(tmp_path: Path) -> None:
    path = str(tmp_path / "server.sock")
    async with replica(tmp_path, "one", unix_socket=path) as server, routed(FixedBackends([server])) as (client, _):
        assert server.backend.address == f"unix:{path}"
        answer = await client.post(CHAT, json=question())
        assert answer.json()["choices"][0]["message"]["content"] == "A red circle."


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"503 No\r\nconnection: close", b"x" * 200_000, 503),
        (b"200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n", 503),
        (b"999 Hello\r\ncontent-length: 2", b"{}", 502),
        (b"600 Hello\r\ncontent-length: 0", b"", 502),
    ],
)
async def test_answers_that_no_server_should_give(
    servers: list[Replica], head: bytes, body: bytes, status: int
) -> None:
    """A refusal that does not end would fill the memory; with two lengths it is not known where an answer ends."""

    async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %b\r\n\r\n%b" % (head, body))
        writer.close()

    async with await asyncio.start_server(strange, "127.0.0.1", 0) as server:
        servers[0].backend = Backend("strange", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with routed(FixedBackends(servers)) as (client, _):
            answer = await client.post(CHAT, json=question())
    assert answer.status_code == status
    assert len(answer.content) < 1000
    if status == 502:
        assert answer.json()["error"]["code"] == "bad_gateway"
    answer.json()


async def test_a_wrong_chunk_ends_a_stream_with_an_error(servers: list[Replica]) -> None:
    """The backend leaves the connection open."""
    begun = asyncio.Event()

    async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await begun.wait()
        writer.write(b"not a length\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(strange, "127.0.0.1", 0) as server:
        servers[0].backend = Backend("strange", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with (
            routed(FixedBackends(servers)) as (client, _),
            client.stream("POST", CHAT, json=question(stream=True)) as answer,
        ):
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == b"data: 1\n\n"
            begun.set()
            rest = b"".join([piece async for piece in pieces])
    assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "engine_stopped"


# aiohttp warns that a body of this size holds up the event loop; it is in memory in any case.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_large_body_is_sent_again_to_another_replica_as_it_was(servers: list[Replica]) -> None:
    body = json.dumps(question(user="x" * 3_000_000)).encode()
    got = []

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.append(await reader.readexactly(len(body)))
        if len(got) == 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(backend, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for number, one in enumerate(servers):
            one.model, one.backend = "one", Backend(f"{number}", address)
        async with routed(FixedBackends(servers), max_body_bytes=4_000_000) as (client, _):
            assert (await client.post(CHAT, content=body)).text == "{}"
    assert got == [body, body]


async def test_headers_of_one_connection_are_not_passed_on(servers: list[Replica]) -> None:
    """Those that ``Connection`` names, in both directions."""
    heads = []

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close, X-Hop\r\nx-hop: 1\r\nx-end: 1\r\ncontent-length: 2\r\n\r\n{}"
        )
        writer.close()

    async with await asyncio.start_server(backend, "127.0.0.1", 0) as server:
        servers[0].backend = Backend("one", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with routed(FixedBackends(servers)) as (client, _):
            sent = {"connection": "keep-alive, X-Mine", "x-mine": "1", "x-end": "1"}
            answer = await client.post(CHAT, json=question(), headers=sent)
    assert b"x-mine" not in heads[0]
    assert b"x-end: 1" in heads[0]
    assert "x-hop" not in answer.headers
    assert answer.headers["x-end"] == "1"


async def test_adapters_without_number_add_no_series_without_number(
    servers: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_api.telemetry.router_metrics.MOST_MODELS", 1)
    async with routed(FixedBackends(servers)) as (client, _):
        for model in ("one", "two"):
            await client.post(CHAT, json=question(model))
        page = read_page((await client.get("/metrics")).text)
    assert page.labels("llava_api_router_requests_total", "model") == {"one", "other"}
