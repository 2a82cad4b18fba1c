"""``llava-api route``: which replica gets a request, and what happens when one is lost."""

import asyncio
import base64
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from llava_api.errors import StartupError, Unavailable
from llava_api.limits.keys import plain_key
from llava_api.routing.backends import Wanted
from llava_api.routing.replicas import LEEWAY, Replicas
from llava_api.settings import Settings
from llava_api.telemetry.router_metrics import RouterMetrics
from tests.support.certificates import Authority
from tests.support.image_files import encoded, noise
from tests.support.metrics_page import read_page
from tests.support.routing import Replica, replica, routed
from tests.support.waiting import until

CHAT = "/v1/chat/completions"


def said(*texts: str, model: str = "one", **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"model": model, "messages": turns, **fields}


def replicas_of(servers: list[Replica], *more: str, key: Path | None = None) -> Replicas:
    addresses = [*(server.backend.address for server in servers), *more]
    return Replicas(addresses, Settings(), RouterMetrics({"llava-api": "1"}), key)


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[Replica]]:
    """Three replicas of one model, and another model."""
    async with AsyncExitStack() as at_end:
        yield [
            await at_end.enter_async_context(replica(tmp_path, name, number))
            for name, number in (("one", 0), ("one", 1), ("one", 2), ("two", 0))
        ]


@pytest_asyncio.fixture
async def replicas(servers: list[Replica]) -> AsyncIterator[Replicas]:
    made = replicas_of(servers)
    await made.start()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def client(replicas: Replicas) -> AsyncIterator[httpx.AsyncClient]:
    async with routed(replicas) as (opened, _):
        yield opened


def counts(servers: list[Replica]) -> list[int]:
    return [server.asked for server in servers]


class TestAffinity:
    async def test_the_turns_of_a_conversation_go_to_one_replica(
        self, client: httpx.AsyncClient, servers: list[Replica]
    ) -> None:
        for turns in (
            ("Hello.",),
            ("Hello.", "Hi.", "What is it?"),
            ("Hello.", "Hi.", "What is it?", "A cat.", "Why?"),
        ):
            assert (await client.post(CHAT, json=said(*turns))).status_code == 200
        assert sorted(counts(servers)) == [0, 0, 0, 3]

    async def test_questions_about_one_image_go_to_one_replica(
        self, client: httpx.AsyncClient, servers: list[Replica]
    ) -> None:
        url = f"data:image/png;base64,{base64.b64encode(encoded(noise(40, 40), 'PNG')).decode()}"
        for number in range(4):
            content = [
                {"type": "text", "text": f"Question {number}?"},
                {"type": "image_url", "image_url": {"url": url}},
            ]
            answer = await client.post(CHAT, json={"model": "one", "messages": [{"role": "user", "content": content}]})
            assert answer.status_code == 200
        assert sorted(counts(servers)) == [0, 0, 0, 4]

    async def test_other_conversations_use_all_replicas(
        self, client: httpx.AsyncClient, servers: list[Replica]
    ) -> None:
        for number in range(40):
            await client.post(CHAT, json=said(f"Question {number}"))
        assert min(counts(servers)[:3]) > 4
        assert servers[3].asked == 0

    async def test_a_busy_replica_is_passed_over(self, replicas: Replicas) -> None:
        wanted = Wanted("one", b"the same")
        async with AsyncExitStack() as at_end:
            placed = Counter([(await at_end.enter_async_context(replicas.place(wanted, ()))).name for _ in range(12)])
        assert max(placed.values()) <= 1.25 * 12 / 3 + LEEWAY + 1
        assert len(placed) > 1
        assert sum(one.open_requests for one in replicas.replicas.values()) == 0

    async def test_a_lost_replica_moves_only_its_own_conversations(self, replicas: Replicas) -> None:
        wanted = [Wanted("one", str(number).encode()) for number in range(30)]
        before = [replicas.choose(each, ()) for each in wanted]
        before[0].ready = False
        after = [replicas.choose(each, ()) for each in wanted]
        assert all(was is now for was, now in zip(before, after, strict=True) if was is not before[0])
        assert before[0] not in after


