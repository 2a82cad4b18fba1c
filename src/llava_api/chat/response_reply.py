"""Parts of an answer -> the Responses API's events, and from the last of them the whole response."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llava_api.chat.answers import AnswerPart, Answers, AnswerSpec
from llava_api.chat.chat_reply import logprob_of, new_call_id
from llava_api.errors import ApiError
from llava_api.protocol import response_reply as wire
from llava_api.protocol.chat_reply import TokenLogprob
from llava_api.protocol.formats import TextFormat
from llava_api.protocol.responses import ItemStatus, ResponseRequest, TextOptions

Event = TypeVar("Event", bound=wire.Event)
CUT = wire.IncompleteDetails()
RETURNED = (
    *("instructions", "max_output_tokens", "model", "previous_response_id", "prompt_cache_key"),
    *("safety_identifier", "user"),
)
"""Fields of the request."""
USED = ("frequency_penalty", "presence_penalty", "temperature", "top_p")
"""Parameters of the engine's request."""


def described(request: ResponseRequest, spec: AnswerSpec, store: bool) -> wire.Response:
    """The response before there is any answer: the request's fields, with defaults filled in."""
    return wire.Response(
        **{name: getattr(request, name) for name in RETURNED},
        **{name: getattr(spec.request.sampling, name) for name in USED},
        id=spec.request.request_id,
        created_at=int(time.time()),
        status="in_progress",
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        store=store,
        text=request.text if request.text and request.text.format else TextOptions(format=TextFormat(type="text")),
        tool_choice=request.tool_choice or "auto",
        tools=[wire.ReturnedTool.model_validate(tool, from_attributes=True) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
    )


@dataclass(slots=True)
class OpenItem:
    """An output item that is not complete yet."""

    index: int
    name: str | None
    """The called function; None for a message."""
    id: str
    call_id: str = field(default_factory=new_call_id)
    text: str = ""
    """The message's text, or the call's arguments."""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def part(self) -> wire.OutputText:
        return wire.OutputText(text=self.text, logprobs=list(self.logprobs))

    def item(self, status: ItemStatus) -> wire.OutputMessage | wire.OutputCall:
        if self.name is not None:
            return wire.OutputCall(id=self.id, status=status, call_id=self.call_id, name=self.name, arguments=self.text)
        return wire.OutputMessage(id=self.id, status=status, content=[] if status == "in_progress" else [self.part()])


class ResponseReply:
    """``keep`` is called with the complete response."""

    end_of_stream = None

    def __init__(
        self,
        answers: Answers,
        response: wire.Response,
        keep: Callable[[wire.Response], None],
        streamed: bool,
    ) -> None:
        self.streamed = streamed
        self.answers = answers
        self.response = response
        self.keep = keep
        self.sequence = -1
        self.open: OpenItem | None = None
        self.output: list[wire.OutputMessage | wire.OutputCall] = []

    async def whole(self) -> wire.Response:
        """Raises EngineFailed."""
        async with aclosing(self.items()) as events:
            async for _ in events:
                pass
        return self.response

    async def items(self) -> AsyncGenerator[wire.Event, None]:
        """The first comes with the engine's first output, so that a refusal by the engine still has a status.

        Raises Busy before it, and EngineFailed.
        """
        reason = None
        async with aclosing(self.answers.parts()) as parts:
            async for part in parts:
                if self.sequence < 0:
                    yield self.response_event("response.created")
                    yield self.response_event("response.in_progress")
                reason = part.finish_reason
                for event in self.part_events(part):
                    yield event
        status: ItemStatus = "incomplete" if reason == "length" else "completed"
        # An empty answer is still a message, unless it was cut before it was known to be one.
        unknown = self.answers.spec.call_names and status == "incomplete"
        empty = self.open is None and not self.output and not unknown
        for event in [*(self.begin(None) if empty else ()), *self.close(status)]:
            yield event
        end = {"completed_at": int(time.time())} if status == "completed" else {"incomplete_details": CUT}
        self.response = self.response.model_copy(
            update={"status": status, "output": self.output, "usage": self.usage(), **end}
        )
        if self.response.store:
            self.keep(self.response)
        yield self.response_event(f"response.{status}")

    def event(self, kind: type[Event], **fields: Any) -> Event:
        self.sequence += 1
        return kind(sequence_number=self.sequence, **fields)

    def item_event(self, kind: type[Event], item: OpenItem, **fields: Any) -> Event:
        return self.event(kind, item_id=item.id, output_index=item.index, **fields)

    def response_event(self, name: str) -> wire.Event:
        return self.event(wire.ResponseEvent, type=name, response=self.response)

    def failure(self, error: ApiError) -> Iterator[wire.Event]:
        if self.sequence < 0:
            yield self.response_event("response.created")
        failed = {"status": "failed", "error": wire.ResponseError(message=error.message), "output": self.output}
        self.response = self.response.model_copy(update=failed)
        yield self.response_event("response.failed")

    def part_events(self, part: AnswerPart) -> Iterator[wire.Event]:
        if part.text or part.logprobs:
            if self.open is None:
                yield from self.begin(None)
            assert self.open is not None
            logprobs = [logprob_of(token) for token in part.logprobs]
            self.open.text += part.text
            self.open.logprobs += logprobs
            yield self.item_event(wire.TextDelta, self.open, delta=part.text, logprobs=logprobs)
        if part.call is None:
            return
        if part.call.name is not None:
            yield from self.close("completed")
            yield from self.begin(part.call.name)
        assert self.open is not None
        if part.call.arguments:
            self.open.text += part.call.arguments
            yield self.item_event(wire.ArgumentsDelta, self.open, delta=part.call.arguments)

    def begin(self, name: str | None) -> Iterator[wire.Event]:
        """Open an output item: a message, or a call of the function ``name``."""
        item_id = f"{'msg' if name is None else 'fc'}_{uuid.uuid4().hex}"
        opened = self.open = OpenItem(len(self.output), name, item_id)
        added, item = "response.output_item.added", opened.item("in_progress")
        yield self.event(wire.ItemEvent, type=added, output_index=opened.index, item=item)
        if name is None:
            yield self.item_event(wire.PartEvent, opened, type="response.content_part.added", part=opened.part())

    def close(self, status: ItemStatus) -> Iterator[wire.Event]:
        """Close the output item that is open, if there is one."""
        opened, self.open = self.open, None
        if opened is None:
            return
        if opened.name is None:
            yield self.item_event(wire.TextDone, opened, text=opened.text, logprobs=list(opened.logprobs))
            yield self.item_event(wire.PartEvent, opened, type="response.content_part.done", part=opened.part())
        else:
            yield self.item_event(wire.ArgumentsDone, opened, name=opened.name, arguments=opened.text)
        item = opened.item(status)
        self.output.append(item)
        yield self.event(wire.ItemEvent, type="response.output_item.done", output_index=opened.index, item=item)

    def usage(self) -> wire.ResponseUsage:
        given = len(self.answers.spec.request.token_ids)
        made = self.answers.completion_tokens
        return wire.ResponseUsage(
            input_tokens=given,
            input_tokens_details=wire.InputTokensDetails(cached_tokens=self.answers.cached_tokens),
            output_tokens=made,
            output_tokens_details=wire.OutputTokensDetails(),
            total_tokens=given + made,
        )
