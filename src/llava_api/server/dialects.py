"""Whose API a path belongs to, which decides the shape of errors and some headers before a route is known."""

from dataclasses import dataclass

from llava_api.protocol.anthropic_reply import AnthropicErrorReply
from llava_api.protocol.ollama_reply import OllamaErrorReply
from llava_api.protocol.wire import ErrorReply, ErrorShape


@dataclass(frozen=True, slots=True)
class Dialect:
    error: type[ErrorShape]
    key_header: bytes | None = None
    """Header that clients may send their API key in, besides ``Authorization: Bearer``."""

    request_id_header: str | None = None
    """Header of answers for the request's id, besides ``x-request-id``."""

    chat: str = "/v1/chat/completions"
    """Path of chat, which is named to who asks for one that does not exist."""


OPENAI = Dialect(ErrorReply)
OLLAMA = Dialect(OllamaErrorReply, chat="/api/chat")
DIALECTS = {
    "/v1/messages": Dialect(AnthropicErrorReply, b"x-api-key", "request-id", "/v1/messages"),
    "/v1/models": Dialect(ErrorReply, b"x-api-key"),
    "/api": OLLAMA,
}
"""Path -> the dialect of this path and all paths below it."""


def request_id_headers(path: str, request_id: str) -> dict[str, str]:
    names = ("x-request-id", dialect_of(path).request_id_header)
    return {name: request_id for name in names if name is not None}


def dialect_of(path: str) -> Dialect:
    for root, dialect in DIALECTS.items():
        if path == root or path.startswith(f"{root}/"):
            return dialect
    return OPENAI
