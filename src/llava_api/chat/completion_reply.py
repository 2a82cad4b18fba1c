"""Parts of answers -> OpenAI's text completion, whole or in chunks."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import zip_longest

from llava_api.chat.answers import Answers
from llava_api.chat.chat_reply import ChunkedReply, ReplyMetadata
from llava_api.chat.logprobs import CharacterCounter, WrittenToken, prompt_logprobs, written_token
from llava_api.chat.merge import merge
from llava_api.chat.plain import Plain
from llava_api.protocol import completions as wire
from llava_api.protocol.chat_reply import Usage, usage_of
from llava_api.protocol.sampling import ChoicesRequest


@dataclass(slots=True)
class Columns:
    """Writes the log-probabilities of one choice as OpenAI's lists. ``offset``: characters of its text so far."""

    offset: int = 0

    def fill(self, tokens: Sequence[tuple[str, int, WrittenToken | None]]) -> wire.CompletionLogprobs:
        """``tokens``: for each its text, the number of characters that end with it, and its log-probabilities."""
        made = wire.CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for text, letters, token in tokens:
            made.tokens.append(text)
            made.text_offset.append(self.offset)
            self.offset += letters
            made.token_logprobs.append(None if token is None else token.logprob)
            made.top_logprobs.append(None if token is None else likeliest(token))
        return made


def likeliest(token: WrittenToken) -> dict[str, float]:
    """The most likely tokens, and the token itself."""
    return {named(written): logprob for written, logprob in (*token.top, (token.written, token.logprob))}


