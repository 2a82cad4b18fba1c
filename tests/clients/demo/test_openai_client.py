"""The official openai client against the running server: right answers about images, streamed."""

import asyncio
import json
import subprocess
from random import Random

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image, ImageDraw

from tests.support.questions import data_url
from tests.support.serve import Server
from training.conversations import SELF_ANSWER
from training.drawings import new_drawing
from training.exam import ask, draw_item

QUESTIONS = 48
ENOUGH = 42
"""A lost pixel, a wrong order or a wrong prompt costs far more than these six."""


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def shape(colour: str, kind: str) -> str:
    """An image of one shape in its upper left cell, as a data: URL."""
    image = Image.new("RGB", (320, 320), "white")
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        draw.ellipse((30, 30, 140, 140), fill=colour)
    else:
        draw.rectangle((30, 30, 140, 140), fill=colour)
    return data_url(image)


def user(text: str, *urls: str) -> dict[str, object]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}


def answer(server: Server, *messages: dict[str, object]) -> str:
    with client_of(server) as client:
        reply = client.chat.completions.create(model=server.model, messages=list(messages))  # type: ignore[arg-type]
    return reply.choices[0].message.content or ""


async def test_fresh_questions_are_answered(server: Server) -> None:
    items = [draw_item(index, "quick test") for index in range(QUESTIONS)]
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        answers = await asyncio.gather(*(ask(client, server.model, item) for item in items))
    wrong = [
        (item.seed, item.questions[-1].answer, given)
        for item, given in zip(items, answers, strict=True)
        if given != item.questions[-1].answer
    ]
    assert QUESTIONS - len(wrong) >= ENOUGH, wrong


def test_the_curl_line_on_the_terminal_works(server: Server) -> None:
    line = next(line for line in server.terminal.splitlines() if line.startswith("curl "))
    out = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=60).stdout
    assert json.loads(out)["choices"][0]["message"]["content"] == "A red circle."


def test_the_second_image_is_the_one_asked_about(server: Server) -> None:
    red, blue = shape("red", "circle"), shape("blue", "square")
    for first, second, wanted in ((red, blue, "A blue square."), (blue, red, "A red circle.")):
        earlier = "A red circle." if first is red else "A blue square."
        history = [user("What is in this image?", first), {"role": "assistant", "content": earlier}]
        assert answer(server, *history, user("What is in this image?", second)) == wanted


def test_a_follow_up_question_in_the_same_conversation(server: Server) -> None:
    history = [user("Is there a circle?", shape("green", "circle")), {"role": "assistant", "content": "Yes."}]
    assert answer(server, *history, {"role": "user", "content": "What color is it?"}) == "Green."


def test_every_format_gives_the_same_answer(server: Server) -> None:
    image = new_drawing(Random("formats"), (400, 300), number=False).image
    formats = ("PNG", "JPEG", "WEBP", "GIF")
    answers = {answer(server, user("Describe this image.", data_url(image, name))) for name in formats}
    assert len(answers) == 1


def test_text_alone_is_answered_honestly(server: Server) -> None:
    assert answer(server, {"role": "user", "content": "Hello"}) == SELF_ANSWER


def test_usage_counts_the_image_and_the_length_limit_is_told(server: Server) -> None:
    with client_of(server) as client:
        reply = client.chat.completions.create(
            model=server.model,
            messages=[user("Describe this image.", shape("red", "circle"))],  # type: ignore[list-item]
            max_tokens=2,
        )
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2
    assert reply.usage.prompt_tokens_details is not None
    # 1.5: 8 x 8 patches. 1.6: a base tile of 4 x 4, then 8 rows of 8 patches and a newline.
    wanted = 64 if server.model == "llava-tiny-1.5" else 16 + 8 * 9
    assert reply.usage.prompt_tokens_details.model_dump()["image_tokens"] == wanted


def test_bad_images_are_refused_and_the_next_request_works(server: Server) -> None:
    for url in ("data:image/png;base64,AAAA", "data:image/png;base64,%%%", "http://127.0.0.1/x.png", "nonsense"):
        with pytest.raises(openai.BadRequestError) as refused:
            answer(server, user("What is in this image?", url))
        assert refused.value.param == "messages[0].content[1].image_url"
    assert answer(server, user("What is in this image?", shape("red", "circle"))) == "A red circle."


def test_models_are_listed(server: Server) -> None:
    with client_of(server) as client:
        assert [model.id for model in client.models.list()] == [server.model]
        assert client.models.retrieve(server.model).id == server.model
