"""Responses kept for ``previous_response_id``: as JSON, in memory; the oldest make room for new ones.

Each belongs to its owner, an API key's name; to anybody else it does not exist.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from llava_api.protocol.response_reply import OutputCall, Response
from llava_api.protocol.responses import AssistantItem, CallItem, InputItem

ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


@dataclass(frozen=True, slots=True)
class Kept:
    reply: bytes
    """The response."""
    conversation: bytes
    """All items up to and with the response."""
    owner: str
    """The API key that it was made for; "" without keys."""

    def items(self) -> list[InputItem]:
        return ITEMS.validate_json(self.conversation)

    def __len__(self) -> int:
        return len(self.reply) + len(self.conversation)


class ResponseStore:
    """Bounded by ``max_bytes``; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self.kept: OrderedDict[str, Kept] = OrderedDict()

    @property
    def keeps(self) -> bool:
        return self.max_bytes > 0

    def get(self, response_id: str, owner: str) -> Kept | None:
        """None also for what is another's."""
        found = self.kept.get(response_id)
        if found is None or found.owner != owner:
            return None
        self.kept.move_to_end(response_id)
        return found

    def put(self, response: Response, items: Sequence[InputItem], owner: str) -> None:
        """``items``: the conversation before the response."""
        conversation = ITEMS.dump_json([*items, *as_input(response)], exclude_none=True)
        kept = Kept(response.model_dump_json().encode(), conversation, owner)
        if len(kept) > self.max_bytes:
            return
        self.kept[response.id] = kept
        self.size += len(kept)
        while self.size > self.max_bytes:
            _, oldest = self.kept.popitem(last=False)
            self.size -= len(oldest)

    def delete(self, response_id: str) -> None:
        self.size -= len(self.kept.pop(response_id))


def as_input(response: Response) -> Iterator[InputItem]:
    """What the model said, as the next request would send it back."""
    for item in response.output:
        if isinstance(item, OutputCall):
            yield CallItem(type="function_call", call_id=item.call_id, name=item.name, arguments=item.arguments)
        else:
            yield AssistantItem(role="assistant", content="".join(part.text for part in item.content))
