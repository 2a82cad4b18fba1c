"""Deltas of the engine -> parts of answers, for every endpoint."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from llava_api.chat.adapters import Adapters
from llava_api.chat.calls import CallPart, CallReader
from llava_api.chat.choice_scores import ScoredPrompts, scored_choices
from llava_api.chat.forms import Form
from llava_api.chat.logprobs import LogprobAligner, WrittenToken
from llava_api.concurrency.admission import Turns
from llava_api.engine.base import Delta, Engine, GenerationRequest, Sampling, TokenLogprob
from llava_api.errors import EngineFailed
from llava_api.limits.account import Account
from llava_api.prompts.tokenizer import TextTokenizer
from llava_api.protocol.chat_reply import ScoredChoice
from llava_api.telemetry.record import current

UNFINISHED = "The engine ended this answer without saying why."
EndReason = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class AnswerPart:
    """A piece of one answer: text, or a part of a call, or nothing yet. The last one has a finish reason."""

    index: int
    """Which choice."""
    text: str = ""
    call: CallPart | None = None
    logprobs: tuple[WrittenToken, ...] = ()
    """The tokens of ``text``. Tokens of calls are left out."""
    finish_reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class AnswerSpec:
    """A request to the engine, and how its answers are read."""

    request: GenerationRequest
    choices: int
    """Number of answers. At temperature 0 the engine makes one for all of them."""
    tokenizer: TextTokenizer
    spaces_cut: bool
    """Whether to leave out an answer's leading spaces, which follow "ASSISTANT:"."""
    call_names: tuple[str, ...] = ()
    """Functions that the answer may call."""
    form: Form | None = None
    """What an answer that calls nothing must be."""
    scored: ScoredPrompts = field(default_factory=ScoredPrompts)
    """If the probabilities of the form's choices are wanted, what is computed for them."""

    @property
    def held_bytes(self) -> int:
        """Memory that is held until the end of the answers."""
        return self.request.held_bytes + self.scored.held_bytes


class AnswerReader:
    """Turns one answer's deltas into parts."""

    def __init__(self, spec: AnswerSpec) -> None:
        sampling = spec.request.sampling
        self.started = not spec.spaces_cut
        self.calls = CallReader(spec.call_names) if spec.call_names else None
        self.form = spec.form
        self.said: list[str] = []
        """The text so far of an answer that has a form."""
        self.aligner: LogprobAligner | None = None
        if sampling.logprobs is not None:
            self.aligner = LogprobAligner(
                spec.tokenizer, sampling.logprobs, sampling.skip_special_tokens, spec.spaces_cut
            )

    def read(self, delta: Delta) -> list[AnswerPart]:
        """Returns one part at least."""
        text = delta.text if self.started else delta.text.lstrip(" ")
        self.started = self.started or bool(text)
        found: list[str | CallPart] = [text] if self.calls is None else self.calls.read(text)
        reason: EndReason | None = delta.finish_reason
        if self.calls is None and self.form is None and self.aligner is None:
            return [AnswerPart(delta.index, text, finish_reason=reason)]
        if self.calls is not None and reason is not None:
            found.append(self.calls.finish())
        said = "".join(part for part in found if isinstance(part, str))
        if self.form is not None:
            self.said.append(said)
        if reason == "stop":
            reason = self.end_reason()
        calls = [part for part in found if isinstance(part, CallPart)]
        logprobs: list[WrittenToken] = []
        if self.aligner is not None and (self.calls is None or not self.calls.calls):
            logprobs = self.aligner.read(delta.logprobs, said, last=reason == "length")
        parts = [AnswerPart(delta.index, call=call) for call in calls]
        if said or logprobs or not parts:
            parts.insert(0, AnswerPart(delta.index, said, logprobs=tuple(logprobs)))
        parts[-1].finish_reason = reason
        return parts

    def end_reason(self) -> EndReason:
        """The reason of an answer that ended by itself: ``length`` if its form or its last call is incomplete.

        It may have been cut off by one of the caller's stop texts or tokens; and if a grammar exceeds llguidance's
        bounds, vLLM ends the answer as if it were complete.
        """
        if self.calls is not None and self.calls.calls:
            return "tool_calls" if self.calls.complete else "length"
        return "stop" if self.form is None or self.form.is_whole("".join(self.said)) else "length"


