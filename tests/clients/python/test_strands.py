"""``strands-agents`` with its models for OpenAI's two APIs and for Ollama's: images, streams, objects, tools."""

import asyncio
from typing import Any

import pytest
from asked import QUESTIONS, STAR, Colour, Paint, Question, Shape, check_star
from strands import Agent, tool
from strands.models.ollama import OllamaModel
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel


def openai(base_url: str, model: str) -> Any:
    return OpenAIModel(client_args={"base_url": base_url, "api_key": "none", "max_retries": 0}, model_id=model)


def responses(base_url: str, model: str) -> Any:
    return OpenAIResponsesModel(client_args={"base_url": base_url, "api_key": "none", "max_retries": 0}, model_id=model)


def ollama(base_url: str, model: str) -> Any:
    return OllamaModel(base_url.removesuffix("/v1"), model_id=model)


@pytest.fixture(params=[openai, responses, ollama])
def llm(request: pytest.FixtureRequest, base_url: str, model: str) -> Any:
    return request.param(base_url, model)


def agent(llm: Any, **more: Any) -> Agent:
    return Agent(model=llm, callback_handler=None, **more)


def asked(question: Question) -> list[Any]:
    return [
        {"text": question.text},
        {"image": {"format": "png", "source": {"bytes": question.picture.read_bytes()}}},
    ]


def user(content: list[Any]) -> list[Any]:
    return [{"role": "user", "content": content}]


@tool
def paint(colour: Colour, coats: int) -> str:
    """Paint the shape."""
    return f"{colour} {coats}"


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(llm: Any, question: Question) -> None:
    result = agent(llm)(asked(question))
    assert str(result).strip() == question.answer
    assert result.stop_reason == "end_turn"
    assert result.metrics.accumulated_usage["outputTokens"] > 1


def test_stream(llm: Any) -> None:
    async def pieces() -> list[str]:
        return [event["data"] async for event in agent(llm).stream_async(asked(STAR)) if "data" in event]

    received = asyncio.run(pieces())
    assert "".join(received) == STAR.answer
    assert len(received) > 1


def test_a_second_turn_and_a_system_text(llm: Any) -> None:
    talk = agent(llm, system_prompt="Be brief.")
    assert str(talk(asked(STAR))).strip() == STAR.answer
    assert str(talk("What color is the star?")).strip() == "Blue."


@pytest.mark.parametrize("llm", [openai, responses], indirect=True)
def test_an_object(llm: Any) -> None:
    """By a tool that the model has to call, which Ollama's API has no field for."""
    result = agent(llm)(asked(STAR), structured_output_model=Shape)
    check_star(result.structured_output)


@pytest.mark.parametrize("llm", [openai, ollama], indirect=True)
def test_an_object_by_a_schema(llm: Any) -> None:
    async def ask() -> Any:
        events = [event async for event in llm.structured_output(Shape, user(asked(STAR)))]
        return events[-1]["output"]

    check_star(asyncio.run(ask()))


@pytest.mark.parametrize("llm", [openai, responses], indirect=True)
def test_a_tool_call(llm: Any) -> None:
    async def ask() -> list[Any]:
        stream = llm.stream(user(asked(STAR)), [paint.tool_spec], tool_choice={"any": {}})
        return [event async for event in stream]

    events = asyncio.run(ask())
    starts = [event["contentBlockStart"]["start"] for event in events if "contentBlockStart" in event]
    assert [start["toolUse"]["name"] for start in starts if "toolUse" in start][:1] == ["paint"]
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    Paint.model_validate_json("".join(delta["toolUse"]["input"] for delta in deltas if "toolUse" in delta))
    assert [event["messageStop"]["stopReason"] for event in events if "messageStop" in event] == ["tool_use"]


@pytest.mark.parametrize("found", [{"text": "painted"}, asked(STAR)[1]], ids=["text", "image"])
def test_a_tools_result(llm: Any, found: Any) -> None:
    use = {"toolUseId": "call_1", "name": "paint", "input": {"colour": "red", "coats": 2}}
    result = {"toolUseId": "call_1", "status": "success", "content": [found]}
    history = [
        *user(asked(STAR)),
        {"role": "assistant", "content": [{"toolUse": use}]},
        *user([{"toolResult": result}]),
        {"role": "assistant", "content": [{"text": "Painted."}]},
    ]
    answer = str(agent(llm, messages=history, tools=[paint])("What color is the star?"))
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert answer.startswith("Blue.")
