"""``pydantic-ai`` with its models for OpenAI, Anthropic, Ollama and Hugging Face: images, objects, tools, two turns."""

import asyncio
from typing import Any

import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from pydantic_ai import Agent, BinaryContent, ImageUrl, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.huggingface import HuggingFaceModel
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.huggingface import HuggingFaceProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition


def openai(base_url: str, model: str) -> Any:
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url, api_key="none"))


def responses(base_url: str, model: str) -> Any:
    return OpenAIResponsesModel(model, provider=OpenAIProvider(base_url=base_url, api_key="none"))


def anthropic(base_url: str, model: str) -> Any:
    address = base_url.removesuffix("/v1")
    provider = AnthropicProvider(base_url=address, api_key="none")
    return AnthropicModel(model, provider=provider, profile={"supports_json_schema_output": True})


def ollama(base_url: str, model: str) -> Any:
    return OllamaModel(model, provider=OllamaProvider(base_url=base_url))


def huggingface(base_url: str, model: str) -> Any:
    return HuggingFaceModel(model, provider=HuggingFaceProvider(base_url=base_url, api_key="none"))


@pytest.fixture(params=[openai, responses, anthropic, ollama, huggingface])
def llm(request: pytest.FixtureRequest, base_url: str, model: str) -> Any:
    return request.param(base_url, model)


def asked(question: Question) -> list[Any]:
    return [question.text, BinaryContent(question.picture.read_bytes(), media_type="image/png")]


def test_answers_at_once(llm: Any) -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(Agent(llm).run(asked(question)) for question in QUESTIONS))

    results = asyncio.run(ask())
    assert [result.output for result in results] == [question.answer for question in QUESTIONS]
    assert min(result.usage.output_tokens for result in results) > 1


def test_an_image_as_a_url(llm: Any) -> None:
    assert Agent(llm).run_sync([STAR.text, ImageUrl(STAR.url)]).output == STAR.answer


def test_stream(llm: Any) -> None:
    async def pieces() -> list[str]:
        async with Agent(llm).run_stream(asked(STAR)) as result:
            found = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
            # Of its models only Hugging Face's does not ask for the usage of streams.
            assert result.usage.output_tokens > 1 or isinstance(llm, HuggingFaceModel)
        return found

    received = asyncio.run(pieces())
    assert "".join(received) == STAR.answer
    assert len(received) > 1


def test_a_second_turn_and_instructions(llm: Any) -> None:
    agent = Agent(llm, instructions="Be brief.")
    first = agent.run_sync(asked(STAR))
    assert first.output == STAR.answer
    second = agent.run_sync("What color is the star?", message_history=first.all_messages())
    assert second.output == "Blue."


def test_an_object_by_a_tool(llm: Any) -> None:
    check_star(Agent(llm, output_type=ToolOutput(Shape), retries=0).run_sync(asked(STAR)).output)


NATIVE = pytest.mark.parametrize("llm", [openai, responses, anthropic, ollama], indirect=True)
"""Its model for Hugging Face sends no schema."""


@NATIVE
def test_an_object_by_a_schema(llm: Any) -> None:
    check_star(Agent(llm, output_type=NativeOutput(Shape), retries=0).run_sync(asked(STAR)).output)


@NATIVE
def test_an_object_while_streaming(llm: Any) -> None:
    async def objects() -> list[Any]:
        async with Agent(llm, output_type=NativeOutput(Shape)).run_stream(asked(STAR)) as result:
            return [each async for each in result.stream_output(debounce_by=None)]

    check_star(asyncio.run(objects())[-1])


def test_a_tool_call(llm: Any) -> None:
    paint = ToolDefinition(
        name="paint", parameters_json_schema=Paint.model_json_schema(), description="Paint the shape."
    )
    given = ModelRequestParameters(function_tools=[paint], allow_text_output=False)
    reply = model_request_sync(llm, [ModelRequest([UserPromptPart(asked(STAR))])], model_request_parameters=given)
    calls = [part for part in reply.parts if isinstance(part, ToolCallPart)]
    assert calls
    for call in calls:
        assert call.tool_name == "paint"
        Paint.model_validate(call.args_as_dict())


def test_a_tools_result(llm: Any) -> None:
    call = ToolCallPart("paint", {"colour": "red", "coats": 2}, tool_call_id="call_1")
    history = [
        ModelRequest([UserPromptPart(asked(STAR))]),
        ModelResponse([call]),
        ModelRequest([ToolReturnPart("paint", "painted", tool_call_id="call_1")]),
    ]
    answer = Agent(llm).run_sync("What color is the star?", message_history=history).output
    # The tiny model goes on in JSON where there was JSON before; it begins with what it sees.
    assert answer.startswith("Blue.")
