"""``ag2`` with its configurations for OpenAI's two APIs and Ollama: images, streams, objects, tools, a second turn."""

import asyncio
from typing import Any

import pytest
from ag2 import Agent, ImageInput, ToolResult
from ag2.config import OllamaConfig, OpenAIConfig, OpenAIResponsesConfig
from ag2.events import ModelMessageChunk
from asked import QUESTIONS, STAR, Colour, Paint, Question, Shape, check_star


def openai(base_url: str, model: str, **more: Any) -> Any:
    return OpenAIConfig(model, api_key="none", base_url=base_url, max_retries=0, **more)


def responses(base_url: str, model: str, **more: Any) -> Any:
    return OpenAIResponsesConfig(model, api_key="none", base_url=base_url, max_retries=0, **more)


def ollama(base_url: str, model: str, **more: Any) -> Any:
    return OllamaConfig(model, host=base_url.removesuffix("/v1"), **more)


@pytest.fixture(params=[openai, responses, ollama])
def config(request: pytest.FixtureRequest, base_url: str, model: str) -> Any:
    return request.param(base_url, model)


def asked(question: Question) -> tuple[str, Any]:
    return question.text, ImageInput(path=question.picture)


def test_answers_at_once(config: Any) -> None:
    async def ask() -> list[Any]:
        agents = [Agent("eye", config=config) for _ in QUESTIONS]
        return await asyncio.gather(
            *(agent.ask(*asked(question)) for agent, question in zip(agents, QUESTIONS, strict=True))
        )

    replies = asyncio.run(ask())
    assert [(reply.body or "").strip() for reply in replies] == [question.answer for question in QUESTIONS]
    assert min(reply.response.usage.completion_tokens for reply in replies) > 1


def test_stream(config: Any) -> None:
    async def pieces() -> list[str]:
        found: list[str] = []
        async with Agent("eye", config=config.copy(streaming=True)).run(*asked(STAR)) as run:
            run.stream.where(ModelMessageChunk).subscribe(lambda chunk: found.append(chunk.content))
            reply = await run.result()
        assert reply.body.strip() == STAR.answer
        return found

    received = asyncio.run(pieces())
    assert "".join(received).strip() == STAR.answer
    assert len(received) > 1


def test_a_second_turn_and_a_system_text(config: Any) -> None:
    async def talk() -> list[str]:
        first = await Agent("eye", "Be brief.", config=config).ask(*asked(STAR))
        second = await first.ask("What color is the star?")
        return [(reply.body or "").strip() for reply in (first, second)]

    assert asyncio.run(talk()) == [STAR.answer, "Blue."]


def test_an_object(config: Any) -> None:
    async def ask() -> Any:
        reply = await Agent("eye", config=config, response_schema=Shape).ask(*asked(STAR))
        return await reply.content()

    check_star(asyncio.run(ask()))


@pytest.mark.parametrize("config", [openai], indirect=True)
def test_a_tool_and_a_turn_after_it(config: Any) -> None:
    """Only its configuration for Chat Completions has ``tool_choice``; the model does not call on its own."""
    painted: list[Paint] = []

    def paint(colour: Colour, coats: int) -> ToolResult:
        """Paint the shape."""
        painted.append(Paint(colour=colour, coats=coats))
        return ToolResult("painted", final=True)

    async def talk() -> list[Any]:
        forced = config.copy(tool_choice="required")
        first = await Agent("eye", config=forced, tools=[paint]).ask(*asked(STAR))
        second = await first.ask("What color is the star?", config=config)
        return [first.body, second.body]

    called, answered = asyncio.run(talk())
    assert painted
    assert called == "\n\n".join(["painted"] * len(painted))
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert answered.startswith("Blue.")
