"""The OpenAI client, and its failures in words that say what to do. The only place here that knows ``openai``."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk

from llava_api.cli.chat.access import NO_KEY, is_here, shown
from llava_api.cli.chat.conversation import Message
from llava_api.cli.chat.sampling import Sampling
from llava_api.cli.terminal import harmless
from llava_api.errors import StartupError

MOST_LETTERS = 500
"""Of a server's error that is shown."""


class AskFailed(Exception):
    """The server cannot be reached, or did not answer; one line for the person at the terminal."""

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, again: bool = False
    ) -> None:
        super().__init__(one_line(message))
        self.status = status
        """HTTP's, where the server answered."""
        self.code = code
        """OpenAI's, where the server gave one."""
        self.again = again
        """Whether the same question may be answered later."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Answer:
    """One answer while it comes. Iterate over its pieces; then ``text``, ``finish_reason`` and ``usage`` are whole."""

    def __init__(self, client: "Client", stream: "openai.Stream[ChatCompletionChunk]") -> None:
        self.client = client
        self.stream = stream
        self.text = ""
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None

    def __iter__(self) -> Iterator[str]:
        """Raises AskFailed."""
        chunks = iter(self.stream)
        while True:
            try:
                chunk = next(chunks, None)
                piece = None if chunk is None else self.take(chunk)
            except openai.APIError as error:
                raise self.client.explained(error) from error
            except Exception as error:
                # openai 2 lets the errors of its HTTP library through, and no version looks at what a chunk holds.
                raise AskFailed(f"the answer broke off ({type(error).__name__})", again=True) from error
            if piece is None:
                break
            if piece:
                yield piece
        if self.finish_reason is None:
            raise AskFailed("the answer broke off: the server ended it before it was done", again=True)

    def take(self, chunk: ChatCompletionChunk) -> str:
        """The text in it."""
        self.model = chunk.model or self.model
        if chunk.usage is not None:
            used = chunk.usage
            self.usage = Usage(used.prompt_tokens, used.completion_tokens, used.total_tokens)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        # Some servers send a last chunk without any.
        piece = (choice.delta.content or "") if choice.delta else ""
        self.text += piece
        return piece


class Client:
    def __init__(self, base_url: str, key: str) -> None:
        """Raises StartupError for what is no URL."""
        self.base_url = shown(base_url)
        self.has_key = key != NO_KEY
        # A proxy of the environment is for the internet, not for a server on this machine.
        http = openai.DefaultHttpxClient(trust_env=not is_here(base_url))
        try:
            self.openai = openai.OpenAI(base_url=base_url, api_key=key, http_client=http)
        except Exception as error:
            # Of the HTTP library, which another version of openai brings another of.
            raise StartupError(f"--base-url {self.base_url} is no URL: {one_line(str(error))}") from error

    def close(self) -> None:
        self.openai.close()

    def models(self) -> list[str]:
        """The names that the server answers to. Raises AskFailed."""
        try:
            found = [model.id for model in self.openai.with_options(max_retries=0, timeout=30).models.list().data]
        except openai.APIError as error:
            failure = self.explained(error)
            # Whatever the server says of an address that it does not have: what is wrong is the base URL.
            raise (AskFailed(self.no_api(), status=404) if failure.status == 404 else failure) from error
        except Exception as error:
            # A page that is no JSON at all.
            raise AskFailed(self.no_api()) from error
        if not found:
            raise AskFailed(f"the server at {self.base_url} has no model")
        return found

    @contextmanager
    def ask(self, model: str, messages: Sequence[Message], sampling: Sampling) -> Iterator[Answer]:
        """An answer that comes while it is made; leaving the block hangs up. Raises AskFailed."""
        fields: dict[str, Any] = {"model": model, "messages": messages, **sampling.fields()}
        try:
            stream: openai.Stream[ChatCompletionChunk] = self.openai.chat.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}
            )
        except openai.APIError as error:
            raise self.explained(error) from error
        except UnicodeEncodeError as error:
            raise AskFailed("the question has halves of letters in it (surrogates): leave them out") from error
        with closing(stream):
            yield Answer(self, stream)

    def explained(self, error: openai.APIError) -> AskFailed:
        if isinstance(error, openai.APITimeoutError):
            return AskFailed(f"the server at {self.base_url} took too long", again=True)
        if isinstance(error, openai.APIConnectionError):
            return AskFailed(self.unreachable(error), again=True)
        said = error.body.get("message") if isinstance(error.body, dict) else None
        message = harmless(str(said)) if said else ""
        if not isinstance(error, openai.APIStatusError):
            return AskFailed(message or harmless(error.message), code=error.code, again=True)
        status = error.status_code
        if status == 401:
            what = "this API key is not taken" if self.has_key else "the server wants an API key"
            message = f"{what}: name a file with it (--api-key-file), or set OPENAI_API_KEY"
        elif not message:
            message = self.no_api() if status in (404, 405) else f"the server answered with HTTP status {status}"
        return AskFailed(message, code=error.code, status=status, again=status in (401, 408, 429) or status >= 500)

    def no_api(self) -> str:
        return f"what answers at {self.base_url} is no OpenAI-compatible API: its base URL mostly ends in /v1"

    def unreachable(self, error: openai.APIConnectionError) -> str:
        reason = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else ""
        if "[SSL:" in reason:
            return f"no safe connection to {self.base_url}{reason}: is it http, or its certificate not trusted?"
        if is_here(self.base_url):
            return (
                f"no server answers at {self.base_url}{reason}: start one with `llava-api serve` in another terminal, "
                "or let --serve start one for this chat"
            )
        return f"no server answers at {self.base_url}{reason}: check --base-url and the network"


def one_line(text: str) -> str:
    words = " ".join(harmless(text).split())
    return words if len(words) <= MOST_LETTERS else words[:MOST_LETTERS] + " ..."
