"""Where an image may come from and how a client may write it."""

import io
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from llava_api.images import decode
from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
RED = Image.new("RGB", (60, 40), "red")
URL = data_url(RED)
TEXT = {"type": "text", "text": "What is it?"}


def body(*parts: object) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": [*parts, TEXT]}]}


def image_url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


async def refusal(client: httpx.AsyncClient, *parts: object) -> dict[str, Any]:
    reply = await client.post(CHAT, json=body(*parts))
    assert reply.status_code == 400
    error: dict[str, Any] = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


class TestForms:
    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": {"url": URL}},
            {"type": "image_url", "image_url": {"url": URL, "detail": None}},
            {"type": "image_url", "image_url": URL},
            {"type": "input_image", "image_url": URL},
            {"type": "input_image", "image_url": URL, "detail": "low"},
            {"type": "image_url", "image_url": {"url": "\n " + URL + " \n"}},
            {"type": "image_url", "image_url": {"url": URL.replace(";base64", ";charset=utf-8;base64")}},
        ],
    )
    async def test_every_form_shows_the_same_image(
        self, client: httpx.AsyncClient, engine: ScriptedEngine, part: dict[str, Any]
    ) -> None:
        for wanted in (image_url(URL), part):
            assert (await client.post(CHAT, json=body(wanted))).status_code == 200
        first, second = engine.requests
        assert first.token_ids == second.token_ids
        assert first.images[0].cache_key == second.images[0].cache_key

    async def test_texts_as_the_responses_api_writes_them(
        self, client: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        for text in (TEXT, {"type": "input_text", "text": "What is it?"}):
            message = {"role": "user", "content": [image_url(URL), text]}
            assert (await client.post(CHAT, json={"model": "tiny", "messages": [message]})).status_code == 200
        assert engine.requests[0].token_ids == engine.requests[1].token_ids

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": {}},
            {"type": "image_url"},
            {"type": "image_url", "image_url": 5},
            {"type": "image_url", "image_url": None},
            {"type": "input_image", "file_id": "file-1"},
        ],
    )
    async def test_other_forms_are_refused_where_they_stand(
        self, client: httpx.AsyncClient, part: dict[str, Any]
    ) -> None:
        error = await refusal(client, image_url(URL), part)
        assert error["param"].startswith("messages[0].content[1]")


class TestFiles:
    @pytest.fixture
    def settings_made(self, tmp_path: Path) -> dict[str, Any]:
        folder = tmp_path / "pictures"
        (folder / "below").mkdir(parents=True)
        (tmp_path / "pictures-too").mkdir()
        for place in ("pictures/red.png", "pictures/below/a b.png", "pictures-too/red.png", "secret.png"):
            (tmp_path / place).write_bytes(png(RED))
        (folder / "big.png").write_bytes(png(RED) + bytes(200_000))
        (folder / "out.png").symlink_to(tmp_path / "secret.png")
        (folder / "in.png").symlink_to(folder / "red.png")
        (folder / "loop.png").symlink_to(folder / "loop.png")
        os.mkfifo(folder / "pipe.png")
        return {"allowed_media_path": [str(folder)]}

    @pytest.mark.parametrize("path", ["red.png", "below/a%20b.png", "below/../red.png", "in.png"])
    @pytest.mark.parametrize("host", ["", "localhost"])
    async def test_files_below_the_folder(
        self, client: httpx.AsyncClient, tmp_path: Path, path: str, host: str
    ) -> None:
        url = f"file://{host}{tmp_path}/pictures/{path}"
        assert (await client.post(CHAT, json=body(image_url(url)))).status_code == 200

    @pytest.mark.parametrize(
        "path",
        [
            *("pictures/out.png", "secret.png", "pictures/../secret.png", "pictures/%2e%2e/secret.png"),
            *("pictures-too/red.png", "pictures/none.png", "none/at/all.png", "pictures", "pictures/pipe.png"),
            *("pictures/loop.png", "pictures/red.png%00.png", "pictures/" + "a" * 5000),
        ],
    )
    async def test_anything_else_gets_one_and_the_same_answer(
        self, client: httpx.AsyncClient, tmp_path: Path, path: str
    ) -> None:
        error = await refusal(client, image_url(f"file://{tmp_path}/{path}"))
        assert error["code"] == "image_url_not_allowed"
        assert error == await refusal(client, image_url("file:///etc/hostname"))
        assert error == await refusal(client, image_url(f"file://example.com{tmp_path}/pictures/red.png"))

    async def test_a_file_that_is_too_large(self, client: httpx.AsyncClient, tmp_path: Path) -> None:
        error = await refusal(client, image_url(f"file://{tmp_path}/pictures/big.png"))
        assert error["code"] == "image_too_large"


async def test_without_a_folder_no_file_is_read(client: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png(RED))
    error = await refusal(client, image_url(f"file://{tmp_path}/red.png"))
    assert (error["code"], error["param"]) == ("image_url_not_allowed", "messages[0].content[0].image_url")


class TestAllTogether:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"max_request_image_bytes": 3 * len(png(RED)) + 10}

    async def test_bytes_of_all_images_of_a_request(self, client: httpx.AsyncClient) -> None:
        assert (await client.post(CHAT, json=body(*[image_url(URL)] * 3))).status_code == 200
        error = await refusal(client, *[image_url(URL)] * 4)
        assert (error["code"], error["param"]) == ("image_too_large", "messages[0].content[3].image_url")
        assert "together" in error["message"]


class TestSwitchedOff:
    @pytest.fixture
    def settings_made(self) -> dict[str, Any]:
        return {"fetch_images": False}

    async def test_nothing_is_fetched(self, client: httpx.AsyncClient) -> None:
        error = await refusal(client, image_url("https://example.com/a.png"))
        assert error["code"] == "image_url_not_allowed"
        assert "data: URL" in error["message"]


async def test_what_cannot_fit_is_refused_before_a_pixel_is_decoded(
    client: httpx.AsyncClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(decode, "decode", never)
    wanted = body(*[image_url(URL)] * 10, {"type": "text", "text": "a b c " * 600})
    reply = await client.post(CHAT, json=wanted)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    # 36 tokens an image; how many of text depends on the tokenizer.
    assert "360 of images" in error["message"]
    assert "2048 tokens" in error["message"]
    assert engine.requests == []


async def test_an_image_that_was_sent_before_is_not_decoded_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    original = decode.decode
    monkeypatch.setattr(decode, "decode", lambda *args, **more: decoded.append(1) or original(*args, **more))
    turns: list[dict[str, Any]] = list(body(image_url(URL))["messages"])
    for question in ("And now?", "And then?"):
        assert (await client.post(CHAT, json={"model": "tiny", "messages": turns})).status_code == 200
        turns += [{"role": "assistant", "content": "Red."}, {"role": "user", "content": question}]
    assert len(decoded) == 1
