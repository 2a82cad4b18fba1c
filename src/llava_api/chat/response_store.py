"""Responses that are kept for ``previous_response_id``, as JSON in memory. The oldest are dropped for new ones.

Only requests with the same API key see a response.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from llava_api.protocol.response_reply import OutputCall, Response
from llava_api.protocol.responses import AssistantItem, CallItem, InputItem

ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


@dataclass(frozen=True, slots=True)
class StoredResponse:
    reply: bytes
    """The response itself."""
    conversation: bytes
    """All items of the conversation, the response's included."""
    owner: str
    """The API key that it was made for; "" without keys."""

    def __len__(self) -> int:
        return len(self.reply) + len(self.conversation)


class ResponseStore:
    """Bounded by ``max_bytes``; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self.kept: OrderedDict[str, StoredResponse] = OrderedDict()
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

    async def read(self, conversation: bytes) -> list[InputItem]:
        """Parse one at a time: many at once, requested in a few bytes each, would block the event loop for a second."""
        async with self.reading:
            return ITEMS.validate_json(conversation)

    def put(self, response: Response, conversation: Sequence[bytes], owner: str) -> None:
        """``conversation``: the items before the response, in lists as ``items_json`` makes them."""
        whole = joined([*conversation, items_json([*as_input(response)])])
        kept = StoredResponse(response.model_dump_json().encode(), whole, owner)
        if len(kept) > self.max_bytes:
            return
        self.kept[response.id] = kept
        self.size += len(kept)
        while self.size > self.max_bytes:
            _, oldest = self.kept.popitem(last=False)
            self.size -= len(oldest)

    def delete(self, response_id: str) -> None:
        self.size -= len(self.kept.pop(response_id))


def items_json(items: Sequence[InputItem]) -> bytes:
    """The items as a JSON list."""
    return ITEMS.dump_json([*items], exclude_none=True)


def joined(lists: Sequence[bytes]) -> bytes:
    """Several JSON lists as one."""
    return b"[" + b",".join(memoryview(one)[1:-1] for one in lists if one != b"[]") + b"]"


def as_input(response: Response) -> Iterator[InputItem]:
    """The model's answer, as the next request would send it."""
    for item in response.output:
        if isinstance(item, OutputCall):
            yield CallItem(type="function_call", call_id=item.call_id, name=item.name, arguments=item.arguments)
        else:
            yield AssistantItem(role="assistant", content="".join(part.text for part in item.content))
