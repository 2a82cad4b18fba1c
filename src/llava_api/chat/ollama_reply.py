"""Parts of an answer -> lines of Ollama's stream, and from them the whole answer."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from llava_api.chat.answers import AnswerPart, Answers
from llava_api.chat.calls import arguments_object
from llava_api.chat.chat_reply import logprob_of, new_call_id
from llava_api.errors import ApiError
from llava_api.protocol import ollama_reply as wire
from llava_api.protocol.chat_reply import TokenLogprob
from llava_api.telemetry.record import current

Line = wire.OllamaChatReply | wire.OllamaGenerateReply


def ollama_time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def line_of(
    model: str, chat: bool, text: str = "", calls: list[wire.OllamaReplyToolCall] | None = None, **fields: Any
) -> Line:
    """A line of ``/api/chat``, or, without ``chat``, of ``/api/generate``."""
    created_at = ollama_time(datetime.now(UTC))
    if not chat:
        return wire.OllamaGenerateReply(model=model, created_at=created_at, response=text, **fields)
    message = wire.OllamaReplyMessage(content=text, tool_calls=calls)
    return wire.OllamaChatReply(model=model, created_at=created_at, message=message, **fields)


class OllamaReply:
    """``model`` is the name in the request."""

    end_of_stream = None

    def __init__(self, answers: Answers, model: str, chat: bool, streamed: bool) -> None:
        self.answers = answers
        self.model = model
        self.chat = chat
        self.streamed = streamed
        self.with_logprobs = answers.spec.request.sampling.logprobs is not None
        self.started = current().started
        self.call: tuple[str, list[str]] | None = None
        """Name and pieces of the arguments of the call that is not complete yet: Ollama sends calls whole."""
        self.calls: list[wire.OllamaReplyToolCall] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    async def whole(self) -> Line:
        """Raises EngineFailed."""
        async with aclosing(self.items()) as lines:
            async for line in lines:
                last = line
        fields = last.model_dump(include={"done", "done_reason", *self.counts()})
        logprobs = self.logprobs if self.with_logprobs else None
        return self.line("".join(self.texts), self.calls or None, logprobs=logprobs, **fields)

    async def items(self) -> AsyncGenerator[Line, None]:
        """Raises Busy before the first item, and EngineFailed."""
        reason = None
        async with aclosing(self.answers.parts()) as parts:
            async for part in parts:
                reason = part.finish_reason
                for line in self.part_lines(part):
                    yield line
        for call in self.complete_call():
            yield self.line("", [call])
        yield self.line(done=True, done_reason="length" if reason == "length" else "stop", **self.counts())

    def failure(self, error: ApiError) -> list[wire.OllamaErrorReply]:
        return [wire.OllamaErrorReply.of(error, "")]

    def line(self, text: str = "", calls: list[wire.OllamaReplyToolCall] | None = None, **fields: Any) -> Line:
        return line_of(self.model, self.chat, text, calls, **fields)

    def part_lines(self, part: AnswerPart) -> Iterator[Line]:
        if part.text or part.logprobs:
            logprobs = [logprob_of(token) for token in part.logprobs]
            self.texts.append(part.text)
            self.logprobs += logprobs
            yield self.line(part.text, logprobs=logprobs if self.with_logprobs else None)
        if part.call is None:
            return
        if part.call.name is not None:
            for call in self.complete_call():
                yield self.line("", [call])
            self.call = (part.call.name, [])
        assert self.call is not None
        self.call[1].append(part.call.arguments)

    def complete_call(self) -> list[wire.OllamaReplyToolCall]:
        """The call that is open, if there is one."""
        if self.call is None:
            return []
        (name, pieces), self.call = self.call, None
        arguments = arguments_object("".join(pieces))
        function = wire.OllamaReplyFunction(index=len(self.calls), name=name, arguments=arguments)
        self.calls.append(wire.OllamaReplyToolCall(id=new_call_id(), function=function))
        return self.calls[-1:]

    def counts(self) -> dict[str, Any]:
        """Counts, and durations in nanoseconds, of which clients divide by some."""
        record = self.answers.record
        first = record.first_token or record.ended
        return {
            "total_duration": nanoseconds(record.ended - self.started),
            "load_duration": 0,
            "prompt_eval_count": len(self.answers.spec.request.token_ids),
            "prompt_eval_duration": nanoseconds(first - record.admitted),
            "eval_count": self.answers.completion_tokens,
            "eval_duration": nanoseconds(record.ended - first),
        }


def nanoseconds(seconds: float) -> int:
    """1 or more."""
    return max(1, int(seconds * 1e9))
