"""The ``ollama`` client: images, streams, ``format``, tools with a second turn, the list of models, errors."""

import asyncio
from pathlib import Path
from typing import Any

import ollama
import pytest
from asked import QUESTIONS, STAR, Paint, Question, Shape, check_star


@pytest.fixture
def host(base_url: str) -> str:
    return base_url.removesuffix("/v1")


@pytest.fixture
def client(host: str) -> ollama.Client:
    return ollama.Client(host)


def messages(question: Question) -> list[Any]:
    return [{"role": "user", "content": question.text, "images": [question.picture]}]


def paint(colour: str, coats: int) -> str:
    """Paint the shape in another colour.

    Args:
      colour: The new colour.
      coats: How often it is painted.
    """
    return f"{colour} {coats}"


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_answers(client: ollama.Client, model: str, question: Question) -> None:
    reply = client.chat(model=model, messages=messages(question))
    assert reply.message.content == question.answer
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert reply.eval_count is not None
    assert reply.eval_count > 1
    assert reply.prompt_eval_count is not None
    assert reply.prompt_eval_count > 100


@pytest.mark.parametrize("image", ["path", "bytes", "base64"])
def test_generate(client: ollama.Client, model: str, image: str) -> None:
    images: dict[str, Path | bytes | str] = {
        "path": STAR.picture,
        "bytes": STAR.picture.read_bytes(),
        "base64": STAR.base64,
    }
    reply = client.generate(model=model, prompt=STAR.text, images=[images[image]], keep_alive="5m")
    assert reply.response == STAR.answer
    pieces = list(client.generate(model=model, prompt=STAR.text, images=[images[image]], stream=True))
    assert "".join(piece.response for piece in pieces) == STAR.answer
    assert len(pieces) > 2


def test_stream(client: ollama.Client, model: str) -> None:
    chunks = list(client.chat(model=model, messages=messages(STAR), stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == STAR.answer
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks) > 2


def test_async_and_at_once(host: str, model: str) -> None:
    async def ask() -> list[str | None]:
        client = ollama.AsyncClient(host)
        replies = await asyncio.gather(*(client.chat(model=model, messages=messages(each)) for each in QUESTIONS))
        return [reply.message.content for reply in replies]

    assert asyncio.run(ask()) == [question.answer for question in QUESTIONS]


def test_options(client: ollama.Client, model: str) -> None:
    cut = client.chat(model=model, messages=messages(STAR), options={"num_predict": 2, "num_ctx": 4096})
    assert (cut.done_reason, cut.eval_count) == ("length", 2)
    stopped = client.chat(model=model, messages=messages(STAR), options={"stop": ["star"], "temperature": 0})
    assert stopped.message.content == "A blue "


def test_format(client: ollama.Client, model: str) -> None:
    reply = client.chat(model=model, messages=messages(STAR), format=Shape.model_json_schema())
    check_star(Shape.model_validate_json(reply.message.content or ""))


def test_tools_and_a_second_turn(client: ollama.Client, model: str) -> None:
    schema = Paint.model_json_schema()
    tool = {"type": "function", "function": {"name": "paint", "description": "Paint it.", "parameters": schema}}
    for given in ([paint], [tool]):
        reply = client.chat(model=model, messages=messages(STAR), tools=given)
        # The model chooses: LLaVA was not trained to call functions.
        assert reply.message.content or reply.message.tool_calls
    call = ollama.Message.ToolCall(
        function=ollama.Message.ToolCall.Function(name="paint", arguments={"colour": "red", "coats": 2})
    )
    said = ollama.Message(role="assistant", content="", tool_calls=[call])
    result = ollama.Message(role="tool", content="Done.", tool_name="paint")
    again = messages(QUESTIONS[3])[0]
    second = client.chat(model=model, messages=[*messages(STAR), said, result, again], tools=[tool])
    assert second.message.content or second.message.tool_calls


def test_an_answer_that_is_begun(client: ollama.Client, model: str) -> None:
    begun = {"role": "assistant", "content": "A blue"}
    assert client.chat(model=model, messages=[*messages(STAR), begun]).message.content == " star."


def test_the_list_of_models(client: ollama.Client, model: str) -> None:
    (listed,) = client.list().models
    assert listed.model == f"{model}:latest"
    assert listed.size is not None
    assert listed.size > 1_000_000
    assert client.chat(model=listed.model, messages=messages(STAR)).message.content == STAR.answer
    (running,) = client.ps().models
    assert running.name == listed.model
    assert "vision" in (client.show(listed.model).capabilities or [])


def test_errors(client: ollama.Client, model: str) -> None:
    with pytest.raises(ollama.ResponseError, match="no model of that name") as refused:
        client.chat(model="mistral", messages=messages(STAR))
    assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as refused:
        list(client.generate(model=model, prompt="Look.", images=["AAAA"], stream=True))
    assert refused.value.status_code == 400
