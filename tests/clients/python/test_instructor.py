"""``instructor`` over the openai client: a pydantic object about an image, by JSON schema and by tools."""

import asyncio
from typing import Any

import instructor
import pytest
from asked import STAR, Shape, check_star
from openai import AsyncOpenAI, OpenAI

MODES = [instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS]


def messages() -> Any:
    return [{"role": "user", "content": [STAR.text, instructor.Image.from_path(STAR.picture)]}]


@pytest.mark.parametrize("mode", MODES)
def test_an_object_about_an_image(base_url: str, model: str, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none", max_retries=0), mode=mode)
    # One attempt: the answer has to fit the schema without being asked again.
    shape = client.chat.completions.create(model=model, messages=messages(), response_model=Shape, max_retries=0)
    check_star(shape)


@pytest.mark.parametrize("mode", MODES)
def test_async(base_url: str, model: str, mode: instructor.Mode) -> None:
    async def ask() -> Shape:
        client = instructor.from_openai(AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0), mode=mode)
        return await client.chat.completions.create(
            model=model, messages=messages(), response_model=Shape, max_retries=0
        )

    check_star(asyncio.run(ask()))


@pytest.mark.parametrize("mode", MODES)
def test_partial_objects_while_streaming(base_url: str, model: str, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none", max_retries=0), mode=mode)
    partial = client.chat.completions.create_partial(
        model=model, messages=messages(), response_model=Shape, max_retries=0
    )
    *earlier, last = partial
    assert earlier
    check_star(Shape.model_validate(last.model_dump()))
