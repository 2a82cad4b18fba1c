"""What the engine yields -> OpenAI's chunks, or one whole completion."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from llava_api.chat.prepare import Prepared
from llava_api.engine.base import Delta, Engine, FinishReason
from llava_api.errors import EngineFailed
from llava_api.protocol import chat as wire

UNFINISHED = "The engine ended this answer without saying why."


class Reply:
    """One answer in the making: its id, its model and its counts."""

    def __init__(self, engine: Engine, prepared: Prepared, reply_id: str, created: int, model: str) -> None:
        self.engine = engine
        self.prepared = prepared
        self.reply_id = reply_id
        self.created = created
        self.model = model
        self.completion_tokens = 0
        self.cached_tokens = 0

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The engine's deltas, counted; the answer's leading spaces (they follow "ASSISTANT:") left out.

        Closing this closes the engine's stream, which aborts the request. Raises EngineFailed where the engine
        ends without a finish reason.
        """
        started = finished = False
        async with aclosing(self.engine.generate(self.prepared.request)) as stream:
            async for delta in stream:
                self.completion_tokens += delta.completion_tokens
                self.cached_tokens = delta.cached_tokens
                text = delta.text if started else delta.text.lstrip(" ")
                started = started or bool(text)
                finished = delta.finish_reason is not None
                yield replace(delta, text=text)
        if not finished:
            raise EngineFailed(UNFINISHED)

    def usage(self) -> wire.Usage:
        prompt_tokens = self.prepared.text_tokens + self.prepared.image_tokens
        return wire.Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=prompt_tokens + self.completion_tokens,
            prompt_tokens_details=wire.PromptTokensDetails(
                cached_tokens=self.cached_tokens, image_tokens=self.prepared.image_tokens
            ),
        )

    async def whole(self) -> wire.ChatCompletion:
        """The answer in one piece."""
        texts: list[str] = []
        reason: FinishReason | None = None
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                texts.append(delta.text)
                reason = delta.finish_reason
        choice = wire.Choice(message=wire.ReplyMessage(content="".join(texts)), finish_reason=reason or "stop")
        return wire.ChatCompletion(
            id=self.reply_id, created=self.created, model=self.model, choices=[choice], usage=self.usage()
        )

    def chunk(self, delta: wire.DeltaMessage, finish_reason: FinishReason | None = None) -> wire.ChatCompletionChunk:
        choice = wire.ChunkChoice(delta=delta, finish_reason=finish_reason)
        return wire.ChatCompletionChunk(id=self.reply_id, created=self.created, model=self.model, choices=[choice])

    async def chunks(self, include_usage: bool) -> AsyncGenerator[wire.ChatCompletionChunk, None]:
        """Role chunk, text chunks, one with the finish reason, and the usage chunk where asked for.

        The first chunk comes with the engine's first output, so that a refusal by the engine still has a status.
        """
        reason: FinishReason | None = None
        role_sent = False
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                if not role_sent:
                    role_sent = True
                    yield self.chunk(wire.DeltaMessage(role="assistant", content=""))
                if delta.text:
                    yield self.chunk(wire.DeltaMessage(content=delta.text))
                reason = delta.finish_reason
        yield self.chunk(wire.DeltaMessage(), reason)
        if include_usage:
            yield wire.ChatCompletionChunk(
                id=self.reply_id, created=self.created, model=self.model, choices=[], usage=self.usage()
            )
