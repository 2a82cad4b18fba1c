"""``inspect-ai``, evaluations by way of three APIs: a scored task about images, streams, schemas, tools and results."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    Model,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import exact
from inspect_ai.solver import generate
from inspect_ai.tool import Tool, ToolFunction, ToolInfo, ToolParams, tool
from inspect_ai.util import json_schema

Open = Callable[[], Model]
SHORT = GenerateConfig(max_tokens=16)


@tool
def paint() -> Tool:
    async def execute(colour: str, coats: int) -> str:
        """Paint the shape in another colour.

        Args:
            colour: The new colour.
            coats: How often to paint it.
        """
        return "It is dry."

    return execute


@pytest.fixture(params=["chat", "responses", "anthropic"])
def open_model(request: pytest.FixtureRequest, base_url: str, model: str) -> Open:
    """A model is opened in the event loop that uses it."""
    service, address, more = "openai-api/llava", base_url, {"responses_api": request.param == "responses"}
    if request.param == "anthropic":
        service, address, more = "anthropic", base_url.removesuffix("/v1"), {}
    return lambda: get_model(f"{service}/{model}", base_url=address, api_key="none", memoize=False, **more)


def message(question: Question) -> ChatMessage:
    return ChatMessageUser(content=[ContentImage(image=question.url), ContentText(text=question.text)])


def ask(open_model: Open, talk: Callable[[Model], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with open_model() as model:
            return await talk(model)

    return asyncio.run(run())


def test_an_evaluation(open_model: Open, tmp_path: Path) -> None:
    samples = [
        Sample(
            input=[ChatMessageUser(content=[ContentImage(image=str(one.picture)), ContentText(text=one.text)])],
            target=one.answer,
        )
        for one in QUESTIONS
    ]
    task = Task(dataset=samples, solver=generate(), scorer=exact())
    (log,) = eval(task, model=open_model(), log_dir=str(tmp_path), display="none", max_retries=0)
    assert log.status == "success"
    assert log.results is not None
    assert log.results.scores[0].metrics["mean"].value == 1.0
    assert log.stats.model_usage
    assert all(usage.output_tokens > 1 for usage in log.stats.model_usage.values())


def test_structured_output(open_model: Open) -> None:
    schema = ResponseSchema(name="shape", json_schema=json_schema(Shape))
    output: ModelOutput = ask(
        open_model, lambda model: model.generate([message(STAR)], config=GenerateConfig(response_schema=schema))
    )
    check_star(Shape.model_validate_json(output.completion))


def test_a_tool_call_and_its_result(open_model: Open) -> None:
    async def talk(model: Model) -> tuple[ModelOutput, ModelOutput]:
        first = await model.generate([message(STAR)], tools=[paint()], tool_choice="any")
        calls = first.message.tool_calls or []
        results = [ChatMessageTool(content="It is dry.", tool_call_id=call.id, function="paint") for call in calls]
        second = await model.generate(
            [message(STAR), first.message, *results], tools=[paint()], tool_choice="none", config=SHORT
        )
        return first, second

    first, second = ask(open_model, talk)
    assert first.message.tool_calls
    for call in first.message.tool_calls:
        assert (call.function, call.parse_error) == ("paint", None)
        assert isinstance(call.arguments["coats"], int)
    assert second.completion


def test_max_tokens(open_model: Open) -> None:
    config = GenerateConfig(max_tokens=2)
    output: ModelOutput = ask(open_model, lambda model: model.generate([message(STAR)], config=config))
    assert output.stop_reason == "max_tokens"


def test_log_probabilities(base_url: str, model: str) -> None:
    def open_model() -> Model:
        return get_model(f"openai-api/llava/{model}", base_url=base_url, api_key="none", memoize=False)

    config = GenerateConfig(logprobs=True, top_logprobs=2, temperature=0)
    output: ModelOutput = ask(open_model, lambda opened: opened.generate([message(STAR)], config=config))
    assert output.choices[0].logprobs is not None
    assert "".join(token.token for token in output.choices[0].logprobs.content) == STAR.answer


def test_the_functions_arguments_fit_the_schema(open_model: Open) -> None:
    parameters = ToolParams.model_validate(
        {key: value for key, value in json_schema(Paint).model_dump(exclude_none=True).items() if key != "description"}
    )
    info = ToolInfo(name="paint", description="Paint the shape.", parameters=parameters)
    output: ModelOutput = ask(
        open_model,
        lambda model: model.generate([message(STAR)], tools=[info], tool_choice=ToolFunction(name="paint")),
    )
    assert output.message.tool_calls
    for call in output.message.tool_calls:
        Paint.model_validate(call.arguments)
