"""``langchain-openai``: images in messages, streaming, structured output in its three ways, tools."""

import asyncio
from typing import Any

import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI


@pytest.fixture
def chat(base_url: str, model: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=base_url, api_key="none", model=model, max_retries=0)


def openai_message(question: Question) -> HumanMessage:
    image = {"type": "image_url", "image_url": {"url": question.url}}
    return HumanMessage(content=[{"type": "text", "text": question.text}, image])


def standard_message(question: Question) -> HumanMessage:
    """In LangChain's own form, which it turns into the provider's."""
    image: dict[str, Any] = {"type": "image", "base64": question.base64, "mime_type": "image/png"}
    return HumanMessage(content=[{"type": "text", "text": question.text}, image])


@pytest.mark.parametrize("message_of", [openai_message, standard_message])
@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(chat: ChatOpenAI, question: Question, message_of: Any) -> None:
    reply = chat.invoke([message_of(question)])
    assert reply.content == question.answer
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] > 1


def test_batch_async(chat: ChatOpenAI) -> None:
    replies = asyncio.run(chat.abatch([[openai_message(question)] for question in QUESTIONS]))
    assert [reply.content for reply in replies] == [question.answer for question in QUESTIONS]


def test_stream(base_url: str, model: str) -> None:
    chat = ChatOpenAI(base_url=base_url, api_key="none", model=model, max_retries=0, stream_usage=True)
    chunks = list(chat.stream([openai_message(STAR)]))
    pieces = [str(chunk.content) for chunk in chunks if chunk.content]
    assert "".join(pieces) == STAR.answer
    assert len(pieces) > 1
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 1


def test_follow_up(chat: ChatOpenAI) -> None:
    history = [openai_message(STAR), AIMessage("A blue star."), HumanMessage("What color is the star?")]
    assert chat.invoke(history).content == "Blue."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: ChatOpenAI, method: Any) -> None:
    shape = chat.with_structured_output(Shape, method=method).invoke([openai_message(STAR)])
    check_star(shape)


def test_structured_output_while_streaming(chat: ChatOpenAI) -> None:
    *_, last = chat.with_structured_output(Shape, method="json_schema").stream([openai_message(STAR)])
    check_star(last)


def test_tool_call_and_its_result(chat: ChatOpenAI) -> None:
    painter = chat.bind_tools([Paint], tool_choice="any")
    reply = painter.invoke([openai_message(STAR)])
    assert isinstance(reply, AIMessage)
    assert reply.tool_calls
    assert not reply.invalid_tool_calls
    for call in reply.tool_calls:
        assert call["name"] == "Paint"
        Paint.model_validate(call["args"])
    results = [ToolMessage("painted", tool_call_id=call["id"]) for call in reply.tool_calls]
    after = chat.invoke([openai_message(STAR), reply, *results, HumanMessage("What color is the star?")])
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert str(after.content).startswith("Blue.")


def test_responses_api(base_url: str, model: str) -> None:
    chat = ChatOpenAI(base_url=base_url, api_key="none", model=model, max_retries=0, use_responses_api=True)
    assert chat.invoke([openai_message(STAR)]).text == STAR.answer
    assert "".join(chunk.text for chunk in chat.stream([openai_message(STAR)])) == STAR.answer
