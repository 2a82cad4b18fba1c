"""Hugging Face's ``InferenceClient``: images, streams, JSON in both of its forms, tools with a second turn, errors."""

import asyncio
import json
from typing import Any

import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError

PAINT: Any = {
    "type": "function",
    "function": {"name": "paint", "description": "Paint the shape.", "parameters": Paint.model_json_schema()},
}
SCHEMA = Shape.model_json_schema()


@pytest.fixture
def client(base_url: str, model: str) -> InferenceClient:
    return InferenceClient(base_url=base_url, api_key="none")


def messages(question: Question) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": question.url}}
    return [{"role": "user", "content": [{"type": "text", "text": question.text}, image]}]


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(client: InferenceClient, model: str, question: Question) -> None:
    reply = client.chat_completion(messages(question), model=model)
    assert reply.choices[0].message.content == question.answer
    assert reply.usage.completion_tokens > 1


def test_the_spelling_of_openais_client(client: InferenceClient, model: str) -> None:
    reply = client.chat.completions.create(messages(STAR), model=model, max_tokens=2, seed=7, logprobs=True)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 2)
    assert reply.choices[0].logprobs is not None
    assert len(reply.choices[0].logprobs.content) == 2


def test_answers_async_and_at_once(base_url: str, model: str) -> None:
    async def ask() -> list[str | None]:
        async with AsyncInferenceClient(base_url=base_url, api_key="none") as client:
            asked = [client.chat_completion(messages(question), model=model) for question in QUESTIONS]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_stream(client: InferenceClient, model: str) -> None:
    chunks = list(
        client.chat_completion(messages(STAR), model=model, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == STAR.answer
    assert len(pieces) > 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json", "value": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}},
    ],
    ids=["json", "json_schema"],
)
def test_structured_output(client: InferenceClient, model: str, form: Any) -> None:
    reply = client.chat_completion(messages(STAR), model=model, response_format=form, max_tokens=256)
    check_star(Shape.model_validate_json(reply.choices[0].message.content or ""))


def test_a_second_turn(client: InferenceClient, model: str) -> None:
    first = client.chat_completion(messages(STAR), model=model).choices[0].message
    conversation = [*messages(STAR), first, {"role": "user", "content": "What color is the star?"}]
    assert client.chat_completion(conversation, model=model).choices[0].message.content == "Blue."


@pytest.mark.parametrize("choice", ["required", {"function": {"name": "paint"}}], ids=["required", "by name"])
def test_tool_call_and_its_result(client: InferenceClient, model: str, choice: Any) -> None:
    said = client.chat_completion(messages(STAR), model=model, tools=[PAINT], tool_choice=choice).choices[0].message
    assert said.tool_calls
    for call in said.tool_calls:
        assert call.function.name == "paint"
        Paint.model_validate_json(call.function.arguments)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "painted"} for call in said.tool_calls]
    conversation = [*messages(STAR), said, *results, {"role": "user", "content": "What color is the star?"}]
    after = client.chat_completion(conversation, model=model, tools=[PAINT], tool_choice="none")
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert (after.choices[0].message.content or "").startswith("Blue.")


def test_errors(client: InferenceClient, model: str) -> None:
    broken = messages(STAR)
    broken[0]["content"][1]["image_url"]["url"] = "data:image/png;base64,AAAA"
    with pytest.raises(BadRequestError) as refused:
        client.chat_completion(broken, model=model)
    error = json.loads(refused.value.response.content)["error"]
    assert error["code"] == "invalid_image"
