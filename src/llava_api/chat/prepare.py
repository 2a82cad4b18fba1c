"""A question -> an engine request. Everything that can refuse a request is done here."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.chat.answers import AnswerSpec
from llava_api.chat.choice_scores import ScoredPrompts, check_scored, scored_prompts
from llava_api.chat.conversation import Conversation
from llava_api.chat.grammar import json_grammar
from llava_api.chat.keywords import LEFT_OUT
from llava_api.chat.model import ServedModel
from llava_api.chat.question import Question
from llava_api.chat.sampling import answer_room, context_length_exceeded
from llava_api.chat.schema import ReadSchema, at, invalid_schema, refused_by_engine
from llava_api.engine.base import Adapter, EngineImage, GenerationRequest, Sampling
from llava_api.engine.grammar_check import GrammarChecker
from llava_api.errors import ErrorCode, InvalidRequest, NotFound
from llava_api.images.load import ImageLoader, MeasuredImage, RenderedImage
from llava_api.limits.account import Account
from llava_api.prompts.render import RenderedPrompt, tokenize
from llava_api.prompts.segments import Segment, as_text
from llava_api.settings import Settings
from llava_api.telemetry.record import current

INDEX = re.compile(r"\[\d+\]")
INLINE_CHARACTERS = 2000
"""Longest text that is tokenized on the event loop, within two milliseconds. A thread would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The prompt of a request, before any pixel is decoded."""

    segments: list[Segment]
    prompt: RenderedPrompt
    measured: list[MeasuredImage]
    """In the order of the request."""

    @property
    def image_tokens(self) -> int:
        return sum(image.tokens for image in self.measured)

    @property
    def text_tokens(self) -> int:
        return len(self.prompt.token_ids) - self.image_tokens


class Preparer:
    """Prepares requests for one served model."""

    def __init__(
        self,
        model: ServedModel,
        settings: Settings,
        max_model_len: int,
        images: ImageLoader,
        grammars: GrammarChecker,
    ) -> None:
        self.model = model
        self.settings = settings
        self.max_model_len = max_model_len
        self.images = images
        self.grammars = grammars

    def served_name(self, given: str) -> str:
        """The name of the model that answers a request: ``given``, or with ``--any-model`` the first for any other.

        Raises InvalidRequest for an empty name, and NotFound for an unknown one.
        """
        found = current().model = chosen_name(given, self.model.served_names(), self.settings.any_model)
        return found

    def find_adapter(self, name: str) -> Adapter | None:
        """The LoRA adapter of that name; None for the model itself."""
        return self.model.adapters.served.get(name)

    async def prepare(self, question: Question, request_id: str, account: Account) -> AnswerSpec:
        """Raises InvalidRequest and its kinds, RateLimited and Busy. Nothing is refused after this."""
        length = question.length.within(account)
        # Before images, which may have to be fetched.
        self.check_length(question.conversation.characters(), length.prompt_param)
        await self.check_grammar(question.sampling.grammar, question.schemas, account.queue)
        laid_out = await self.lay_out(question.conversation, account, length.prompt_param)
        record = current()
        if record.keeps_prompt:
            record.prompt = as_text(laid_out.segments)
        max_tokens = answer_room(
            length, laid_out.text_tokens, laid_out.image_tokens, self.max_model_len, question.sampling
        )
        prompt = laid_out.prompt
        scored = await self.write_choices(question, laid_out)
        await account.spend_prompt(len(prompt.token_ids) + scored.tokens)
        rendered = await self.images.render(laid_out.measured, account.queue)
        request = GenerationRequest(
            request_id=request_id,
            token_ids=prompt.token_ids,
            images=tuple(
                engine_image(rendered[place.image], place.offset, place.length) for place in prompt.placeholders
            ),
            sampling=question.sampling,
            max_tokens=max_tokens,
            adapter=self.find_adapter(question.model),
            choices=engine_choices(question.sampling, question.choices),
            cache_salt=self.cache_salt(account.caller),
        )
        return AnswerSpec(
            request,
            question.choices,
            self.model.tokenizer,
            spaces_cut=not (question.conversation.continues or question.exact),
            call_names=question.call_names,
            form=question.form,
            scored=scored,
        )

    async def write_choices(self, question: Question, laid_out: LaidOut) -> ScoredPrompts:
        """The prompt with each choice as the answer, if their probabilities are wanted. Raises InvalidRequest."""
        conversation, form = question.conversation, question.form
        if form is None or not form.choices or question.sampling.logprobs is None:
            return ScoredPrompts()
        if not conversation.header:
            message = "Choices have log-probabilities after the assistant's header: leave add_generation_prompt out."
            raise InvalidRequest(message, param="add_generation_prompt")
        check_scored(len(form.choices), conversation.characters() + laid_out.image_tokens)
        answered = (conversation.with_answer(choice) for choice in form.choices)
        prompts = (self.write(each, laid_out.measured)[1].token_ids for each in answered)
        prompt, param = laid_out.prompt.token_ids, question.length.prompt_param
        return await asyncio.to_thread(scored_prompts, prompt, prompts, self.max_model_len, param)

    def cache_salt(self, caller: str) -> str | None:
        """Keeps the engine's prefix cache of this caller separate; None if all callers share it."""
        # Never empty, because the engine takes an empty salt for none.
        return f"of {caller}" if self.settings.isolate_caches else None

    async def check_grammar(self, grammar: str | None, schemas: Sequence[ReadSchema], caller: str) -> None:
        """Raises InvalidRequest for one of the grammar's schemas that the engine could not keep to."""
        for schema in schemas:
            for keyword, place in schema.left_out.items():
                if schema.strict or self.settings.strict_fields:
                    why = f"this server cannot enforce {at(place, keyword)}: leave it out, or strict."
                    raise invalid_schema(schema.param, why)
                current().ignore(f"{INDEX.sub('', schema.param)}.{keyword}", LEFT_OUT)
        complaint = "" if grammar is None else await self.grammars.check(grammar, caller)
        if not complaint:
            return
        if len(schemas) > 1:
            # To name the one that fails.
            for schema in schemas:
                own_complaint = await self.grammars.check(json_grammar(schema.kept), caller)
                if own_complaint:
                    raise refused_by_engine(schema, own_complaint)
        raise refused_by_engine(schemas[0], complaint)

    async def lay_out(self, conversation: Conversation, account: Account, param: str = "messages") -> LaidOut:
        """Prompt and token counts, for which only the images' headers are read.

        Raises InvalidRequest and its kinds, RateLimited and Busy.
        """
        most = self.settings.max_images_per_request
        if len(conversation.images) > most:
            raise InvalidRequest(f"A request may have up to {most} images.", param=param)
        characters = conversation.characters()
        self.check_length(characters, param)
        await account.spend_images(len(conversation.images))
        take = account.memory.take
        measured = await self.images.measure(conversation.images, account.caller, take, account.queue)
        if characters > INLINE_CHARACTERS:
            segments, prompt = await asyncio.to_thread(self.write, conversation, measured)
        else:
            segments, prompt = self.write(conversation, measured)
        return LaidOut(segments, prompt, measured)

    def check_length(self, characters: int, param: str) -> None:
        """Refuse text that cannot fit, before it is tokenized, which takes a second per megabyte.

        Raises InvalidRequest.
        """
        if characters > self.max_model_len * self.model.tokenizer.longest_piece:
            raise context_length_exceeded(
                self.max_model_len, param, f"more than {self.max_model_len} tokens ({characters} characters of text)"
            )

    def write(self, conversation: Conversation, measured: list[MeasuredImage]) -> tuple[list[Segment], RenderedPrompt]:
        segments = self.model.family.layout(conversation.system, conversation.turns, conversation.header)
        lengths = [image.tokens for image in measured]
        prompt = tokenize(segments, self.model.tokenizer, self.model.checkpoint.image_token_id, lengths)
        return segments, prompt


def engine_choices(sampling: Sampling, choices: int) -> int:
    """Number of answers that the engine makes. At temperature 0 all are equal, and one is enough."""
    return 1 if sampling.temperature == 0 else choices


def engine_image(image: RenderedImage, offset: int, length: int) -> EngineImage:
    return EngineImage(image.pixels, offset, length, image.cache_key, image.engine_size)


def chosen_name(given: str, names: Sequence[str], any_model: bool) -> str:
    """``given``, or the first of ``names`` for any other with ``any_model``. Raises InvalidRequest and NotFound."""
    if given in names or any_model:
        return given if given in names else names[0]
    if not given:
        raise InvalidRequest(
            f"Missing required parameter: 'model'. This server serves {', '.join(names)}.",
            param="model",
            code=ErrorCode.MISSING_REQUIRED_PARAMETER,
        )
    raise NotFound(
        f"This server has no model of that name; it serves {', '.join(names)}.",
        param="model",
        code=ErrorCode.MODEL_NOT_FOUND,
    )
