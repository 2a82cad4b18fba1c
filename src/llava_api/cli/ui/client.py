"""The API as the page uses it: models, answers piece by piece, and ``/v1/explain`` where there is one.

Every failure is a ``Trouble`` whose message says to the person at the page what to do. Keys are passed on and never
kept.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import openai
from openai import AsyncOpenAI
from pydantic import ValidationError

from llava_api.errors import ErrorCode
from llava_api.protocol.explain import Explanation

NO_KEY = "none"
"""What is sent where nobody gave a key: the client insists on one."""
CONNECT_SECONDS = 10
READ_SECONDS = 600
"""Longest wait for a first word: a busy server lets requests queue."""


class Trouble(Exception):
    """The message is for the person at the page."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a person may turn."""

    model: str
    temperature: float
    max_tokens: int
    system: str
    key: str


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    cut: bool = False
    """Whether the answer ends here only because it has ``max_tokens``."""


class Api:
    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        timeout = openai.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self.client = AsyncOpenAI(base_url=base_url, api_key=NO_KEY, max_retries=0, timeout=timeout)

    async def close(self) -> None:
        await self.client.close()

    def with_key(self, key: str) -> AsyncOpenAI:
        return self.client.with_options(api_key=key.strip() or NO_KEY)

    async def models(self, key: str) -> list[str]:
        """Names of the models served. Raises Trouble."""
        try:
            listed = await self.with_key(key).models.list()
            return [model.id for model in listed.data]
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise self.trouble(error) from error

    async def answer(self, knobs: Knobs, messages: Any) -> AsyncGenerator[Piece, None]:
        """Raises Trouble. Where this is closed or cancelled, the connection is closed, and the server stops."""
        try:
            stream = await self.with_key(knobs.key).chat.completions.create(
                model=knobs.model,
                messages=messages,
                temperature=knobs.temperature,
                max_tokens=knobs.max_tokens,
                stream=True,
            )
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices:
                        yield Piece(choice.delta.content or "", choice.finish_reason == "length")
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise self.trouble(error) from error

    async def explain(self, knobs: Knobs, messages: list[dict[str, Any]]) -> Explanation | None:
        """What the model is shown; None where the server cannot say so. Raises Trouble."""
        body = {"model": knobs.model, "messages": messages}
        try:
            told = await self.with_key(knobs.key).post("/explain", body=body, cast_to=object)
            return Explanation.model_validate(told)
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501) and not names_a_model(error):
                return None
            raise self.trouble(error) from error
        except (ValidationError, ValueError):
            return None
        except openai.OpenAIError as error:
            raise self.trouble(error) from error

    def trouble(self, error: Exception) -> Trouble:
        """The same for a person."""
        if isinstance(error, openai.APITimeoutError):
            return Trouble(f"The server at {self.base_url} did not answer in time: try again, it may be busy.")
        if isinstance(error, openai.APIConnectionError):
            return Trouble(
                f"No server answers at {self.base_url}. Start one with `llava-api serve`, or start this page with the "
                "`--base-url` of another."
            )
        if isinstance(error, openai.AuthenticationError):
            return Trouble("The server asks for an API key: enter yours under Settings.")
        if isinstance(error, UnicodeEncodeError):
            return Trouble("The API key has letters or signs that no key has: copy it anew.")
        if isinstance(error, openai.APIError):
            return Trouble(said_by_server(error) or f"The server at {self.base_url} refused the request.")
        return Trouble(f"What answers at {self.base_url} does not speak OpenAI's API: is the base URL right?")


def names_a_model(error: openai.APIStatusError) -> bool:
    """Whether a 404 is about the model rather than about the address."""
    return error.code == ErrorCode.MODEL_NOT_FOUND


def said_by_server(error: openai.APIError) -> str:
    """The message in an error's body; the client's own holds the whole body."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    if isinstance(error, openai.APIStatusError):
        return f"The server answered with status {error.status_code}."
    return error.message
