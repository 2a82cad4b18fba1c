"""What is asked in bulk: items, the requests that they become, and what came of each."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson

from llava_api.cli.conversation import Conversation

Line = dict[str, Any]
"""A line of a JSONL file."""


class ItemFailed(Exception):
    """There is no answer to one item; the others go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    """Below the base URL, as ``chat/completions``."""
    body: bytes
    images: int


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    request_id: str
    body: Any
    """JSON, or a text if the server sent none."""


@dataclass(frozen=True, slots=True)
class Item:
    key: Any
    """What ``Job.key_of`` finds in this item's line of the output."""
    custom_id: str | None
    """Its name among the failures."""
    prepare: Callable[[], Request]
    """Reads images, in a thread, only when the request is about to be sent. Raises ItemFailed."""
    fields: Line = field(default_factory=dict)
    """What its line of the output has as well."""


@dataclass(frozen=True, slots=True)
class Job:
    items: Callable[[], Iterable[Item]]
    """All items in their order. Called several times, so that they need not be held."""
    line_for: Callable[[Item, Reply], Line]
    """The output's line for an answer with status 200. Raises ItemFailed."""
    key_of: Callable[[Line], Hashable]
    """Raises LookupError and TypeError for a line of another program."""
    line_start: bytes
    """What each line of the output starts with, to recognise one that is not whole."""


def batch_line(custom_id: str | None, reply: Reply | None, error: ItemFailed | None = None) -> Line:
    """A line of a batch's output or error file in OpenAI's form."""
    response = None
    if reply is not None:
        response = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
    failure = None if error is None else {"code": error.code, "message": error.message}
    return {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": failure}


def chat_request(model: str, question: str, image_urls: Sequence[str], fields: Line) -> Request:
    """A chat completion with one question."""
    messages = Conversation().asked(question, image_urls).messages()
    return Request("chat/completions", orjson.dumps({"model": model, "messages": messages, **fields}), len(image_urls))


def answer_text(reply: Reply) -> str:
    """The text of a chat completion. Raises ItemFailed."""
    try:
        text = reply.body["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ItemFailed("invalid_response", "The answer holds no text.")
    return text.strip()


def parse(text: bytes) -> Line:
    """Raises ItemFailed."""
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ItemFailed("invalid_json_line", "The line is not valid JSON.") from error
    if not isinstance(line, dict):
        raise ItemFailed("invalid_json_line", "The line is not a JSON object.")
    return line


def failing(number: int, custom_id: str | None, error: ItemFailed) -> Item:
    """An item that fails with its line's number in the message."""

    def fail() -> Request:
        raise ItemFailed(error.code, f"Line {number}: {error.message}")

    return Item(number, custom_id, fail)
