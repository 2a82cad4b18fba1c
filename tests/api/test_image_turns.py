"""Many images at once: callers take turns for the threads; beyond the bound a 503 says when to come again."""

import asyncio
import base64
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from llava_api.images.load import ImageLoader, MeasuredImage, RenderedImage
from tests.api.test_chat import CHAT, image_message
from tests.api.test_errors import error_of
from tests.api.test_queue import ANNE, BEN
from tests.support.at_rest import held
from tests.support.questions import data_url
from tests.support.waiting import until


@pytest.fixture
def settings_made() -> dict[str, Any]:
    keys = [f"{name}=sk-llava-for-{name}-0123456789" for name in ("anne", "ben")]
    return {"api_key": keys, "image_threads": 1, "max_waiting_images": 20}


@pytest.fixture
def images(app: FastAPI) -> ImageLoader:
    found: ImageLoader = app.state.services.preparer.images
    return found


def asks(*colours: int) -> dict[str, Any]:
    """About images that nobody has sent before, one for each colour."""
    urls = [data_url(Image.new("RGB", (20, 20), (colour, 0, 0))) for colour in colours]
    return {"model": "tiny", "messages": [image_message("Colour?", *urls)]}


async def test_one_image_is_not_behind_anothers_crowd(
    client: httpx.AsyncClient, images: ImageLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = images.render_data
    rendered: list[bytes] = []

    def slowly(image: MeasuredImage) -> RenderedImage:
        rendered.append(image.data)
        time.sleep(0.02)
        return render(image)

    monkeypatch.setattr(images, "render_data", slowly)
    crowd = asyncio.create_task(client.post(CHAT, json=asks(*range(16)), headers=ANNE))
    await until(lambda: images.decoding.admission.waiting == 15)
    his = asyncio.create_task(client.post(CHAT, json=asks(100), headers=BEN))
    await until(lambda: len(images.decoding.admission.queues) == 2)
    before = len(rendered)
    assert (await his).status_code == 200
    url = asks(100)["messages"][0]["content"][0]["image_url"]["url"]
    # One turn of hers may come first.
    assert rendered.index(base64.b64decode(url.partition(",")[2])) <= before + 1
    assert images.decoding.admission.waiting > 5
    await crowd


@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_that_wait_are_told_when_to_come_again(
    app: FastAPI, client: httpx.AsyncClient, images: ImageLoader, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    render, go_on = images.render_data, threading.Event()

    def slowly(image: MeasuredImage) -> RenderedImage:
        assert go_on.wait(10)
        return render(image)

    monkeypatch.setattr(images, "render_data", slowly)
    images.decoding.admission.most_waiting = 3
    first = asyncio.create_task(client.post(CHAT, json=asks(1, 2, 3, 4), headers=ANNE))
    await until(lambda: images.decoding.admission.waiting == 3)
    reply = await client.post(CHAT, json={**asks(5, 6), "stream": stream}, headers=ANNE)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "images_busy")
    assert int(reply.headers["retry-after"]) > 0
    # Another caller's is taken in, and who filled the queue gives a place up.
    his = asyncio.create_task(client.post(CHAT, json=asks(7), headers=BEN))
    refused = await first
    assert (refused.status_code, error_of(refused)["code"]) == (503, "images_busy")
    go_on.set()
    assert (await his).status_code == 200
    await until(lambda: held(app) == {})
    assert (await client.post(CHAT, json=asks(8, 9), headers=ANNE)).status_code == 200