def named(written: bytes) -> str:
    """A token as these lists name it: a part of a letter as OpenAI's API has it, ``bytes:\\xe2\\x80``."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def joined(chunks: list[wire.CompletionChunkChoice]) -> wire.CompletionChoice:
    """One whole answer from all of its chunks."""
    parts = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    columns = {
        name: [entry for part in parts for entry in getattr(part, name)]
        for name in wire.CompletionLogprobs.model_fields
    }
    return wire.CompletionChoice(
        index=chunks[-1].index,
        text="".join(chunk.text for chunk in chunks),
        # Not validated again: with an echo there may be many thousands.
        logprobs=wire.CompletionLogprobs.model_construct(None, **columns) if parts else None,
        finish_reason=chunks[-1].finish_reason or "stop",
        choice_logprobs=chunks[-1].choice_logprobs,
        prompt_token_ids=chunks[-1].prompt_token_ids,
        token_ids=chunks[-1].token_ids,
    )


def leading_spaces(text: bytes) -> int:
    return len(text) - len(text.lstrip(b" "))


class CompletionReply(ChunkedReply):
    def __init__(
        self,
        answers: list[Answers],
        plain: Plain,
        metadata: ReplyMetadata,
        request: ChoicesRequest,
    ) -> None:
        super().__init__(metadata, request)
        self.plain = plain
        self.tokenizer = plain.specs[0].tokenizer
        self.answers = answers
        """One for each prompt."""
        self.with_logprobs = plain.specs[0].request.sampling.logprobs is not None

    def usage(self) -> Usage:
        made = 0 if self.plain.silent else sum(answers.completion_tokens for answers in self.answers)
        given = sum(len(spec.request.token_ids) for spec in self.plain.specs)
        return usage_of(given, 0, made, sum(answers.cached_tokens for answers in self.answers))

    async def chunks_of(self, place: int) -> AsyncGenerator[wire.CompletionChunkChoice, None]:
        columns = [Columns() for _ in range(self.plain.choices)]
        echoed: tuple[wire.CompletionLogprobs | None, int] | None = None
        opened: set[int] = set()
        async with aclosing(self.answers[place].parts()) as parts:
            async for part in parts:
                index = place * self.plain.choices + part.index
                if part.index not in opened:
                    opened.add(part.index)
                    if self.plain.echo:
                        if echoed is None:
                            echoed = await asyncio.to_thread(self.echoed, place)
                        logprobs, columns[part.index].offset = echoed
                        yield wire.CompletionChunkChoice(index=index, text=self.plain.texts[place], logprobs=logprobs)
                text, tokens = ("", ()) if self.plain.silent else (part.text, part.logprobs)
                # If only the prompt is wanted, it is always the length that ends the answer.
                cut = self.plain.silent or part.finish_reason == "length"
                reason: wire.EndReason | None = "length" if cut else "stop"
                if part.finish_reason is None:
                    reason = None
                if not (text or tokens or reason):
                    continue
                logprobs = None
                if self.with_logprobs:
                    logprobs = columns[part.index].fill(
                        [(named(token.written), token.letters, token) for token in tokens]
                    )
                chunk = wire.CompletionChunkChoice(index=index, text=text, logprobs=logprobs, finish_reason=reason)
                if reason is not None:
                    chunk.choice_logprobs = self.answers[place].choice_logprobs
                if reason is not None and self.with_token_ids:
                    chunk.prompt_token_ids = self.plain.specs[place].request.token_ids
                    chunk.token_ids = [] if self.plain.silent else self.answers[place].ids_of(part.index)
                yield chunk

    def echoed(self, place: int) -> tuple[wire.CompletionLogprobs | None, int]:
        """Log-probabilities of the prompt, which all of its answers begin with, and the characters of it. Blocks."""
        columns = Columns()
        logprobs = columns.fill(self.prompt_tokens(place)) if self.with_logprobs else None
        return logprobs, columns.offset

    def prompt_tokens(self, place: int) -> list[tuple[str, int, WrittenToken | None]]:
        """The text leaves out special tokens, and the space that the tokenizer puts before the prompt."""
        token_ids = self.plain.specs[place].request.token_ids
        top = self.plain.specs[place].request.sampling.logprobs or 0
        written = list(map(self.tokenizer.token_bytes, token_ids))
        shown = [
            b"" if self.tokenizer.is_special(token) else one for token, one in zip(token_ids, written, strict=True)
        ]
        spaces = max(0, leading_spaces(b"".join(shown)) - leading_spaces(self.plain.texts[place].encode()))
        counter = CharacterCounter(spaces_cut=False)
        found: list[tuple[str, int, WrittenToken | None]] = []
        for token, token_shown, entry in zip_longest(written, shown, self.answers[place].prompt):
            letters = counter.shown(token_shown)[1]
            cut = min(spaces, letters)
            spaces -= cut
            known = None if entry is None else written_token(entry, self.tokenizer, top)
            found.append((named(token), letters - cut, known))
        return found

    def choices(self) -> AsyncGenerator[wire.CompletionChunkChoice, None]:
        """Chunks of all prompts and answers, in the order in which they come. Raises EngineFailed."""
        return merge([self.chunks_of(place) for place in range(len(self.answers))])

    async def whole(self) -> wire.Completion:
        gathered: list[list[wire.CompletionChunkChoice]]
        gathered = [[] for _ in range(len(self.answers) * self.plain.choices)]
        async with aclosing(self.choices()) as choices:
            async for choice in choices:
                gathered[choice.index].append(choice)
        made = list(map(joined, gathered))
        reply = wire.Completion(**vars(self.metadata), choices=made, usage=self.usage())
        top = self.plain.prompt_top
        for place, answers in enumerate(self.answers if top is not None else ()):
            written = await asyncio.to_thread(prompt_logprobs, answers.prompt, self.tokenizer, top or 0)
            for whole in made[place * self.plain.choices :][: self.plain.choices]:
                whole.prompt_logprobs = written
        return reply

    async def items(self) -> AsyncGenerator[wire.CompletionChunk, None]:
        """The first chunk comes with the engine's first output, so that a refusal by the engine still has a status."""
        async with aclosing(self.choices()) as choices:
            async for choice in choices:
                yield self.chunk([choice])
        if self.include_usage:
            yield wire.CompletionChunkWithUsage(**vars(self.metadata), choices=[], usage=self.usage())

    def chunk(self, choices: list[wire.CompletionChunkChoice]) -> wire.CompletionChunk:
        if self.continuous_usage:
            return wire.CompletionChunkWithUsage(**vars(self.metadata), choices=choices, usage=self.usage())
        kind = wire.CompletionChunkWithUsage if self.include_usage else wire.CompletionChunk
        return kind(**vars(self.metadata), choices=choices)
