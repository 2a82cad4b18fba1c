"""The ``anthropic`` client: images, streams, tools with a second turn, JSON, token counts, errors."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star

PAINT: Any = {"name": "paint", "description": "Paint the shape.", "input_schema": Paint.model_json_schema()}


@pytest.fixture
def address(base_url: str) -> str:
    """The client adds ``/v1`` by itself."""
    return base_url.removesuffix("/v1")


@pytest.fixture
def client(address: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def image(question: Question) -> Any:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": question.base64}}


def messages(question: Question) -> list[Any]:
    return [{"role": "user", "content": [image(question), {"type": "text", "text": question.text}]}]


def text_of(message: Any) -> str:
    (block,) = message.content
    assert block.type == "text"
    text: str = block.text
    return text


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(client: Anthropic, model: str, question: Question) -> None:
    message = client.messages.create(model=model, max_tokens=64, messages=messages(question))
    assert text_of(message) == question.answer
    assert (message.stop_reason, message.model) == ("end_turn", model)
    assert message.usage.output_tokens > 1
    assert message._request_id is not None
    assert message._request_id.startswith("req_")


def test_answers_async_and_at_once(address: str, model: str) -> None:
    async def ask() -> list[str]:
        async with AsyncAnthropic(base_url=address, api_key="none") as client:
            create = client.messages.create
            asked = [create(model=model, max_tokens=64, messages=messages(question)) for question in QUESTIONS]
            return [text_of(message) for message in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_stream(client: Anthropic, model: str) -> None:
    events = list(client.messages.create(model=model, max_tokens=64, messages=messages(STAR), stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]  # type: ignore[union-attr]
    assert "".join(deltas) == STAR.answer
    assert len(deltas) > 1


def test_stream_helper(client: Anthropic, model: str) -> None:
    with client.messages.stream(model=model, max_tokens=64, messages=messages(STAR)) as stream:
        assert "".join(stream.text_stream) == STAR.answer
        final = stream.get_final_message()
    assert text_of(final) == STAR.answer
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 1


def test_a_second_turn_and_a_system_text(client: Anthropic, model: str) -> None:
    first = client.messages.create(model=model, max_tokens=64, messages=messages(STAR), system="Be brief.")
    conversation: list[Any] = [
        *messages(STAR),
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [image(QUESTIONS[3]), {"type": "text", "text": QUESTIONS[3].text}]},
    ]
    second = client.messages.create(model=model, max_tokens=64, messages=conversation, system="Be brief.")
    assert text_of(second)


def test_an_answer_that_is_begun(client: Anthropic, model: str) -> None:
    begun: Any = {"role": "assistant", "content": "A blue"}
    message = client.messages.create(model=model, max_tokens=64, messages=[*messages(STAR), begun])
    assert text_of(message) == " star."


def test_a_stop_sequence(client: Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=64, messages=messages(STAR), stop_sequences=["star"])
    assert text_of(message) == "A blue "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "star")


def test_max_tokens(client: Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=2, messages=messages(STAR))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "paint"}], ids=["any", "by name"])
def test_tool_call_and_its_result(client: Anthropic, model: str, choice: Any) -> None:
    message = client.messages.create(
        model=model, max_tokens=256, messages=messages(STAR), tools=[PAINT], tool_choice=choice
    )
    assert message.stop_reason == "tool_use"
    calls = [block for block in message.content if block.type == "tool_use"]
    assert calls
    for call in calls:
        assert call.name == "paint"
        Paint.model_validate(call.input)
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": [image(STAR)]} for call in calls]
    conversation: list[Any] = [
        *messages(STAR),
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    second = client.messages.create(
        model=model, max_tokens=64, messages=conversation, tools=[PAINT], tool_choice={"type": "none"}
    )
    assert second.content[0].type == "text"


def test_streamed_tool_call(client: Anthropic, model: str) -> None:
    with client.messages.stream(
        model=model, max_tokens=256, messages=messages(STAR), tools=[PAINT], tool_choice={"type": "any"}
    ) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    for block in message.content:
        assert block.type == "tool_use"
        Paint.model_validate(block.input)


def test_structured_output(client: Anthropic, model: str) -> None:
    message = client.messages.parse(model=model, max_tokens=256, messages=messages(STAR), output_format=Shape)
    check_star(message.parsed_output)


def test_count_tokens(client: Anthropic, model: str) -> None:
    counted = client.messages.count_tokens(model=model, messages=messages(STAR), tools=[PAINT])
    usage = client.messages.create(model=model, max_tokens=2, messages=messages(STAR), tools=[PAINT]).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_errors_have_the_clients_classes(client: Anthropic, model: str) -> None:
    broken: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": [broken]}])
    body: Any = refused.value.body
    assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", "invalid_image")
    assert refused.value.request_id == body["request_id"]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=9, messages=messages(STAR))
