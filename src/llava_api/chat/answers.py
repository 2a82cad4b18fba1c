"""What the engine yields -> pieces of answers, whatever wire they go out on."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal

from llava_api.chat.calls import CallPiece, CallReader
from llava_api.chat.logprobs import LogprobAligner, TokenWriter, WrittenToken
from llava_api.engine.base import Delta, Engine, GenerationRequest
from llava_api.errors import EngineFailed
from llava_api.limits.admission import Line
from llava_api.limits.rate import Allowance
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.telemetry.record import AnswerRecord, RequestRecord, current

UNFINISHED = "The engine ended this answer without saying why."
EndReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The next of one answer: text, or a part of a call, or nothing yet; the last has a finish reason."""

    index: int
    """Of the choice."""
    text: str = ""
    call: CallPiece | None = None
    logprobs: tuple[WrittenToken, ...] = ()
    """Of the tokens that ``text`` is made of; none of a call's."""
    finish_reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """An engine request and how its answers are to be read."""

    request: GenerationRequest
    choices: int
    """Answers that are wanted; without chance the engine makes one for all of them."""
    spaces_cut: bool
    """Leave out an answer's leading spaces, which follow "ASSISTANT:"."""
    call_names: tuple[str, ...] = ()
    """Functions that the answer may call."""
    json: bool = False
    """Whether an answer that calls nothing is JSON."""


class AnswerReader:
    """One answer's deltas -> its pieces."""

    def __init__(self, asked: Asked, tokenizer: TextTokenizer) -> None:
        sampling = asked.request.sampling
        self.started = not asked.spaces_cut
        self.calls = CallReader(asked.call_names) if asked.call_names else None
        self.json: list[str] | None = [] if asked.json else None
        """The text so far of an answer that is JSON."""
        self.aligner: LogprobAligner | None = None
        if sampling.logprobs is not None:
            writer = TokenWriter(tokenizer, sampling.logprobs)
            self.aligner = LogprobAligner(writer, sampling.skip_special_tokens, asked.spaces_cut)

    def read(self, delta: Delta) -> list[Piece]:
        """One piece at least."""
        text = delta.text if self.started else delta.text.lstrip(" ")
        self.started = self.started or bool(text)
        found: list[str | CallPiece] = [text] if self.calls is None else self.calls.read(text)
        reason: EndReason | None = delta.finish_reason
        if self.calls is not None and reason is not None:
            found.append(self.calls.finish())
        said = "".join(part for part in found if isinstance(part, str))
        if self.json is not None:
            self.json.append(said)
        if reason == "stop":
            reason = self.end_reason()
        calls = [part for part in found if isinstance(part, CallPiece)]
        logprobs: list[WrittenToken] = []
        if self.aligner is not None and (self.calls is None or not self.calls.calls):
            logprobs = self.aligner.read(delta.logprobs, said, last=reason == "length")
        pieces = [Piece(delta.index, call=call) for call in calls]
        if said or logprobs or not pieces:
            pieces.insert(0, Piece(delta.index, said, logprobs=tuple(logprobs)))
        pieces[-1] = replace(pieces[-1], finish_reason=reason)
        return pieces

    def end_reason(self) -> EndReason:
        """Of an answer that ended by itself. One in a form that is not complete was cut, whatever cut it.

        A stop text or token of the caller's may lie within it; and where a grammar grows beyond llguidance's bounds,
        vLLM ends the answer as if it were complete.
        """
        if self.calls is not None and self.calls.calls:
            return "tool_calls" if self.calls.complete else "length"
        return "stop" if self.json is None or is_json("".join(self.json)) else "length"


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def tell_of(record: RequestRecord, asked: Asked) -> AnswerRecord:
    request = asked.request
    return record.asks(
        len(request.token_ids),
        [image.length for image in request.images],
        request.choices,
        request.max_tokens,
        request.sampling.temperature,
    )


class Answers:
    """The answers to one prompt in the making, with their counts.

    ``line``: where it waits for its turn; ``allowance``: whom their tokens are put down to.
    """

    def __init__(
        self, engine: Engine, line: Line, asked: Asked, tokenizer: TextTokenizer, allowance: Allowance
    ) -> None:
        self.engine = engine
        self.line = line
        self.asked = asked
        self.tokenizer = tokenizer
        self.record = current()
        self.told = tell_of(self.record, asked)
        self.allowance = allowance
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.prompt: list[WrittenToken | None] = []
        """The prompt's tokens, where their log-probabilities were asked for; known with the first piece."""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces of all choices as they come; of one choice in order.

        Closing this closes the engine's stream, which aborts the request. Raises Busy before the first, and
        EngineFailed, also where the engine ends without a finish reason.
        """
        request = self.asked.request
        self.told.enqueue()
        slot = await self.line.enter(request.choices)
        self.told.admit()
        try:
            async with aclosing(self.made_by(request)) as pieces:
                async for piece in pieces:
                    if piece.finish_reason is not None:
                        self.told.finish_reasons.append(piece.finish_reason)
                    yield piece
        finally:
            slot.release()
            self.told.end(self.completion_tokens, self.cached_tokens)
            self.allowance.owe(self.completion_tokens)

    async def made_by(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        copies = self.asked.choices // request.choices
        readers = [AnswerReader(self.asked, self.tokenizer) for _ in range(request.choices)]
        unfinished = request.choices
        async with aclosing(self.engine.generate(request)) as stream:
            async for delta in stream:
                self.count(delta, copies)
                unfinished -= delta.finish_reason is not None
                for piece in readers[delta.index].read(delta):
                    yield piece
                    for copy in range(1, copies):
                        yield replace(piece, index=copy)
        if unfinished:
            raise EngineFailed(UNFINISHED)

    def count(self, delta: Delta, copies: int) -> None:
        self.told.count(delta.index, delta.completion_tokens)
        self.completion_tokens += delta.completion_tokens * copies
        self.cached_tokens = delta.cached_tokens
        if delta.prompt_logprobs:
            writer = TokenWriter(self.tokenizer, self.asked.request.sampling.prompt_logprobs or 0)
            self.prompt = [None if entry is None else writer.write(entry) for entry in delta.prompt_logprobs]
