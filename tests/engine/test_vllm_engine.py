"""What users are promised of the engine: many at once, nobody's answer changed by another's, nothing left over."""

import asyncio
import json
import time
from random import Random

import httpx
import pytest

from llava_api.chat.question import chat_question
from llava_api.engine.base import GenerationRequest
from llava_api.limits.account import Account
from llava_api.protocol.chat import ChatCompletionRequest
from tests.engine.conftest import Running
from tests.support.questions import data_url
from training.drawings import new_drawing

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKENS = 96


async def image_request(running: Running, index: int, name: str) -> GenerationRequest:
    image = new_drawing(Random(f"engine test {index}"), (300 + index, 200))
    parts = [
        {"type": "text", "text": "Describe this image."},
        {"type": "image_url", "image_url": data_url(image.image)},
    ]
    wanted = ChatCompletionRequest.model_validate(
        {
            "model": "endless",
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": TOKENS,
            "temperature": 0.0,
        }
    )
    question = chat_question(wanted, running.model, 1)
    return (await running.preparer.prepare(question, name, Account("test"))).request


async def text_of(running: Running, request: GenerationRequest, progress: list[str] | None = None) -> str:
    parts = []
    async for delta in running.engine.generate(request):
        parts.append(delta.text)
        if progress is not None:
            progress.extend([request.request_id] * delta.completion_tokens)
    return "".join(parts)


async def settled(running: Running, seconds: float) -> bool:
    """Whether the engine had nothing left to do within ``seconds``."""
    deadline = time.monotonic() + seconds
    while running.unfinished_requests() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return running.unfinished_requests() == 0


async def test_eight_streams_progress_together_and_each_says_what_it_says_alone(running: Running) -> None:
    progress: list[str] = []
    names = [f"together-{index}" for index in range(8)]
    requests = [await image_request(running, index, name) for index, name in enumerate(names)]
    together = await asyncio.gather(*(text_of(running, request, progress) for request in requests))
    first_end = min(position for name in names for position in [len(progress) - 1 - progress[::-1].index(name)])
    so_far = progress[: first_end + 1]
    # When the first of the eight ended, each of the others had been given more than half of its tokens.
    assert all(so_far.count(name) > TOKENS / 2 for name in names), [so_far.count(name) for name in names]
    alone = [await text_of(running, await image_request(running, index, f"alone-{index}")) for index in range(8)]
    assert together == alone
    assert len(set(alone)) > 1


async def test_closing_a_stream_early_ends_the_engine_request(running: Running) -> None:
    request = await image_request(running, 1, "closed-early")
    stream = running.engine.generate(request)
    await anext(stream)
    assert running.unfinished_requests() == 1
    await stream.aclose()
    assert await settled(running, 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_leaves_frees_the_engine_within_two_seconds(running: Running, stream: bool) -> None:
    body = {
        "model": "endless",
        "messages": [{"role": "user", "content": "Tell me everything."}],
        "max_tokens": 1800,
        "stream": stream,
    }

    async def call() -> None:
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", f"{running.base_url}/chat/completions", json=body) as response,
        ):
            async for _ in response.aiter_bytes():
                pass

    calling = asyncio.create_task(call())
    deadline = time.monotonic() + 20
    while not running.unfinished_requests() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert running.unfinished_requests() == 1
    calling.cancel()
    assert await settled(running, 2)


async def test_a_prompt_seen_before_is_reported_as_cached(running: Running) -> None:
    body = {
        "model": "endless",
        "messages": [{"role": "user", "content": "Tell me about circles and squares. " * 20}],
        "max_tokens": 2,
    }
    async with httpx.AsyncClient(timeout=60) as client:
        replies = [await client.post(f"{running.base_url}/chat/completions", json=body) for _ in range(2)]
    first, second = (json.loads(reply.content)["usage"]["prompt_tokens_details"] for reply in replies)
    assert first["cached_tokens"] < second["cached_tokens"]
