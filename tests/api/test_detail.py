"""``detail``: on LLaVA-1.6 the base tile alone or the whole grid; on 1.5 no difference."""

import asyncio
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.questions import data_url
from tests.support.scripted_engine import ScriptedEngine

EXPLAIN, CHAT = "/v1/explain", "/v1/chat/completions"
WIDE = data_url(Image.new("RGB", (160, 80), "red"))


def asks(*details: str | None) -> dict[str, Any]:
    images = [{"url": WIDE} | ({} if detail is None else {"detail": detail}) for detail in details]
    parts = [{"type": "image_url", "image_url": image} for image in images]
    text = {"type": "text", "text": "What is it?"}
    return {"model": "tiny", "messages": [{"role": "user", "content": [*parts, text]}]}


async def shown(client: httpx.AsyncClient, *details: str | None) -> list[dict[str, Any]]:
    reply = await client.post(EXPLAIN, json=asks(*details))
    images: list[dict[str, Any]] = reply.json()["images"]
    return images


class TestLlava16:
    @pytest.fixture
    def pinpoints(self) -> list[list[int]]:
        return [[84, 168], [168, 84], [168, 168]]

    async def test_low_is_the_base_tile_alone(self, client: httpx.AsyncClient) -> None:
        (low,) = await shown(client, "low")
        # 36 patches and the newline that ends the one row of them.
        assert (low["image_tokens"], low["pixels_shape"], low["grid"], low["detail"]) == (
            37,
            [1, 3, 84, 84],
            [1, 1],
            "low",
        )

    async def test_high_auto_and_nothing_are_the_whole_grid(self, client: httpx.AsyncClient) -> None:
        high, auto, left_out = await shown(client, "high", "auto", None)
        assert high["pixels_shape"] == [3, 3, 84, 84]
        assert high["grid"] == [2, 1]
        for other in (auto, left_out):
            assert other | {"param": high["param"]} == high

    async def test_one_image_at_both_details_in_one_request(
        self, client: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        reply = await client.post(CHAT, json=asks("low", "high"))
        low, high = engine.requests[0].images
        assert (low.pixels.shape[0], high.pixels.shape[0]) == (1, 3)
        assert low.cache_key != high.cache_key
        assert (low.pixels[0] == high.pixels[0]).all()
        assert reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] == low.length + high.length

    async def test_details_never_answer_for_one_another_from_the_cache(
        self, client: httpx.AsyncClient, engine: ScriptedEngine
    ) -> None:
        for _ in range(2):
            await asyncio.gather(*(client.post(CHAT, json=asks(detail)) for detail in ("low", "high") * 4))
        images = [image for request in engine.requests for image in request.images]
        # 36 tokens of the base tile, then 6 rows of 12 patches, each with its newline.
        assert {(image.length, image.pixels.shape[0]) for image in images} == {(37, 1), (36 + 6 * 13, 3)}


async def test_no_difference_on_llava_15(client: httpx.AsyncClient) -> None:
    low, high = await shown(client, "low", "high")
    assert low | {"param": high["param"]} == high
    assert high["pixels_shape"] == [3, 84, 84]


@pytest.mark.parametrize("detail", ["medium", 1, True])
async def test_another_detail_is_refused(client: httpx.AsyncClient, detail: object) -> None:
    body = asks("low")
    body["messages"][0]["content"][0]["image_url"]["detail"] = detail
    reply = await client.post(CHAT, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "messages[0].content[0].image_url.detail")
