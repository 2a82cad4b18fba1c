"""``openai-agents`` on the Responses and the Chat Completions API: images, streams, objects, tools, a second turn."""

import asyncio
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    ToolOutputImage,
    function_tool,
    set_tracing_disabled,
)
from asked import QUESTIONS, STAR, Colour, Paint, Question, Shape, check_star
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

# Traces would be sent to OpenAI.
set_tracing_disabled(True)
FOLLOW_UP: Any = {"role": "user", "content": "What color is the star?"}


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel])
def llm(request: pytest.FixtureRequest, base_url: str, model: str) -> Any:
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return request.param(model=model, openai_client=client)


def asked(question: Question) -> list[Any]:
    image = {"type": "input_image", "image_url": question.url, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": question.text}, image]}]


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(llm: Any, question: Question) -> None:
    result = Runner.run_sync(Agent(name="eye", model=llm), asked(question))
    assert result.final_output == question.answer
    assert result.context_wrapper.usage.output_tokens > 1


def test_stream(llm: Any) -> None:
    async def pieces() -> list[str]:
        # Without this it asks only OpenAI's own address for the usage of a stream.
        agent = Agent(name="eye", model=llm, model_settings=ModelSettings(include_usage=True))
        result = Runner.run_streamed(agent, asked(STAR))
        found = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
        ]
        assert result.final_output == STAR.answer
        assert result.context_wrapper.usage.output_tokens > 1
        return found

    received = asyncio.run(pieces())
    assert "".join(received) == STAR.answer
    assert len(received) > 1


def test_an_object(llm: Any) -> None:
    result = Runner.run_sync(Agent(name="eye", model=llm, output_type=Shape), asked(STAR))
    check_star(result.final_output)


def test_a_second_turn(llm: Any) -> None:
    agent = Agent(name="eye", model=llm, instructions="Be brief.")
    first = Runner.run_sync(agent, asked(STAR))
    assert first.final_output == STAR.answer
    second = Runner.run_sync(agent, [*first.to_input_list(), FOLLOW_UP])
    assert second.final_output == "Blue."


def test_a_session(llm: Any) -> None:
    agent = Agent(name="eye", model=llm)

    async def talk() -> list[str]:
        session = SQLiteSession("talk")
        await session.add_items(asked(STAR))
        await session.add_items([{"role": "assistant", "content": STAR.answer}])
        first = await Runner.run(agent, "What color is the star?", session=session)
        second = await Runner.run(agent, "What color is the star?", session=session)
        return [first.final_output, second.final_output]

    assert asyncio.run(talk()) == ["Blue.", "Blue."]


def test_a_tool_and_a_turn_after_it(llm: Any) -> None:
    painted: list[Paint] = []

    @function_tool
    def paint(colour: Colour, coats: int) -> str:
        """Paint the shape."""
        painted.append(Paint(colour=colour, coats=coats))
        return "painted"

    painter = Agent(name="eye", model=llm, tools=[paint], model_settings=ModelSettings(tool_choice="required"))
    first = Runner.run_sync(painter, asked(STAR))
    assert painted
    second = Runner.run_sync(Agent(name="eye", model=llm), [*first.to_input_list(), FOLLOW_UP])
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert second.final_output.startswith("Blue.")


@pytest.mark.parametrize("llm", [OpenAIResponsesModel], indirect=True)
def test_a_tool_that_gives_an_image(llm: Any) -> None:
    @function_tool
    def look() -> ToolOutputImage:
        """Look."""
        return ToolOutputImage(image_url=STAR.url)

    settings = ModelSettings(tool_choice="required", parallel_tool_calls=False)
    looker = Agent(name="eye", model=llm, tools=[look], model_settings=settings, tool_use_behavior="stop_on_first_tool")
    first = Runner.run_sync(looker, "Look.")
    second = Runner.run_sync(Agent(name="eye", model=llm), [*first.to_input_list(), FOLLOW_UP])
    assert second.final_output.startswith("Blue.")
