"""What the router reads of a request's body: the model's name, and by what it finds the replica that has it cached."""

import re
from dataclasses import dataclass
from typing import Any

import orjson
from blake3 import blake3

from llava_api.errors import InvalidRequest
from llava_api.server.body import check_parts, json_object, without_base64

IMAGE = re.compile(rb'"(?:image:[0-9a-f]{64}|data:image/[^"]+|https?://[^"]+)"')
"""A string that is an image: one that ``digest`` has replaced, a short one, or an address."""


@dataclass(frozen=True, slots=True)
class Question:
    model: str
    streamed: bool
    previous_response: str
    """The stored response that the request continues, or ""."""
    affinity: bytes
    """Of the first user's turn: its first image if it has one, else all turns up to it.

    So all questions about one image have the same, and so have all turns of one conversation.
    """


def read_question(body: bytes | bytearray, streams_by_default: bool) -> Question:
    """Raises InvalidRequest. Images are hashed where they are, so a body of megabytes takes some milliseconds."""
    text = without_base64(body, digest)
    check_parts(text)
    try:
        data = json_object(text)
    except InvalidRequest:
        # An image inside a text may end with an escaped quotation mark.
        data = json_object(body)
    return Question(
        model=text_of(data.get("model")) or text_of(data.get("name")),
        streamed=bool(data.get("stream", streams_by_default)),
        previous_response=text_of(data.get("previous_response_id")),
        affinity=beginning(data),
    )


def digest(image: memoryview) -> bytes:
    return b"image:" + blake3(image).hexdigest().encode()


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def beginning(data: dict[str, Any]) -> bytes:
    turns = data.get("messages") or data.get("input") or data.get("prompt")
    if isinstance(turns, list):
        first = (place for place, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("role") == "user")
        turns = turns[: next(first, 0) + 1]
    said = orjson.dumps([data.get("system"), data.get("instructions"), turns, data.get("images")])
    image = IMAGE.search(said)
    return said if image is None else image.group()
