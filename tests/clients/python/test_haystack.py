"""``haystack-ai`` with its generators for chat and for Responses: images, streams, schemas, tools, an agent, errors."""

import asyncio
from typing import Any

import openai
import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from haystack import Pipeline
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent, StreamingChunk
from haystack.tools import Tool
from haystack.utils import Secret

PAINT = Tool(
    name="paint",
    description="Paint the shape.",
    parameters=Paint.model_json_schema(),
    function=lambda colour, coats: "It is dry.",
)
GENERATORS = {"chat": OpenAIChatGenerator, "responses": OpenAIResponsesChatGenerator}


@pytest.fixture(params=GENERATORS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def generator(kind: str, base_url: str, model: str) -> Any:
    return GENERATORS[kind](api_key=Secret.from_token("none"), model=model, api_base_url=base_url, max_retries=0)


def message(question: Question) -> ChatMessage:
    image = ImageContent(base64_image=question.base64, mime_type="image/png")
    return ChatMessage.from_user(content_parts=[question.text, image])


def reply_of(result: dict[str, Any]) -> ChatMessage:
    (reply,) = result["replies"]
    assert isinstance(reply, ChatMessage)
    return reply


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(generator: Any, question: Question) -> None:
    assert reply_of(generator.run([message(question)])).text == question.answer


def test_answers_async_and_at_once(generator: Any) -> None:
    async def ask() -> list[str | None]:
        results = await asyncio.gather(*(generator.run_async([message(question)]) for question in QUESTIONS))
        return [reply_of(result).text for result in results]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_stream(generator: Any) -> None:
    chunks: list[StreamingChunk] = []
    reply = reply_of(generator.run([message(STAR)], streaming_callback=chunks.append))
    assert reply.text == STAR.answer
    assert "".join(chunk.content for chunk in chunks) == STAR.answer
    assert len(chunks) > 2


def test_a_pipeline_and_its_usage(generator: Any) -> None:
    pipeline = Pipeline()
    pipeline.add_component("llm", generator)
    reply = reply_of(pipeline.run({"llm": {"messages": [message(STAR)]}})["llm"])
    assert reply.text == STAR.answer
    usage = reply.meta["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) > 1


def test_a_second_turn(generator: Any) -> None:
    conversation = [ChatMessage.from_system("Be brief."), message(STAR)]
    first = reply_of(generator.run(conversation))
    second = reply_of(generator.run([*conversation, first, message(QUESTIONS[3])]))
    assert second.text


def test_structured_output(generator: Any, kind: str) -> None:
    field = "response_format" if kind == "chat" else "text_format"
    reply = reply_of(generator.run([message(STAR)], generation_kwargs={field: Shape}))
    assert reply.text is not None
    check_star(Shape.model_validate_json(reply.text))


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_its_result(generator: Any, stream: bool) -> None:
    more: dict[str, Any] = {"streaming_callback": lambda chunk: None} if stream else {}
    first = reply_of(
        generator.run([message(STAR)], tools=[PAINT], generation_kwargs={"tool_choice": "required"}, **more)
    )
    assert first.tool_calls
    for call in first.tool_calls:
        assert call.tool_name == "paint"
        Paint.model_validate(call.arguments)
    results = [ChatMessage.from_tool(tool_result="It is dry.", origin=call) for call in first.tool_calls]
    second = reply_of(
        generator.run(
            [message(STAR), first, *results],
            tools=[PAINT],
            generation_kwargs={"tool_choice": "none"},
        )
    )
    assert second.text
    assert not second.tool_calls


def test_a_refusal(generator: Any) -> None:
    broken = ImageContent(base64_image="AAAA", mime_type="image/png", validation=False)
    with pytest.raises(openai.BadRequestError):
        generator.run([ChatMessage.from_user(content_parts=["What is it?", broken])])
