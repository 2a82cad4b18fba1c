"""LoRA adapters that are loaded, replaced and unloaded while the server runs, over a scripted engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from fastapi import FastAPI

from llava_api.chat.adapters import Adapters
from llava_api.cli.serve import check_lora_keys
from llava_api.engine.base import Adapter
from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing
from llava_api.server.services import Services
from llava_api.settings import Settings
from llava_api.telemetry.metrics import MOST_MODELS
from tests.api.test_chat import CHAT, text_body
from tests.support.metrics_page import read_page
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until
from tests.unit.test_adapters import QUERY, pair, write_adapter

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ADMIN, USER = "sk-llava-for-admins-0123456789", "sk-llava-for-users-0123456789"
HIDDEN = 4096
"""Of the checkpoint that tests/api serves."""


def adapter_folder(folder: Path, rank: int = 8) -> Path:
    folder.mkdir(parents=True)
    write_adapter(folder, pair(QUERY, rank, HIDDEN, HIDDEN), r=rank)
    return folder


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        adapter_folder(tmp_path / "shelf" / name)
    return tmp_path / "shelf"


@pytest.fixture
def settings_made(shelf: Path) -> dict[str, Any]:
    return {
        "lora_dir": [str(shelf)],
        "lora_key": ["admin"],
        "api_key": [f"admin={ADMIN}", f"user={USER}"],
        "max_running_answers": 2,
        "max_adapters": 2,
        "max_lora_rank": 16,
    }


@pytest_asyncio.fixture
async def admin(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    client.headers["authorization"] = f"Bearer {ADMIN}"
    yield client


@pytest.fixture
def services(app: FastAPI) -> Services:
    found: Services = app.state.services
    return found


async def load(admin: httpx.AsyncClient, name: str, path: str | Path, **more: Any) -> httpx.Response:
    return await admin.post(LOAD, json={"lora_name": name, "lora_path": str(path), **more})


async def unload(admin: httpx.AsyncClient, name: str) -> httpx.Response:
    return await admin.post(UNLOAD, json={"lora_name": name})


async def ask(admin: httpx.AsyncClient, name: str, **more: Any) -> httpx.Response:
    return await admin.post(CHAT, json=text_body(**more) | {"model": name})


async def names(admin: httpx.AsyncClient) -> list[str]:
    return [card["id"] for card in (await admin.get("/v1/models")).json()["data"]]


async def test_an_adapter_is_served_as_soon_as_it_is_loaded_and_no_longer_once_it_is_unloaded(
    admin: httpx.AsyncClient, engine: ScriptedEngine, shelf: Path
) -> None:
    reply = await load(admin, "cats", "cats")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'cats' added successfully.")
    page = read_page((await admin.get("/metrics")).text)
    assert page.value("llava_api_request_outcomes_total", outcome="ok", model="cats") == 0
    assert reply.headers["content-type"].startswith("text/plain")
    assert [(adapter.name, adapter.path) for adapter in engine.adapters] == [("cats", str(shelf / "cats"))]
    assert await names(admin) == ["owner/tiny", "tiny", "birds", "cats"]
    card = (await admin.get("/v1/models/cats")).json()
    assert (card["root"], card["parent"]) == ("cats", "owner/tiny")
    answer = await ask(admin, "cats")
    assert answer.json()["model"] == "cats"
    assert engine.requests[-1].adapter == engine.adapters[0]
    reply = await unload(admin, "cats")
    assert (reply.status_code, reply.text) == (200, "Success: LoRA adapter 'cats' removed successfully.")
    assert await names(admin) == ["owner/tiny", "tiny", "birds"]
    refused = await ask(admin, "cats")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    await until(lambda: not engine.adapters)
    page = read_page((await admin.get("/metrics")).text)
    assert page.value("llava_api_completion_tokens_total", model="cats", key="admin") == 3


async def test_the_whole_path_may_be_given_and_an_adapter_of_the_start_unloaded(
    admin: httpx.AsyncClient, engine: ScriptedEngine, services: Services, shelf: Path
) -> None:
    engine.adapters.append(services.model.adapters.served["birds"])
    assert (await load(admin, "cats", shelf / "cats")).status_code == 200
    assert (await unload(admin, "birds")).status_code == 200
    assert await names(admin) == ["owner/tiny", "tiny", "cats"]
    await until(lambda: [adapter.name for adapter in engine.adapters] == ["cats"])


async def test_answers_of_an_unloaded_adapter_go_on_to_their_end(
    admin: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await load(admin, "cats", "cats")
    engine.pause_seconds = 0.05
    running = asyncio.create_task(ask(admin, "cats"))
    await until(lambda: engine.unfinished == 1)
    assert (await unload(admin, "cats")).status_code == 200
    assert (await ask(admin, "cats")).status_code == 404
    assert len(engine.adapters) == 1
    assert (await running).json()["choices"][0]["message"]["content"] == "A red circle."
    await until(lambda: not engine.adapters)


async def test_a_replaced_adapter_ends_its_answers_and_the_next_are_of_the_new_one(
    admin: httpx.AsyncClient, engine: ScriptedEngine, shelf: Path
) -> None:
    await load(admin, "pets", "cats")
    engine.pause_seconds = 0.05
    running = asyncio.create_task(ask(admin, "pets"))
    await until(lambda: engine.unfinished == 1)
    assert (await load(admin, "pets", "dogs", load_inplace=True)).status_code == 200
    after = await ask(admin, "pets")
    before = await running
    used = [request.adapter for request in engine.requests]
    assert [adapter.path for adapter in used if adapter] == [str(shelf / "cats"), str(shelf / "dogs")]
    # The engine must not take them for the same one: neither its prefix cache, which goes by the name, nor its worker.
    assert len({adapter.engine_name for adapter in used if adapter}) == 2
    assert len({adapter.number for adapter in used if adapter}) == 2
    await until(lambda: engine.adapters == used[1:])
    assert before.json()["system_fingerprint"] != after.json()["system_fingerprint"]


async def test_no_weights_come_back_under_a_name_that_the_engine_knows(
    admin: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    seen = []
    for _ in range(3):
        # Also from the same folder, whose files may have changed.
        await load(admin, "pets", "cats")
        seen.append(engine.adapters[-1].engine_name)
        await unload(admin, "pets")
    await load(admin, seen[1], "cats")
    seen.append(engine.adapters[-1].engine_name)
    assert len(set(seen)) == 4


class TestOneAnswerAtATime:
    @pytest.fixture
    def settings_made(self, settings_made: dict[str, Any]) -> dict[str, Any]:
        return {**settings_made, "max_running_answers": 1}

    async def test_a_request_that_waits_while_its_adapter_is_replaced_gets_the_new_one(
        self, admin: httpx.AsyncClient, engine: ScriptedEngine, services: Services, shelf: Path
    ) -> None:
        await load(admin, "pets", "cats")
        engine.pause_seconds = 0.05
        asked = [asyncio.create_task(ask(admin, "pets")) for _ in range(2)]
        await until(lambda: services.admission.waiting == 1)
        await load(admin, "pets", "dogs", load_inplace=True)
        assert [(await reply).status_code for reply in asked] == [200, 200]
        paths = [request.adapter.path for request in engine.requests if request.adapter]
        assert paths == [str(shelf / "cats"), str(shelf / "dogs")]

    async def test_a_request_that_waits_while_its_adapter_is_unloaded_is_refused(
        self, admin: httpx.AsyncClient, engine: ScriptedEngine, services: Services
    ) -> None:
        await load(admin, "pets", "cats")
        engine.pause_seconds = 0.05
        asked = [asyncio.create_task(ask(admin, "pets")) for _ in range(2)]
        await until(lambda: services.admission.waiting == 1)
        await unload(admin, "pets")
        first, second = [await reply for reply in asked]
        assert first.status_code == 200
        assert (second.status_code, second.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_engine_never_holds_more_than_it_has_room_for(
    admin: httpx.AsyncClient, engine: ScriptedEngine, services: Services
) -> None:
    engine.adapters.append(services.model.adapters.served["birds"])
    await load(admin, "pets", "cats")
    assert services.model.adapters.engine_room == 3
    engine.pause_seconds = 0.05
    running = asyncio.create_task(ask(admin, "pets"))
    await until(lambda: engine.unfinished == 1)
    await load(admin, "pets", "dogs", load_inplace=True)
    assert len(engine.adapters) == 3
    # Two are served and the first of the name still answers. The next waits for its end.
    third = asyncio.create_task(load(admin, "pets", "cats", load_inplace=True))
    await until(services.model.adapters.turn.locked)
    assert not third.done()
    await running
    assert (await third).status_code == 200
    assert len(engine.adapters) <= 3
    full = await load(admin, "more", "cats")
    assert (full.status_code, full.json()["error"]["param"]) == (400, "lora_name")
    assert "up to 2 adapters" in full.json()["error"]["message"]


async def test_a_load_goes_on_if_its_caller_leaves(
    admin: httpx.AsyncClient, engine: ScriptedEngine, services: Services
) -> None:
    engine.adapter_gate.clear()
    leaving = asyncio.create_task(load(admin, "cats", "cats"))
    await until(services.model.adapters.turn.locked)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert "cats" not in await names(admin)
    engine.adapter_gate.set()
    await until(lambda: "cats" in services.model.adapters.served)
    assert [adapter.name for adapter in engine.adapters] == ["cats"]


def outside(shelf: Path) -> str:
    return str(adapter_folder(shelf.parent / "outside"))


def traversal(shelf: Path) -> str:
    return "cats/../../" + adapter_folder(shelf.parent / "outside").name


def neighbour(shelf: Path) -> str:
    return str(adapter_folder(shelf.parent / "shelf-of-others"))


def linked_folder(shelf: Path) -> str:
    (shelf / "link").symlink_to(adapter_folder(shelf.parent / "outside"))
    return "link"


def linked_file(shelf: Path) -> str:
    secret = adapter_folder(shelf.parent / "outside") / "adapter_model.safetensors"
    (shelf / "cats" / "adapter_model.safetensors").unlink()
    (shelf / "cats" / "adapter_model.safetensors").symlink_to(secret)
    return "cats"


def loop(shelf: Path) -> str:
    (shelf / "loop").symlink_to("loop")
    return "loop"


@pytest.mark.parametrize(
    "place",
    [
        outside,
        traversal,
        neighbour,
        linked_folder,
        linked_file,
        loop,
        lambda _: "/nowhere",
        lambda _: "..",
        lambda _: "cats\0",
        lambda _: "x" * 5000,
        lambda _: "~",
        lambda _: "owner/of-the-hub",
    ],
)
async def test_only_folders_within_lora_dir_are_read(
    admin: httpx.AsyncClient, engine: ScriptedEngine, shelf: Path, place: Any
) -> None:
    reply = await load(admin, "cats", place(shelf))
    error = reply.json()["error"]
    assert reply.status_code in (400, 404)
    assert error["param"] == "lora_path"
    assert "--lora-dir" in error["message"]
    assert engine.adapters == []
    assert await names(admin) == ["owner/tiny", "tiny", "birds"]


async def test_outside_lora_dir_what_exists_cannot_be_told_from_what_does_not(
    admin: httpx.AsyncClient, shelf: Path
) -> None:
    there, not_there = [await load(admin, "cats", path) for path in (outside(shelf), shelf.parent / "nothing")]
    assert (there.status_code, there.json()) == (not_there.status_code, not_there.json())
    assert (await load(admin, "cats", "nothing")).status_code == 404


class TestFromTheHub:
    @pytest.fixture
    def settings_made(self, settings_made: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
        return {**settings_made, "lora_dir": [], "lora_from_hub": True, "download_dir": str(tmp_path / "cache")}

    async def test_an_adapter_is_fetched_by_its_id_and_no_folder_is_read(
        self, admin: httpx.AsyncClient, engine: ScriptedEngine, shelf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        unknown = await load(admin, "dogs", "org/dogs")
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "lora_path")
        assert "the hub has no checkpoint org/dogs" in unknown.json()["error"]["message"]
        monkeypatch.chdir(shelf.parent)
        for path in ("shelf/cats", str(shelf / "cats"), "../shelf", "."):
            assert "--lora-dir" in (await load(admin, "dogs", path)).json()["error"]["message"]
        # What it does with the hub: tests/unit/test_adapters.py.
        asked: list[tuple[str, str | None]] = []

        def fetch(*wanted: Any) -> Path:
            asked.append(wanted)
            return shelf / "cats"

        monkeypatch.setattr("llava_api.chat.adapters.locate_adapter", fetch)
        assert (await load(admin, "cats", "org/cats")).status_code == 200
        assert asked == [("org/cats", str(shelf.parent / "cache"))]
        assert [adapter.name for adapter in engine.adapters] == ["cats"]


async def test_files_may_be_links_within_lora_dir(admin: httpx.AsyncClient, shelf: Path) -> None:
    (shelf / "snapshot").mkdir()
    for file in (shelf / "cats").iterdir():
        (shelf / "snapshot" / file.name).symlink_to(f"../cats/{file.name}")
    assert (await load(admin, "cats", "snapshot")).status_code == 200


def too_high(folder: Path) -> None:
    write_adapter(folder, pair(QUERY, 32, HIDDEN, HIDDEN), r=32)


def of_another_model(folder: Path) -> None:
    write_adapter(folder, pair(QUERY, 8, 128, 128))


def of_an_unknown_layer(folder: Path) -> None:
    write_adapter(folder, pair(QUERY.replace("q_proj", "x_proj"), 8, HIDDEN, HIDDEN))


def of_llava(folder: Path) -> None:
    torch.save({}, folder / "non_lora_trainables.bin")


def of_no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("spoil", [too_high, of_another_model, of_an_unknown_layer, of_llava, of_no_weights])
async def test_what_the_start_refuses_is_refused_in_the_same_words_before_the_engine_sees_it(
    admin: httpx.AsyncClient, engine: ScriptedEngine, services: Services, shelf: Path, spoil: Any
) -> None:
    spoil(shelf / "cats")
    reply = await load(admin, "cats", "cats")
    settings = Settings(lora=[f"cats={shelf / 'cats'}"], max_lora_rank=16)
    with pytest.raises(StartupError) as refused:
        Adapters(settings, ("m",), services.model.checkpoint)
    sentence = str(refused.value).removeprefix("--lora cats: ")
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "lora_path")
    assert error["message"] == f"This adapter cannot be served: {sentence}."
    assert engine.adapters == []
    assert await names(admin) == ["owner/tiny", "tiny", "birds"]


async def test_an_adapter_that_the_engine_refuses_fails_in_this_call(
    admin: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.refused_adapters.add("cats")
    reply = await load(admin, "cats", "cats")
    assert reply.status_code == 400
    assert "the engine could not load it" in reply.json()["error"]["message"]
    assert (await ask(admin, "cats")).status_code == 404
    engine.dead = True
    assert (await load(admin, "dogs", "dogs")).status_code == 503
    assert await names(admin) == ["owner/tiny", "tiny", "birds"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (LOAD, {"lora_name": "birds", "lora_path": "cats"}, 400, "lora_name"),
        (LOAD, {"lora_name": "tiny", "lora_path": "cats", "load_inplace": True}, 400, "lora_name"),
        (LOAD, {"lora_name": "", "lora_path": "cats"}, 400, "lora_name"),
        (LOAD, {"lora_name": "a\nb", "lora_path": "cats"}, 400, "lora_name"),
        (LOAD, {"lora_path": "cats"}, 400, "lora_name"),
        (LOAD, {"lora_name": "cats"}, 400, "lora_path"),
        (UNLOAD, {"lora_name": "cats"}, 404, "lora_name"),
        (UNLOAD, {"lora_name": "tiny"}, 404, "lora_name"),
        (UNLOAD, {}, 400, "lora_name"),
    ],
)
async def test_refusals(
    admin: httpx.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    reply = await admin.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
    assert await names(admin) == ["owner/tiny", "tiny", "birds"]
    assert engine.adapters == []


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_only_the_keys_that_are_named_for_it_may_call(
    client: httpx.AsyncClient, engine: ScriptedEngine, path: str
) -> None:
    body = {"lora_name": "birds", "lora_path": "cats", "load_inplace": True}
    assert (await client.post(path, json=body)).status_code == 401
    reply = await client.post(path, json=body, headers={"authorization": f"Bearer {USER}"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "key_not_allowed")
    models = await client.get("/v1/models", headers={"authorization": f"Bearer {USER}"})
    assert [card["id"] for card in models.json()["data"]] == ["owner/tiny", "tiny", "birds"]
    assert engine.adapters == []


class TestWithoutKeys:
    @pytest.fixture
    def settings_made(self, shelf: Path) -> dict[str, Any]:
        return {"lora_dir": [str(shelf)], "lora_key": [""]}

    async def test_no_request_may_load_and_the_server_does_not_start(
        self, client: httpx.AsyncClient, settings_made: dict[str, Any]
    ) -> None:
        assert (await load(client, "cats", "cats")).status_code == 403
        for more in ({}, {"lora_key": ["admin"]}, {"lora_key": [], "api_key": [f"admin={ADMIN}"]}):
            settings = Settings.model_validate(settings_made | more)
            with pytest.raises(StartupError, match="--lora-key"):
                check_lora_keys(settings, KeyRing(settings))


class TestOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"lora_key": ["admin"], "api_key": [f"admin={ADMIN}"]}

    @pytest.mark.parametrize("path", [LOAD, UNLOAD])
    async def test_without_lora_dir_there_are_no_such_addresses(self, admin: httpx.AsyncClient, path: str) -> None:
        assert (await admin.post(path, json={"lora_name": "birds"})).status_code == 404


async def test_a_new_engine_gets_what_is_served_now_and_one_that_fails_there_is_served_no_longer(
    admin: httpx.AsyncClient, services: Services
) -> None:
    adapters = services.model.adapters
    await adapters.load_into(ScriptedEngine())
    await unload(admin, "birds")
    await load(admin, "cats", "cats")
    await load(admin, "dogs", "dogs")
    restarted = ScriptedEngine()
    restarted.refused_adapters.add("dogs")
    await adapters.load_into(restarted)
    assert [adapter.name for adapter in restarted.adapters] == ["cats"]
    assert await names(admin) == ["owner/tiny", "tiny", "cats"]


async def test_an_adapter_that_is_unloaded_while_the_engine_starts_again_is_not_loaded(
    admin: httpx.AsyncClient, services: Services
) -> None:
    adapters = services.model.adapters
    await unload(admin, "birds")
    for name in ("cats", "dogs"):
        await load(admin, name, name)

    class Restarted(ScriptedEngine):
        async def load_adapter(self, adapter: Adapter) -> None:
            for name in ("cats", "dogs"):
                if name in adapters.served:
                    adapters.unload(self, name)
            raise StartupError("its folder is gone")

    restarted = Restarted()
    await adapters.load_into(ScriptedEngine())
    await adapters.load_into(restarted)
    assert restarted.adapters == []
    assert await names(admin) == ["owner/tiny", "tiny"]


async def test_metrics_do_not_grow_with_every_name_that_an_adapter_ever_had(
    admin: httpx.AsyncClient, services: Services
) -> None:
    earlier = {f"earlier-{number}" for number in range(MOST_MODELS - len(services.metrics.models))}
    services.metrics.models |= earlier
    await load(admin, "cats", "cats")
    assert (await ask(admin, "cats")).status_code == 200
    page = read_page((await admin.get("/metrics")).text)
    assert page.value("llava_api_request_outcomes_total", outcome="ok", model="other") == 1
    assert "cats" not in services.metrics.models