class TestLoss:
    async def test_a_draining_replica_loses_no_request(
        self, client: httpx.AsyncClient, servers: list[Replica], replicas: Replicas
    ) -> None:
        servers[1].app.state.lifecycle.draining = True
        answers = await asyncio.gather(*(client.post(CHAT, json=said(f"{number}")) for number in range(30)))
        assert {answer.status_code for answer in answers} == {200}
        assert servers[1].asked == 0
        assert servers[1].backend.address not in {backend.address for backend in replicas.running()}
        servers[1].app.state.lifecycle.draining = False
        await replicas.look()
        assert len(replicas.running()) == 4

    async def test_with_no_replica_left_the_model_is_unavailable(
        self, client: httpx.AsyncClient, servers: list[Replica], replicas: Replicas
    ) -> None:
        servers[3].app.state.lifecycle.draining = True
        refused = [await client.post(CHAT, json=said("a", model="two")) for _ in range(2)]
        assert [answer.json()["error"]["code"] for answer in refused] == ["server_stopping", "model_not_ready"]
        assert [answer.headers["retry-after"] for answer in refused] == ["1", "5"]
        assert (await client.post(CHAT, json=said("a"))).status_code == 200
        listed = {card["id"]: card["status"] for card in (await client.get("/v1/models")).json()["data"]}
        assert listed == {"one": "ready", "two": "unreachable"}
        page = read_page((await client.get("/metrics")).text)
        down = next(one.backend.name for one in replicas.replicas.values() if one.serves("two"))
        assert page.value("llava_api_router_backend_up", model="two", backend=down) == 0
        assert page.value("llava_api_router_rejections_total", reason="model_not_ready") == 1

    async def test_a_replica_that_ends_while_it_computes_costs_no_answer(
        self, client: httpx.AsyncClient, servers: list[Replica], replicas: Replicas
    ) -> None:
        for server in servers[:3]:
            server.engine.pause_seconds = 0.2
        asking = [asyncio.create_task(client.post(CHAT, json=said(f"{number}"))) for number in range(9)]
        await until(lambda: sum(counts(servers)) == 9)
        before = counts(servers)
        ended = servers[before.index(max(before[:3]))]
        # As when its process is killed: its connections end, and nobody listens.
        ended.kill()
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        page = read_page((await client.get("/metrics")).text)
        assert page.value("llava_api_router_retries_total", model="one") == max(before[:3])

    async def test_a_request_that_ends_its_servers_is_not_given_to_all(
        self, client: httpx.AsyncClient, servers: list[Replica], replicas: Replicas
    ) -> None:
        for server in servers[:3]:
            server.engine.pause_seconds = 5
        asking = asyncio.create_task(client.post(CHAT, json=said("a")))
        for asked in (1, 2):
            await until(lambda asked=asked: sum(counts(servers)) == asked)
            next(server for server in servers if server.engine.unfinished and not server.killed).kill()
        answer = await asking
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")
        assert sum(counts(servers)) == 2

    async def test_a_stream_that_has_begun_ends_with_an_error(
        self, client: httpx.AsyncClient, servers: list[Replica]
    ) -> None:
        for server in servers:
            server.engine.pause_seconds = 0.2
        async with client.stream("POST", CHAT, json=said("a", stream=True)) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            next(server for server in servers if server.asked).kill()
            rest = [line async for line in lines if line]
        assert rest[-1].startswith('data: {"error":{"message":"The server that was answering has stopped')
        assert sum(counts(servers)) == 1


class TestSleepingModels:
    async def test_a_request_waits_until_its_model_has_a_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llava_api.routing.replicas.LOOK_SECONDS", 0.02)
        monkeypatch.setattr("llava_api.routing.replicas.NAMES_SECONDS", 0.02)
        metrics = RouterMetrics({"llava-api": "1"})
        replicas = Replicas([], Settings(), metrics, None, ["one"])
        async with asyncio.timeout(2):
            # Without a server the router takes requests.
            await replicas.start()
        looking = asyncio.create_task(replicas.supervise())
        async with routed(replicas) as (client, _), replica(tmp_path, "one") as server:
            (card,) = (await client.get("/v1/models")).json()["data"]
            assert (card["id"], card["status"]) == ("one", "unreachable")
            asked = asyncio.create_task(client.post(CHAT, json=said("a")))
            await until(lambda: replicas.waiting["one"] == 1)
            replicas.sample()
            page = read_page(metrics.page("")[0].decode())
            assert page.value("llava_api_router_waiting_requests", model="one") == 1
            replicas.addresses = [server.backend.address]
            answered = await asked
            assert answered.status_code == 200
            assert replicas.waiting["one"] == 0
        looking.cancel()
        await replicas.close()

    async def test_it_waits_as_long_as_a_request_may_take(self) -> None:
        replicas = Replicas(
            [], Settings(request_timeout_seconds=0.01), RouterMetrics({"llava-api": "1"}), None, ["one"]
        )
        with pytest.raises(Unavailable):
            async with replicas.place(Wanted("one"), []):
                pass
        assert replicas.waiting["one"] == 0
        with pytest.raises(Unavailable):
            async with replicas.place(Wanted("another"), []):
                pass


