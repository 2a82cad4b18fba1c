"""Responses kept for ``previous_response_id``: in memory, the oldest make room for new ones."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from llava_api.protocol.response_reply import OutputCall, Response
from llava_api.protocol.responses import AssistantItem, CallItem, InputItem

PER_ITEM_BYTES = 1_000
"""What an item's objects take besides its texts."""


@dataclass(frozen=True, slots=True)
class Kept:
    response: Response
    items: list[InputItem]
    """The whole conversation up to and with the response."""
    size: int


class ResponseStore:
    """Bounded by ``max_bytes`` of texts and encoded pictures; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self.kept: OrderedDict[str, Kept] = OrderedDict()

    @property
    def keeps(self) -> bool:
        return self.max_bytes > 0

    def get(self, response_id: str) -> Kept | None:
        found = self.kept.get(response_id)
        if found is not None:
            self.kept.move_to_end(response_id)
        return found

    def put(self, response: Response, items: Sequence[InputItem]) -> None:
        """``items``: the conversation before the response."""
        said = [*items, *as_input(response)]
        size = sum(PER_ITEM_BYTES + sum(map(len, texts_in(item))) for item in said)
        if size > self.max_bytes:
            return
        self.kept[response.id] = Kept(response, said, size)
        self.size += size
        while self.size > self.max_bytes:
            _, oldest = self.kept.popitem(last=False)
            self.size -= oldest.size

    def delete(self, response_id: str) -> None:
        self.size -= self.kept.pop(response_id).size


def as_input(response: Response) -> Iterator[InputItem]:
    """What the model said, as the next request would send it back."""
    for item in response.output:
        if isinstance(item, OutputCall):
            yield CallItem(type="function_call", call_id=item.call_id, name=item.name, arguments=item.arguments)
        else:
            yield AssistantItem(role="assistant", content="".join(part.text for part in item.content))


def texts_in(value: object) -> Iterator[str]:
    """Every text in a wire object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        for inner in vars(value).values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
