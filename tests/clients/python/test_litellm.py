"""``litellm`` with its openai and its anthropic provider: images, streaming, structured output, tools."""

import asyncio
from functools import partial
from typing import Any

import litellm
import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star


@pytest.fixture(params=["openai", "anthropic"])
def address(request: pytest.FixtureRequest, base_url: str, model: str) -> dict[str, Any]:
    """The anthropic provider adds ``/v1/messages`` by itself."""
    api_base = base_url if request.param == "openai" else base_url.removesuffix("/v1")
    return {"model": f"{request.param}/{model}", "api_base": api_base, "api_key": "none", "num_retries": 0}


def messages(question: Question) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": question.url}}
    return [{"role": "user", "content": [{"type": "text", "text": question.text}, image]}]


PAINT = {"type": "function", "function": {"name": "paint", "parameters": Paint.model_json_schema()}}


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(address: dict[str, Any], question: Question) -> None:
    reply: Any = litellm.completion(messages=messages(question), **address)
    assert reply.choices[0].message.content == question.answer
    assert reply.usage.completion_tokens > 1


def test_answers_async_and_at_once(address: dict[str, Any]) -> None:
    async def ask() -> list[str]:
        complete = partial(litellm.acompletion, **address)
        replies: Any = await asyncio.gather(*(complete(messages=messages(question)) for question in QUESTIONS))
        return [reply.choices[0].message.content for reply in replies]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_stream(address: dict[str, Any]) -> None:
    chunks: Any = litellm.completion(
        messages=messages(STAR), stream=True, stream_options={"include_usage": True}, **address
    )
    received = list(chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in received if chunk.choices) == STAR.answer
    assert received[-1].usage.completion_tokens > 1


def test_structured_output(address: dict[str, Any]) -> None:
    reply: Any = litellm.completion(messages=messages(STAR), response_format=Shape, **address)
    check_star(Shape.model_validate_json(reply.choices[0].message.content))


def test_tool_call(address: dict[str, Any]) -> None:
    reply: Any = litellm.completion(messages=messages(STAR), tools=[PAINT], tool_choice="required", **address)
    calls = reply.choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"paint"}
    for call in calls:
        Paint.model_validate_json(call.function.arguments)


def test_a_refusal_has_litellms_class(address: dict[str, Any]) -> None:
    broken = messages(STAR)
    broken[0]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=broken, **address)
