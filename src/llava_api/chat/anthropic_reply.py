"""Parts of an answer -> the events of Anthropic's Messages API, and from them the whole message."""

import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from llava_api.chat.answers import AnswerPart, Answers, EndReason
from llava_api.chat.calls import arguments_object
from llava_api.errors import ApiError
from llava_api.protocol import anthropic_reply as wire

REASONS: dict[EndReason, wire.StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(slots=True)
class Block:
    """One block of the message, gathered."""

    name: str | None
    """The called tool's name; None for text."""
    id: str = field(default_factory=lambda: f"toolu_{uuid.uuid4().hex}")
    pieces: list[str] = field(default_factory=list)

    def reply(self) -> wire.ReplyTextBlock | wire.ReplyToolUseBlock:
        text = "".join(self.pieces)
        if self.name is None:
            return wire.ReplyTextBlock(text=text)
        return wire.ReplyToolUseBlock(id=self.id, name=self.name, input=arguments_object(text))


class AnthropicReply:
    """``request_id``: for errors."""

    end_of_stream = None

    def __init__(
        self,
        answers: Answers,
        model: str,
        stop_sequences: Sequence[str],
        streamed: bool,
        request_id: str,
    ) -> None:
        self.answers = answers
        self.model = model
        self.stop_sequences = stop_sequences
        self.streamed = streamed
        self.request_id = request_id
        self.blocks: list[Block] = []

    async def whole(self) -> wire.AnthropicMessage:
        """Raises EngineFailed."""
        end: wire.MessageEnd | None = None
        async with aclosing(self.items()) as events:
            async for event in events:
                if isinstance(event, wire.MessageDelta):
                    end = event.delta
        return self.message(end)

    async def items(self) -> AsyncGenerator[wire.AnthropicEvent, None]:
        """The first comes with the engine's first output, so that a refusal by the engine still has a status.

        Raises Busy before it, and EngineFailed.
        """
        reason: EndReason | None = None
        begun = False
        async with aclosing(self.answers.parts()) as parts:
            async for part in parts:
                if not begun:
                    begun = True
                    yield wire.MessageStart(message=self.message(None))
                reason = part.finish_reason
                for event in self.part_events(part):
                    yield event
        assert reason is not None
        if not self.blocks:
            # An empty answer is a text too.
            yield self.begin(None)
        yield wire.BlockStop(index=len(self.blocks) - 1)
        stopped_by = self.answers.stop_text
        if stopped_by is not None and stopped_by in self.stop_sequences:
            end = wire.MessageEnd(stop_reason="stop_sequence", stop_sequence=stopped_by)
        else:
            end = wire.MessageEnd(stop_reason=REASONS[reason], stop_sequence=None)
        yield wire.MessageDelta(delta=end, usage=self.usage())
        yield wire.MessageStop()

    def failure(self, error: ApiError) -> list[wire.AnthropicErrorReply]:
        return [wire.AnthropicErrorReply.of(error, self.request_id)]

    def part_events(self, part: AnswerPart) -> Iterator[wire.AnthropicEvent]:
        if part.text:
            if not self.blocks:
                yield self.begin(None)
            yield self.delta(part.text, wire.TextBlockDelta(text=part.text))
        if part.call is None:
            return
        if part.call.name is not None:
            if self.blocks:
                yield wire.BlockStop(index=len(self.blocks) - 1)
            yield self.begin(part.call.name)
        if part.call.arguments:
            yield self.delta(part.call.arguments, wire.InputJsonDelta(partial_json=part.call.arguments))

    def begin(self, name: str | None) -> wire.BlockStart:
        """A new block: text, or a call of the tool ``name``."""
        self.blocks.append(Block(name))
        return wire.BlockStart(index=len(self.blocks) - 1, content_block=self.blocks[-1].reply())

    def delta(self, piece: str, delta: wire.TextBlockDelta | wire.InputJsonDelta) -> wire.BlockDelta:
        self.blocks[-1].pieces.append(piece)
        return wire.BlockDelta(index=len(self.blocks) - 1, delta=delta)

    def message(self, end: wire.MessageEnd | None) -> wire.AnthropicMessage:
        """``end``: None for a message that has only begun."""
        return wire.AnthropicMessage(
            id=self.answers.spec.request.request_id,
            model=self.model,
            content=[block.reply() for block in self.blocks],
            stop_reason=None if end is None else end.stop_reason,
            stop_sequence=None if end is None else end.stop_sequence,
            usage=self.usage(),
        )

    def usage(self) -> wire.MessageUsage:
        cached = self.answers.cached_tokens
        return wire.MessageUsage(
            input_tokens=len(self.answers.spec.request.token_ids) - cached,
            cache_read_input_tokens=cached,
            output_tokens=self.answers.completion_tokens,
        )
