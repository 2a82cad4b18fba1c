"""The client of an OpenAI-compatible API, for ``llava-api chat`` and ``llava-api ui``, and what its errors mean.

The only module that imports ``openai``, of which versions 2 and 3 raise different errors.
"""

import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from llava_api.cli.conversation import Message, Sampling
from llava_api.cli.endpoint import NO_KEY, can_be_sent, is_on_this_machine, without_password
from llava_api.cli.terminal import without_controls
from llava_api.errors import StartupError
from llava_api.protocol.explain import Explanation

CONNECT_SECONDS = 10
READ_SECONDS = 600
"""Longest wait for the next part of an answer: a busy server lets requests queue."""
LIST_SECONDS = 30
MAX_ERROR_LENGTH = 500
USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens")


class ApiFailed(StartupError):
    """The API cannot be reached or did not answer. The message is one line for the person who asked."""

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, can_retry: bool = False
    ) -> None:
        super().__init__(one_line(message))
        self.code = code
        """OpenAI's error code, if the server gave one."""
        self.status = status
        """The HTTP status, if the server answered."""
        self.can_retry = can_retry
        """Whether the server may answer the same question later."""


class Answer:
    """An answer as it arrives. When its text has been iterated over, the attributes are complete."""

    def __init__(self, client: "ApiClient", stream: "openai.AsyncStream[ChatCompletionChunk]") -> None:
        self.client = client
        self.stream = stream
        self.text = ""
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: dict[str, int] | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Raises ApiFailed."""
        chunks = aiter(self.stream)
        while True:
            try:
                chunk = await anext(chunks, None)
                text = None if chunk is None else self.add(chunk)
            except openai.APIError as error:
                raise self.client.explained(error) from error
            except Exception as error:
                # openai 2 lets the errors of its HTTP library through, and no version checks what a chunk holds.
                raise ApiFailed(f"The answer broke off ({type(error).__name__}).", can_retry=True) from error
            if text is None:
                break
            if text:
                yield text
        if self.finish_reason is None:
            raise ApiFailed("The answer broke off: the server ended it before it was complete.", can_retry=True)

    def add(self, chunk: ChatCompletionChunk) -> str:
        """The new text. Raises AttributeError and TypeError for a chunk that is not one."""
        self.model = chunk.model or self.model
        if chunk.usage is not None:
            self.usage = {name: getattr(chunk.usage, name) for name in USAGE_FIELDS}
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        # Some servers send a last chunk without a delta.
        text = (choice.delta.content or "") if choice.delta else ""
        self.text += text
        return text


class ApiClient:
    def __init__(
        self, base_url: str, key: str = NO_KEY, *, start_advice: str, key_advice: str, max_retries: int = 0
    ) -> None:
        """``start_advice``: what to do if no server answers on this machine. ``key_advice``: where to enter a key.

        Raises StartupError for a base URL that is not one.
        """
        self.base_url = without_password(base_url)
        self.has_key = key != NO_KEY
        self.start_advice = start_advice
        self.key_advice = key_advice
        # A proxy of the environment is for the internet, not for a server on this machine.
        http = openai.DefaultAsyncHttpxClient(trust_env=not is_on_this_machine(base_url))
        timeout = openai.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        try:
            self.openai = openai.AsyncOpenAI(
                base_url=base_url, api_key=key, http_client=http, timeout=timeout, max_retries=max_retries
            )
        except Exception as error:
            # The HTTP library's, which depends on the version of openai.
            raise StartupError(f"--base-url {self.base_url} is no URL: {one_line(str(error))}") from error

    async def aclose(self) -> None:
        await self.openai.close()

    def with_key(self, key: str) -> "ApiClient":
        """A client with another key that shares the connections. Raises ApiFailed."""
        key = key.strip() or NO_KEY
        if not can_be_sent(key):
            raise ApiFailed("The API key has letters or signs that no key has: copy it again.")
        client = copy.copy(self)
        client.openai, client.has_key = self.openai.with_options(api_key=key), key != NO_KEY
        return client

    async def models(self) -> list[str]:
        """The names that the server answers to, at least one. Raises ApiFailed."""
        try:
            listed = await self.openai.with_options(max_retries=0, timeout=LIST_SECONDS).models.list()
            names = [model.id for model in listed.data]
        except openai.APIError as error:
            failure = self.explained(error)
            # Whatever the server says about an unknown path, the base URL is wrong.
            raise (ApiFailed(self.not_an_api(), status=404) if failure.status == 404 else failure) from error
        except Exception as error:
            # The answer is not even JSON.
            raise ApiFailed(self.not_an_api()) from error
        if not names:
            raise ApiFailed(f"The server at {self.base_url} has no model.")
        return names

    @asynccontextmanager
    async def ask(self, model: str, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Answer]:
        """The answer as a stream; leaving the block closes the connection, and the server stops. Raises ApiFailed."""
        fields: dict[str, Any] = {"model": model, "messages": messages, **sampling.fields()}
        try:
            stream: openai.AsyncStream[ChatCompletionChunk] = await self.openai.chat.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}
            )
        except openai.APIError as error:
            raise self.explained(error) from error
        except UnicodeEncodeError as error:
            raise ApiFailed("The question has halves of letters in it (surrogates): leave them out.") from error
        async with stream:
            yield Answer(self, stream)

    async def explain(self, model: str, messages: Sequence[Message]) -> Explanation | None:
        """What the model is shown; None if the server has no ``/v1/explain``. Raises ApiFailed."""
        try:
            body = {"model": model, "messages": messages}
            return Explanation.model_validate(await self.openai.post("/explain", body=body, cast_to=object))
        except openai.APIStatusError as error:
            # An unknown model is a 404 as well.
            if error.status_code in (404, 405, 501) and error.code != "model_not_found":
                return None
            raise self.explained(error) from error
        except openai.APIError as error:
            raise self.explained(error) from error
        except (ValidationError, ValueError):
            return None

    def explained(self, error: openai.APIError) -> ApiFailed:
        if isinstance(error, openai.APITimeoutError):
            return ApiFailed(f"The server at {self.base_url} took too long: it may be busy.", can_retry=True)
        if isinstance(error, openai.APIConnectionError):
            return ApiFailed(self.unreachable(error), can_retry=True)
        message = error.body.get("message") if isinstance(error.body, dict) else None
        if not isinstance(error, openai.APIStatusError):
            return ApiFailed(str(message or error.message), code=error.code, can_retry=True)
        status = error.status_code
        if status == 401:
            what = "does not accept this API key" if self.has_key else "asks for an API key"
            message = f"The server {what}: {self.key_advice}."
        elif not message:
            message = (
                self.not_an_api() if status in (404, 405) else f"The server answered with HTTP status {status} only."
            )
        can_retry = status in (401, 408, 429) or status >= 500
        return ApiFailed(str(message), code=error.code, status=status, can_retry=can_retry)

    def not_an_api(self) -> str:
        return f"The server at {self.base_url} does not speak OpenAI's API: does its base URL end in /v1?"

    def unreachable(self, error: openai.APIConnectionError) -> str:
        reason = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else ""
        if "[SSL:" in reason:
            return f"No secure connection to {self.base_url}{reason}: is it http, or its certificate not trusted?"
        advice = self.start_advice if is_on_this_machine(self.base_url) else "check --base-url and the network"
        return f"No server answers at {self.base_url}{reason}: {advice}."


def one_line(text: str) -> str:
    words = " ".join(without_controls(text).split())
    return words if len(words) <= MAX_ERROR_LENGTH else words[:MAX_ERROR_LENGTH] + " ..."
