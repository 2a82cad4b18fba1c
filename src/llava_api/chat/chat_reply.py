"""Pieces of answers -> OpenAI's chat completion, whole or in chunks."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from llava_api.chat.answers import Answers, Piece
from llava_api.chat.calls import CallPiece
from llava_api.chat.logprobs import WrittenToken, as_text
from llava_api.chat.prepare import Prepared
from llava_api.protocol import chat_reply as wire
from llava_api.protocol.usage import Usage, usage_of


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of a reply, or the reply, have in common."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    system_fingerprint: str


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


@dataclass(slots=True)
class WholeChoice:
    """One answer, gathered."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[wire.TokenLogprob] = field(default_factory=list)
    calls: list[tuple[str, list[str]]] = field(default_factory=list)
    """Name and pieces of the arguments."""
    finish_reason: wire.FinishReason = "stop"

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.logprobs += [logprob_of(token) for token in piece.logprobs]
        if piece.call is not None:
            if piece.call.name is not None:
                self.calls.append((piece.call.name, []))
            self.calls[-1][1].append(piece.call.arguments)
        self.finish_reason = piece.finish_reason or self.finish_reason

    def message(self) -> wire.ReplyMessage:
        calls = [
            wire.MadeCall(id=new_call_id(), function=wire.CalledFunction(name=name, arguments="".join(arguments)))
            for name, arguments in self.calls
        ]
        return wire.ReplyMessage(content=None if calls else "".join(self.texts), tool_calls=calls or None)


class ChatReply:
    def __init__(self, answers: Answers, prepared: Prepared, head: Head) -> None:
        self.prepared = prepared
        self.answers = answers
        self.head = head
        self.with_logprobs = prepared.asked.request.sampling.logprobs is not None

    async def whole(self) -> wire.ChatCompletion:
        gathered = [WholeChoice() for _ in range(self.prepared.asked.choices)]
        async with aclosing(self.answers.pieces()) as pieces:
            async for piece in pieces:
                gathered[piece.index].add(piece)
        choices = [self.choice(index, answer) for index, answer in enumerate(gathered)]
        return wire.ChatCompletion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=choices,
            usage=self.usage(),
            system_fingerprint=self.head.system_fingerprint,
        )

    def usage(self) -> Usage:
        answers = self.answers
        return usage_of(
            self.prepared.text_tokens, self.prepared.image_tokens, answers.completion_tokens, answers.cached_tokens
        )

    def choice(self, index: int, answer: WholeChoice) -> wire.Choice:
        message = answer.message()
        logprobs = None
        if self.with_logprobs and message.content is not None:
            logprobs = wire.ChoiceLogprobs(content=answer.logprobs)
        return wire.Choice(index=index, message=message, logprobs=logprobs, finish_reason=answer.finish_reason)

    async def chunks(self, include_usage: bool) -> AsyncGenerator[wire.ChatCompletionChunk, None]:
        """For each choice: a role chunk, chunks of text or calls, one with the finish reason. Then the usage chunk.

        The first chunk comes with the engine's first output, so that a refusal by the engine still has a status.
        """
        kind = wire.ChunkWithUsage if include_usage else wire.ChatCompletionChunk
        opened: set[int] = set()
        async with aclosing(self.answers.pieces()) as pieces:
            async for piece in pieces:
                if piece.index not in opened:
                    if self.prepared.asked.call_names and piece == Piece(piece.index):
                        # Not known yet whether it is text or a call.
                        continue
                    opened.add(piece.index)
                    opening = wire.DeltaMessage(role="assistant", content="" if piece.call is None else None)
                    yield self.chunk(kind, [wire.ChunkChoice(index=piece.index, delta=opening)])
                for choice in self.deltas(piece):
                    yield self.chunk(kind, [choice])
        if include_usage:
            yield self.chunk(wire.ChunkWithUsage, []).model_copy(update={"usage": self.usage()})

    def deltas(self, piece: Piece) -> list[wire.ChunkChoice]:
        found: list[wire.ChunkChoice] = []
        if piece.text or piece.logprobs:
            logprobs = (
                wire.ChoiceLogprobs(content=[logprob_of(token) for token in piece.logprobs])
                if self.with_logprobs
                else None
            )
            delta = wire.DeltaMessage(content=piece.text)
            found.append(wire.ChunkChoice(index=piece.index, delta=delta, logprobs=logprobs))
        if piece.call is not None:
            delta = wire.DeltaMessage(tool_calls=[call_delta(piece.call)])
            found.append(wire.ChunkChoice(index=piece.index, delta=delta))
        if piece.finish_reason is not None:
            end = wire.ChunkChoice(index=piece.index, delta=wire.DeltaMessage(), finish_reason=piece.finish_reason)
            found.append(end)
        return found

    def chunk(self, kind: type[wire.ChatCompletionChunk], choices: list[wire.ChunkChoice]) -> wire.ChatCompletionChunk:
        return kind(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=choices,
            system_fingerprint=self.head.system_fingerprint,
        )


def logprob_of(token: WrittenToken) -> wire.TokenLogprob:
    return wire.TokenLogprob(
        token=token.text,
        logprob=token.logprob,
        bytes=list(token.written),
        top_logprobs=[
            wire.TopLogprob(token=as_text(written), logprob=logprob, bytes=list(written))
            for written, logprob in token.top
        ],
    )


def call_delta(call: CallPiece) -> wire.CallDelta:
    if call.name is None:
        return wire.CallDelta(index=call.index, function=wire.FunctionDelta(arguments=call.arguments))
    return wire.CallDelta(
        index=call.index,
        id=new_call_id(),
        type="function",
        function=wire.FunctionDelta(name=call.name, arguments=call.arguments),
    )
