"""Bodies and paths as clients really send them: a byte order mark, half a surrogate pair, slashes, gzip."""

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.api.test_chat import CHAT, prompt_of, text_body
from tests.api.test_errors import error_of
from tests.support.scripted_engine import ScriptedEngine

BOM = b"\xef\xbb\xbf"


def escaped(text: str) -> bytes:
    """A body whose one message is ``text``, which is put between JSON's quotes as it is."""
    return b'{"model": "tiny", "messages": [{"role": "user", "content": "%s"}]}' % text.encode()


async def asked(client: httpx.AsyncClient, engine: ScriptedEngine, body: bytes) -> str:
    """What the model was asked by ``body``."""
    reply = await client.post(CHAT, content=body)
    assert reply.status_code == 200, reply.text
    return prompt_of(engine).partition("USER: ")[2].removesuffix(" ASSISTANT:")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"Hi \ud83d there", "Hi \ufffd there"),
        (r"Hi \uDE00 there", "Hi \ufffd there"),
        (r"\ud83d\ude00 \ud83d", "\U0001f600 \ufffd"),
        (r"\ude00\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83d\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd"),
        (r"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (r"\\\ud83d\\", "\\\ufffd\\"),
        (r"\\ud83d\udc00", "\\ud83d\ufffd"),
    ],
)
async def test_half_a_surrogate_pair(client: httpx.AsyncClient, engine: ScriptedEngine, text: str, read: str) -> None:
    assert await asked(client, engine, escaped(text)) == read
    assert await asked(client, engine, BOM + escaped(text)) == read


async def test_a_byte_order_mark(client: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    assert await asked(client, engine, BOM + escaped("What can you do?")) == "What can you do?"


@pytest.mark.parametrize("body", [BOM, BOM + BOM + escaped("Hi"), escaped(r"\ud83"), escaped("a\0\\ud83d"), b"\xff{}"])
async def test_what_is_no_json_still_is_none(client: httpx.AsyncClient, body: bytes) -> None:
    reply = await client.post(CHAT, content=body)
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("path", [f"{CHAT}/", f"/{CHAT}", "//v1//chat/completions//"])
async def test_slashes_too_many(client: httpx.AsyncClient, path: str) -> None:
    # As text: httpx would take two slashes for the beginning of a host's name.
    reply = await client.post(f"http://test{path}", json=text_body())
    assert reply.json()["choices"][0]["message"]["content"] == "A red circle."


async def test_the_list_of_models_with_a_slash(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/")).json()["data"][0]["id"] == "owner/tiny"
    assert (await client.get("/v1/models/owner/tiny/")).json()["id"] == "owner/tiny"


class TestAFolderAsAName:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"root_path": "/llava"}

    async def test_its_slashes_are_kept(self, client: httpx.AsyncClient, app: FastAPI) -> None:
        model = app.state.services.model
        object.__setattr__(model, "names", ("/models/tiny//", "tiny"))
        for path in ("//models/tiny//", "/%2Fmodels%2Ftiny%2F%2F", "/models/tiny"):
            assert (await client.get(f"/v1/models{path}")).json()["id"] == "/models/tiny//"

    async def test_below_a_proxys_path(self, client: httpx.AsyncClient) -> None:
        for path in ("/llava/v1/models", "//llava/v1/models/", "/llava//v1/models", "/llava/v1/models"):
            assert (await client.get(f"http://test{path}")).status_code == 200


class TestKeys:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"api_key": ["anne=a-key-of-thirty-two-characters-here"]}

    @pytest.mark.parametrize("path", ["//v1/models", "/v1/models/", "/health/../v1/models/", "/health//v1/models"])
    async def test_slashes_do_not_replace_one(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.get(f"http://test{path}")).status_code == 401

    async def test_what_is_open_is_open_with_slashes(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("http://test//health/live/")).status_code == 200


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


class TestPackedBodies:
    @pytest.mark.parametrize(
        ("encoding", "pack"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)]
    )
    async def test_they_are_unpacked(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, encoding: str, pack: Any
    ) -> None:
        body = pack(escaped("word " * 100 + "end"))
        reply = await client.post(CHAT, content=body, headers={"content-encoding": encoding})
        assert reply.status_code == 200
        assert prompt_of(engine).endswith("word end ASSISTANT:")

    @pytest.mark.parametrize(
        "body",
        [
            gzip.compress(escaped("Hi"))[:-9],
            gzip.compress(escaped("Hi")) + b"more",
            escaped("Hi"),
            b"",
            raw_deflate(escaped("Hi")),
        ],
        ids=["cut off", "more", "not packed", "empty", "raw"],
    )
    async def test_a_damaged_one(self, client: httpx.AsyncClient, body: bytes) -> None:
        reply = await client.post(CHAT, content=body, headers={"content-encoding": "gzip"})
        assert reply.status_code == 400
        assert "pack it again" in error_of(reply)["message"]

    @pytest.mark.parametrize("size", [300_001, 200_000_000])
    async def test_the_limit_counts_unpacked_bytes(self, client: httpx.AsyncClient, size: int) -> None:
        packer = zlib.compressobj(9, wbits=31)
        step = bytes(min(size, 10_000_000))
        body = b"".join(packer.compress(step) for _ in range(size // len(step))) + packer.flush()
        limited = await client.post(CHAT, content=body, headers={"content-encoding": "gzip"})
        assert (limited.status_code, error_of(limited)["code"]) == (413, "request_too_large")

    async def test_packed_bytes_that_unpack_to_nothing_are_counted(self, client: httpx.AsyncClient) -> None:
        nothing = b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\0\0\0\xff\xff" * 100_000

        async def in_parts() -> Any:
            for start in range(0, len(nothing), 50_000):
                yield nothing[start : start + 50_000]

        reply = await client.post(CHAT, content=in_parts(), headers={"content-encoding": "gzip"})
        assert (reply.status_code, error_of(reply)["code"]) == (413, "request_too_large")

    async def test_memory_is_charged_for_what_comes_out(
        self, client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = app.state.services.memory
        monkeypatch.setattr(memory, "max_bytes", 200_000)
        body = gzip.compress(json.dumps(text_body("a" * 250_000)).encode())
        assert len(body) < 1000
        reply = await client.post(CHAT, content=body, headers={"content-encoding": "gzip"})
        assert (reply.status_code, error_of(reply)["code"]) == (503, "memory_full")