class TestModels:
    async def test_keys_are_needed_to_list_models(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        key = tmp_path / "key"
        key.write_text("sk-the-router's-own-key\n")
        async with replica(tmp_path, "one", api_key=[f"router={key.read_text().strip()}"]) as server:
            without, with_key = replicas_of([server]), replicas_of([server], key=key)
            await without.look()
            await with_key.look()
            await without.close()
            await with_key.close()
        assert (without.running(), len(with_key.running())) == ([], 1)
        assert "--backend-key-file" in caplog.text

    async def test_the_first_plain_key_of_a_folder_lists_models_and_may_be_exchanged(self, tmp_path: Path) -> None:
        (folder := tmp_path / "keys").mkdir()
        (folder / "anne").write_text("sha256:" + "0" * 64)
        (folder / "bob").write_text("sk-llava-another-key-of-bob")
        key = "sk-llava-the-key-of-bob"
        async with replica(tmp_path, "one", api_key=[f"bob={key}"]) as server:
            replicas = replicas_of([server], key=folder)
            await replicas.look()
            assert replicas.running() == []
            (folder / "bob").write_text(f"{key}\n")
            await replicas.look()
            assert len(replicas.running()) == 1
            await replicas.close()

    def test_a_folder_of_hashes_has_no_key_to_show(self, tmp_path: Path) -> None:
        (tmp_path / "anne").write_text("sha256:" + "0" * 64)
        with pytest.raises(StartupError, match="no API key that is not a hash"):
            plain_key(tmp_path)

    async def test_a_model_that_may_still_come_is_not_unknown_for_a_while(
        self, servers: list[Replica], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level("INFO", "llava_api")
        replicas = replicas_of(servers[:1], "http://127.0.0.1:9")
        await replicas.start()
        async with routed(replicas) as (client, _):
            answer = await client.post(CHAT, json=said("a", model="two"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
            assert answer.json()["error"]["message"].endswith("check the name, or try again in a moment. Known: one.")
            assert int(answer.headers["retry-after"]) > 0
            assert "backend 127.0.0.1:9 takes no requests: Cannot connect" in caplog.text
            monkeypatch.setattr("llava_api.routing.replicas.SILENT_SECONDS", 0)
            await replicas.look()
            answer = await client.post(CHAT, json=said("a", model="two"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert "backend 127.0.0.1:9: no models listed for" in caplog.text
            page = read_page((await client.get("/metrics")).text)
            assert page.value("llava_api_router_backend_up", model="", backend="127.0.0.1:9") == 0

    @pytest.mark.parametrize("data", [b"[1]", b"{}", b'"one"', b'[{"id":["one"]}]', b'[{"id":"other"}]', b"[null]"])
    async def test_a_server_with_strange_models_does_not_concern_others(
        self, servers: list[Replica], data: bytes
    ) -> None:
        async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = b'{"data":%b}' % data
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            writer.close()

        async with await asyncio.start_server(strange, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            made = replicas_of(servers, f"http://127.0.0.1:{port}")
            await made.start()
            async with routed(made) as (client, _):
                assert (await client.post(CHAT, json=said("Hello."))).status_code == 200
                for headers in ({}, {"anthropic-version": "2023-06-01"}):
                    listed = (await client.get("/v1/models", headers=headers)).json()["data"]
                    assert {"one", "two"} <= {card["id"] for card in listed}

    async def test_an_adapter_that_was_unloaded_is_unknown_and_one_that_may_come_back_is_not(
        self, servers: list[Replica], replicas: Replicas
    ) -> None:
        one = next(each for each in replicas.replicas.values() if each.serves("one"))
        birds = one.models[0] | {"id": "birds", "parent": "one"}
        one.models.append(birds)
        lost = birds | {"id": "fish", "parent": "a model whose servers are away"}
        replicas.known |= {"birds": birds, "fish": lost}
        for each in replicas.replicas.values():
            each.next_models = 0
        async with routed(replicas) as (client, _):
            await replicas.look()
            codes = [
                (await client.post(CHAT, json=said("Hello.", model=name))).json()["error"]["code"]
                for name in ("birds", "fish")
            ]
        assert codes == ["model_not_found", "model_not_ready"]

    async def test_a_name_that_cannot_be_one_does_not_concern_others(
        self, servers: list[Replica], caplog: pytest.LogCaptureFixture
    ) -> None:
        replicas = replicas_of(servers[:1], "http://gpu1..example:80")
        await replicas.start()
        assert len(replicas.running()) == 1
        assert "backend http://gpu1..example:80: its name is not known" in caplog.text
        await replicas.close()

    async def test_a_name_with_several_addresses_is_several_replicas(
        self, servers: list[Replica], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a headless Service has them. They are looked up again, and those of the other family are left out."""
        replicas, found = replicas_of([], "http://models.svc:8000"), ["10.0.0.1", "10.0.0.2"]

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            if not found:
                raise socket.gaierror(-2, "unknown")
            six = (socket.AF_INET6, 1, 6, "", ("fd00::1", port, 0, 0))
            return [six, *((socket.AF_INET, 1, 6, "", (address, port)) for address in found)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)

        async def look_up() -> list[str]:
            await replicas.look_up("http://models.svc:8000")
            return [backend.address for backend in replicas.found["http://models.svc:8000"]]

        assert await look_up() == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
        found[:] = ["10.0.0.2", "10.0.0.3"]
        assert await look_up() == ["http://10.0.0.2:8000", "http://10.0.0.3:8000"]
        found.clear()
        assert await look_up() == ["http://10.0.0.2:8000", "http://10.0.0.3:8000"]


async def test_servers_with_https_are_verified_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    certificate, key = authority.pair().write(tmp_path / "tls")
    (tmp_path / "authority.pem").write_bytes(authority.certificate)
    async with replica(tmp_path, "one", tls_certificate_file=certificate, tls_key_file=key) as server:
        address = f"https://localhost:{server.backend.address.rpartition(':')[2]}"
        stranger = replicas_of([], address)
        await stranger.look()
        assert stranger.running() == []
        await stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        replicas = replicas_of([], address)
        await replicas.start()
        assert [backend.host for backend in replicas.running()] == [address.removeprefix("https://")]
        async with routed(replicas) as (client, _):
            assert (await client.post(CHAT, json=said("a"))).status_code == 200
        await replicas.close()


async def test_a_stored_response_is_found_at_its_replica(tmp_path: Path) -> None:
    """By its id, and by the next request that continues it."""
    async with AsyncExitStack() as at_end:
        servers = [
            await at_end.enter_async_context(replica(tmp_path, "one", number, response_store_bytes=10**6))
            for number in range(3)
        ]
        replicas = replicas_of(servers)
        await replicas.start()
        client, _ = await at_end.enter_async_context(routed(replicas))
        first = [(await client.post("/v1/responses", json={"model": "one", "input": f"{n}"})).json() for n in range(6)]
        before = counts(servers)
        assert sum(count > 0 for count in before) > 1
        for response in first:
            assert (await client.get(f"/v1/responses/{response['id']}")).json() == response
            again = {"model": "one", "input": "And?", "previous_response_id": response["id"]}
            assert (await client.post("/v1/responses", json=again)).status_code == 200
        assert counts(servers) == [2 * count for count in before]
        assert (await client.delete(f"/v1/responses/{first[0]['id']}")).json()["deleted"]
        gone = await client.get(f"/v1/responses/{first[0]['id']}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_unavailable_says_when_to_come_again() -> None:
    with pytest.raises(Unavailable) as caught:
        async with replicas_of([]).place(Wanted("one"), ()):
            pass
    assert caught.value.retry_after_seconds