class Answers:
    """Generates the answers to one prompt and counts their tokens for the request's record and account."""

    def __init__(self, engine: Engine, turns: Turns, spec: AnswerSpec, account: Account, adapters: Adapters) -> None:
        request = self.request = spec.request
        self.engine = engine
        self.turns = turns
        self.spec = spec
        self.account = account
        self.adapters = adapters
        self.record = current().note_prompt(
            len(request.token_ids),
            [image.length for image in request.images],
            request.choices,
            request.max_tokens,
            request.sampling.temperature,
        )
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.stop_text: str | None = None
        """What ended the latest choice, if it was one of the stop texts."""
        self.prompt: tuple[TokenLogprob | None, ...] = ()
        """For the prompt's tokens if their log-probabilities were asked for; known with the first part."""
        self.token_ids: list[list[int]] = [[] for _ in range(request.choices)]
        """Of each answer that the engine makes."""
        self.choice_logprobs: list[ScoredChoice] | None = None
        """If they were asked for; known with the first finish reason."""

    async def parts(self) -> AsyncGenerator[AnswerPart, None]:
        """Parts of all choices as they come; those of one choice in order.

        Closing this closes the engine's stream, which aborts the request. Raises Busy before the first part, and
        EngineFailed, also if the engine ends without a finish reason.
        """
        request = self.spec.request
        copies = self.spec.choices // request.choices
        readers = [AnswerReader(self.spec) for _ in range(request.choices)]
        unfinished = request.choices
        self.record.enqueue()
        # Each scored choice counts as a turn, although the answers' slots are enough for all of them.
        turns = request.choices + len(self.spec.scored.endings)
        weight = self.account.limits.weight * request.choices / turns
        slot = await self.turns.enter(self.account.caller, request.choices, weight)
        self.record.admit()
        try:
            with self.adapters.using(request.adapter) as adapter:
                if adapter is not request.adapter:
                    request = self.request = replace(request, adapter=adapter)
                async with aclosing(self.engine.generate(request)) as deltas:
                    async for delta in deltas:
                        self.count(delta, copies)
                        if delta.finish_reason is not None:
                            unfinished -= 1
                            await self.score()
                        for part in readers[delta.index].read(delta):
                            if part.finish_reason is not None:
                                self.record.finish_reasons += [part.finish_reason] * copies
                            yield part
                            for copy in range(1, copies):
                                yield replace(part, index=copy)
            if unfinished:
                raise EngineFailed(UNFINISHED)
        finally:
            slot.release()
            self.record.end(self.completion_tokens, self.cached_tokens)
            self.account.owe(self.completion_tokens)

    def count(self, delta: Delta, copies: int) -> None:
        self.record.count(delta.index, delta.completion_tokens)
        self.completion_tokens += delta.completion_tokens * copies
        self.cached_tokens = delta.cached_tokens
        self.stop_text = delta.stop_text
        self.token_ids[delta.index] += delta.token_ids
        self.prompt = delta.prompt_logprobs or self.prompt

    def ids_of(self, index: int) -> list[int]:
        """The tokens of a choice."""
        return self.token_ids[index % len(self.token_ids)]

    async def score(self) -> None:
        """Find out how likely the choices are, one after the other, since there is one slot. Raises EngineFailed.

        The answer comes first, so that what all of them begin with is in the prefix cache.
        """
        form, scored = self.spec.form, self.spec.scored
        if form is not None and scored.endings and self.choice_logprobs is None:
            requests = (scored.request(self.request, place) for place in range(len(scored.endings)))
            logprobs = [await self.logprob_of(request) for request in requests]
            self.choice_logprobs = await asyncio.to_thread(scored_choices, form.choices, scored.endings, logprobs)

    async def logprob_of(self, request: GenerationRequest) -> float:
        """The sum for the tokens that ``request`` is about."""
        tail = request.sampling.scored_tail or 0
        # Without the prefix cache if it has some of these tokens.
        for sampling in (request.sampling, Sampling(0.0, prompt_logprobs=0)):
            async with aclosing(self.engine.generate(replace(request, sampling=sampling))) as deltas:
                async for delta in deltas:
                    if delta.prompt_logprobs:
                        return sum(entry.logprob for entry in delta.prompt_logprobs[-tail:] if entry is not None)
        raise EngineFailed(UNFINISHED)
