"""Parts of answers -> OpenAI's chat completion, whole or in chunks."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from llava_api.chat.answers import AnswerPart, Answers, EndReason
from llava_api.chat.calls import CallPart
from llava_api.chat.logprobs import WrittenToken, as_text, prompt_logprobs
from llava_api.errors import ApiError
from llava_api.protocol import chat_reply as wire
from llava_api.protocol.chat_reply import Usage, usage_of
from llava_api.protocol.sampling import ChoicesRequest
from llava_api.protocol.wire import ErrorReply


@dataclass(frozen=True)
class ReplyMetadata:
    """What all chunks of a reply have in common."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    system_fingerprint: str


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex}"


class ChunkedReply:
    """What chat and text completions have in common: unnamed chunks, an error object, and a last event."""

    end_of_stream = "[DONE]"

    def __init__(self, metadata: ReplyMetadata, request: ChoicesRequest) -> None:
        options = request.stream_options
        self.metadata = metadata
        self.streamed = bool(request.stream)
        self.include_usage = options is not None and bool(options.include_usage)
        self.continuous_usage = options is not None and bool(options.continuous_usage_stats)
        self.with_token_ids = bool(request.return_token_ids)

    def failure(self, error: ApiError) -> list[ErrorReply]:
        return [ErrorReply.of(error, "")]


class ChatReply(ChunkedReply):
    def __init__(
        self,
        answers: Answers,
        metadata: ReplyMetadata,
        request: ChoicesRequest,
        named_call: bool = False,
    ) -> None:
        """``named_call``: the request named the function to call."""
        super().__init__(metadata, request)
        self.answers = answers
        # OpenAI's server says stop after a call of a named function, in streams too (vllm-project/vllm#25054).
        self.end_of_calls: EndReason = "stop" if named_call else "tool_calls"
        self.with_logprobs = answers.spec.request.sampling.logprobs is not None

    async def whole(self) -> wire.ChatCompletion:
        gathered: list[list[AnswerPart]] = [[] for _ in range(self.answers.spec.choices)]
        async with aclosing(self.answers.parts()) as parts:
            async for part in parts:
                gathered[part.index].append(part)
        top, prompt = self.answers.spec.request.sampling.prompt_logprobs, None
        if top is not None:
            # Off the event loop, because there may be 80,000.
            prompt = await asyncio.to_thread(prompt_logprobs, self.answers.prompt, self.answers.spec.tokenizer, top)
        return wire.ChatCompletion(
            **vars(self.metadata),
            choices=list(map(self.choice, gathered)),
            usage=self.usage(),
            prompt_logprobs=prompt,
            prompt_token_ids=self.answers.spec.request.token_ids if self.with_token_ids else None,
        )

    def usage(self) -> Usage:
        answers, request = self.answers, self.answers.spec.request
        return usage_of(len(request.token_ids), request.image_tokens, answers.completion_tokens, answers.cached_tokens)

    def choice(self, parts: list[AnswerPart]) -> wire.Choice:
        """One whole answer from all of its parts."""
        pieces = [part.call for part in parts if part.call is not None]
        calls = [
            whole_call(piece.name, "".join(other.arguments for other in pieces if other.index == piece.index))
            for piece in pieces
            if piece.name is not None
        ]
        return wire.Choice(
            index=parts[-1].index,
            message=wire.ReplyMessage(
                content=None if calls else "".join(part.text for part in parts), tool_calls=calls or None
            ),
            logprobs=None if calls else self.logprobs([token for part in parts for token in part.logprobs]),
            finish_reason=self.finish_reason(parts[-1]) or "stop",
            choice_logprobs=self.answers.choice_logprobs,
            token_ids=self.ids_of(parts[-1].index),
        )

    def ids_of(self, index: int) -> list[int] | None:
        return self.answers.ids_of(index) if self.with_token_ids else None

    def finish_reason(self, part: AnswerPart) -> EndReason | None:
        return self.end_of_calls if part.finish_reason == "tool_calls" else part.finish_reason

    def logprobs(self, tokens: Sequence[WrittenToken]) -> wire.ChoiceLogprobs | None:
        return wire.ChoiceLogprobs(content=list(map(logprob_of, tokens))) if self.with_logprobs else None

    async def items(self) -> AsyncGenerator[wire.ChatCompletionChunk, None]:
        """For each choice: a role chunk, chunks of text or calls, one with the finish reason. Then the usage chunk.

        The first chunk comes with the engine's first output, so that a refusal by the engine still has a status.
        """
        opened: set[int] = set()
        async with aclosing(self.answers.parts()) as parts:
            async for part in parts:
                if part.index not in opened:
                    if self.answers.spec.call_names and part == AnswerPart(part.index):
                        # Not known yet whether it is text or a call.
                        continue
                    opened.add(part.index)
                    opening = wire.DeltaMessage(role="assistant", content="" if part.call is None else None)
                    first = self.chunk([wire.ChunkChoice(index=part.index, delta=opening)])
                    if self.with_token_ids and len(opened) == 1:
                        first.prompt_token_ids = self.answers.spec.request.token_ids
                    yield first
                for choice in self.deltas(part):
                    yield self.chunk([choice])
        if self.include_usage:
            yield wire.ChunkWithUsage(**vars(self.metadata), choices=[], usage=self.usage())

    def deltas(self, part: AnswerPart) -> list[wire.ChunkChoice]:
        found: list[wire.ChunkChoice] = []
        if part.text or part.logprobs:
            delta = wire.DeltaMessage(content=part.text)
            found.append(wire.ChunkChoice(index=part.index, delta=delta, logprobs=self.logprobs(part.logprobs)))
        if part.call is not None:
            delta = wire.DeltaMessage(tool_calls=[call_delta(part.call)])
            found.append(wire.ChunkChoice(index=part.index, delta=delta))
        reason = self.finish_reason(part)
        if reason is not None:
            end = wire.ChunkChoice(index=part.index, delta=wire.DeltaMessage(), finish_reason=reason)
            end.choice_logprobs, end.token_ids = self.answers.choice_logprobs, self.ids_of(part.index)
            found.append(end)
        return found

    def chunk(self, choices: list[wire.ChunkChoice]) -> wire.ChatCompletionChunk:
        if self.continuous_usage:
            return wire.ChunkWithUsage(**vars(self.metadata), choices=choices, usage=self.usage())
        kind = wire.ChunkWithUsage if self.include_usage else wire.ChatCompletionChunk
        return kind(**vars(self.metadata), choices=choices)


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


def whole_call(name: str, arguments: str) -> wire.ReplyToolCall:
    return wire.ReplyToolCall(id=new_call_id(), function=wire.ReplyFunction(name=name, arguments=arguments))


def call_delta(call: CallPart) -> wire.ToolCallDelta:
    if call.name is None:
        return wire.ToolCallDelta(index=call.index, function=wire.FunctionDelta(arguments=call.arguments))
    return wire.ToolCallDelta(
        index=call.index,
        id=new_call_id(),
        type="function",
        function=wire.FunctionDelta(name=call.name, arguments=call.arguments),
    )
