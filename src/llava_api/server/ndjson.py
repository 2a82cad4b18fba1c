"""Streams as Ollama frames them: one JSON object in each line. A failure is the last line, as ``{"error": "..."}``."""

from collections.abc import Iterable

from pydantic import BaseModel

from llava_api.server.sse import EventStream

KEEP_ALIVE = b" "
"""White space before an object; clients would read an empty line as an object."""


class LineStream(EventStream):
    media_type = "application/x-ndjson"

    def silence(self) -> bytes:
        return KEEP_ALIVE

    def encode(self, items: Iterable[BaseModel]) -> bytes:
        """In ASCII, because httpx ends a line at U+2028 and others too."""
        return b"".join([item.model_dump_json(ensure_ascii=True).encode() + b"\n" for item in items])
