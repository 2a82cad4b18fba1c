"""``llama-index-llms-openai-like`` with images in messages: chat, streaming, structured answers, tools."""

import asyncio
from typing import Any

import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


@pytest.fixture
def llm(base_url: str, model: str) -> OpenAILike:
    return OpenAILike(
        model=model,
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=2048,
        max_tokens=256,
        max_retries=0,
    )


def message(question: Question) -> ChatMessage:
    return ChatMessage(role="user", blocks=[TextBlock(text=question.text), ImageBlock(path=question.picture)])


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(llm: OpenAILike, question: Question) -> None:
    assert llm.chat([message(question)]).message.content == question.answer


def test_answers_async_and_at_once(llm: OpenAILike) -> None:
    async def ask() -> list[str | None]:
        replies = await asyncio.gather(*(llm.achat([message(question)]) for question in QUESTIONS))
        return [reply.message.content for reply in replies]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_stream(llm: OpenAILike) -> None:
    pieces = [reply.delta for reply in llm.stream_chat([message(STAR)]) if reply.delta]
    assert "".join(pieces) == STAR.answer
    assert len(pieces) > 1


def test_an_image_as_bytes(llm: OpenAILike) -> None:
    block = ImageBlock(image=STAR.picture.read_bytes(), image_mimetype="image/png", detail="low")
    asked = ChatMessage(role="user", blocks=[TextBlock(text=STAR.text), block])
    assert llm.chat([asked]).message.content == STAR.answer


def test_structured_output(llm: OpenAILike) -> None:
    reply = llm.as_structured_llm(Shape).chat([message(STAR)])
    check_star(reply.raw)


def test_structured_predict(llm: OpenAILike) -> None:
    assert isinstance(llm.structured_predict(Shape, PromptTemplate("Invent a shape.")), Shape)


def test_structured_answer_about_an_image(llm: OpenAILike) -> None:
    check_star(llm.as_structured_llm(Shape).chat([message(STAR)]).raw)


def test_tool_call(llm: OpenAILike) -> None:
    def paint(**_: Any) -> str:
        return "painted"

    tool = FunctionTool.from_defaults(fn=paint, name="paint", description="Paint it.", fn_schema=Paint)
    reply = llm.chat_with_tools([tool], chat_history=[message(STAR)], tool_required=True)
    calls = llm.get_tool_calls_from_response(reply)
    assert {call.tool_name for call in calls} == {"paint"}
    for call in calls:
        Paint.model_validate(call.tool_kwargs)
