"""Responses that are kept for ``previous_response_id`` and ``item_reference``, in memory. The oldest are dropped.

Only requests with the same API key see a response and its items.
"""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, TypeAdapter

from llava_api.protocol.response_reply import Response
from llava_api.protocol.responses import InputItem

ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])
ITEM_BYTES = 600
"""About what an item takes besides its JSON."""
MAX_ID = 64
"""Longest id that an item keeps; others get a new one."""
MAX_GUESSED = 31
"""Longest id that may be one which other callers can guess. Ours have 32 random digits."""
PREFIXES = {"function_call": "fc", "function_call_output": "fco"}


class StoredItem(NamedTuple):
    id: str
    json: bytes


@dataclass(frozen=True, slots=True)
class StoredResponse:
    reply: bytes
    """The response itself, as JSON."""
    given: tuple[StoredItem, ...]
    """The conversation before the response. Its items are shared with earlier responses."""
    made: tuple[StoredItem, ...]
    """The response's own items."""
    owner: str
    """The API key that it was made for; "" without keys."""

    @property
    def conversation(self) -> tuple[StoredItem, ...]:
        return self.given + self.made

    def __len__(self) -> int:
        return len(self.reply) + size_of(self.conversation)


class ResponseStore:
    """Bounded by ``max_bytes``; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self.kept: OrderedDict[str, StoredResponse] = OrderedDict()
        self.items: dict[tuple[str, str], dict[str, StoredItem]] = {}
        """Owner and id of an item -> the responses that have it, the newest last, with the item."""
        self.reading = asyncio.Lock()

    @property
    def keeps(self) -> bool:
        return self.max_bytes > 0

    def get(self, response_id: str, owner: str) -> StoredResponse | None:
        """None if there is no such response, or it belongs to another key."""
        found = self.kept.get(response_id)
        if found is None or found.owner != owner:
            return None
        self.kept.move_to_end(response_id)
        return found

    def find_item(self, item_id: str, owner: str) -> StoredItem | None:
        """None if no stored response of this owner has such an item."""
        found = self.items.get((owner, item_id))
        if found is None:
            return None
        response_id, item = next(reversed(found.items()))
        self.kept.move_to_end(response_id)
        return item

    async def read(self, items: Sequence[StoredItem]) -> list[InputItem]:
        """Parse one list at a time: many at once, requested in a few bytes each, would take all threads."""
        async with self.reading:
            return await asyncio.to_thread(lambda: ITEMS.validate_json(json_list(items)))

    def put(self, response: Response, given: tuple[StoredItem, ...], owner: str) -> None:
        """``given``: the conversation before the response."""
        made = stored((), response.output)
        kept = StoredResponse(response.model_dump_json().encode(), given, made, owner)
        if len(kept) > self.max_bytes:
            return
        self.kept[response.id] = kept
        self.size += len(kept)
        for item in kept.conversation:
            # Without keys, an item is only found by an id that cannot be guessed, which a client's own may be.
            if owner or len(item.id) > MAX_GUESSED:
                self.items.setdefault((owner, item.id), {})[response.id] = item
        while self.size > self.max_bytes:
            self.delete(next(iter(self.kept)))

    def delete(self, response_id: str) -> None:
        gone = self.kept.pop(response_id)
        self.size -= len(gone)
        for item in gone.conversation:
            having = self.items.get((gone.owner, item.id), {})
            having.pop(response_id, None)
            if not having:
                self.items.pop((gone.owner, item.id), None)


def size_of(items: Iterable[StoredItem]) -> int:
    return sum(len(item.json) + ITEM_BYTES for item in items)


def json_list(items: Iterable[StoredItem]) -> bytes:
    return b"[" + b",".join(item.json for item in items) + b"]"


def stored(earlier: Iterable[StoredItem], items: Iterable[BaseModel]) -> tuple[StoredItem, ...]:
    """``items`` as OpenAI's API lists them. Each has an id that no other one has, ``earlier`` ones included."""
    ids = {"", *(item.id for item in earlier)}
    made = []
    for item in items:
        data = listed(item)
        if data.setdefault("id", "") in ids or len(data["id"]) > MAX_ID:
            data["id"] = f"{PREFIXES.get(data['type'], 'msg')}_{uuid.uuid4().hex}"
        ids.add(data["id"])
        made.append(StoredItem(data["id"], orjson.dumps(data)))
    return tuple(made)


def listed(item: BaseModel) -> dict[str, Any]:
    """An item with a status, and its content in parts."""
    data: dict[str, Any] = {"status": "completed", **item.model_dump(exclude_none=True)}
    if data["type"] == "message" and isinstance(data["content"], str):
        data["content"] = [{"text": data["content"]}]
    for field in ("content", "output"):
        if isinstance(data.get(field), list):
            data[field] = [listed_part(part, data.get("role") == "assistant") for part in data[field]]
    return data


def listed_part(part: dict[str, Any], spoken: bool) -> dict[str, Any]:
    """A part in the form of the Responses API. ``spoken``: by the model."""
    if "text" in part:
        text = part["text"]
        if spoken:
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {"type": "input_text", "text": text}
    if "file_id" in part or "file" in part:
        file_id = part.get("file_id") or part["file"]["file_id"]
        return {"type": "input_image", "file_id": file_id, "detail": part.get("detail") or "auto"}
    if "image_url" in part:
        image = part["image_url"]
        if isinstance(image, str):
            image = {"url": image, "detail": part.get("detail")}
        return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto"}
    return part
