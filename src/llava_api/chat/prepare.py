"""A wire request -> an engine request: the only place where a request may still fail with an HTTP status."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from llava_api.chat.conversation import Conversation, read_conversation
from llava_api.chat.model import ServedModel
from llava_api.chat.sampling import answer_room, read_sampling
from llava_api.engine.base import Adapter, EngineImage, GenerationRequest
from llava_api.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from llava_api.images.load import ImagePart, MeasuredImage, RenderedImage, measure, render
from llava_api.prompts.render import RenderedPrompt, tokenize
from llava_api.prompts.segments import Segment
from llava_api.protocol.chat import ChatCompletionRequest
from llava_api.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A request as the model will be shown it, before a pixel has been decoded."""

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


@dataclass(frozen=True, slots=True)
class Prepared:
    request: GenerationRequest
    text_tokens: int
    image_tokens: int


class Preparer:
    """Prepares requests for one served model. Decoding and resizing run in ``threads``."""

    def __init__(self, model: ServedModel, settings: Settings, max_model_len: int, threads: Executor) -> None:
        self.model = model
        self.settings = settings
        self.max_model_len = max_model_len
        self.threads = threads

    def find_adapter(self, name: str) -> Adapter | None:
        """The LoRA adapter that ``name`` asks for; None for the model itself. Raises ModelNotFound."""
        adapter = next((adapter for adapter in self.model.adapters if adapter.name == name), None)
        if adapter is None and name not in self.model.names:
            raise ModelNotFound(
                f"This server has no model of that name; it serves {', '.join(self.model.served_names())}.",
                param="model",
            )
        return adapter

    async def prepare(self, request: ChatCompletionRequest, request_id: str) -> Prepared:
        """Raises InvalidRequest and its kinds; after this nothing can be refused any more."""
        adapter = self.find_adapter(request.model)
        laid_out = await self.lay_out(request)
        text_tokens, image_tokens = laid_out.text_tokens, laid_out.image_tokens
        max_tokens = answer_room(request, text_tokens, image_tokens, self.max_model_len)
        sampling = read_sampling(request, self.model, max_tokens)
        rendered = await self.render_all(laid_out)
        prompt = laid_out.prompt
        images = tuple(engine_image(rendered[place.image], place.offset, place.length) for place in prompt.placeholders)
        engine_request = GenerationRequest(request_id, prompt.token_ids, images, sampling, adapter)
        return Prepared(engine_request, text_tokens, image_tokens)

    async def lay_out(self, request: ChatCompletionRequest) -> LaidOut:
        """Prompt and token counts, from the headers of the pictures alone. Raises InvalidRequest and its kinds."""
        conversation = read_conversation(request.messages)
        most = self.settings.max_images_per_request
        if len(conversation.images) > most:
            raise InvalidRequest(f"A request may have up to {most} pictures.", param="messages")
        self.check_length(conversation)
        measured = await asyncio.gather(*(self.in_thread(self.measure, part) for part in conversation.images))
        segments, prompt = await self.in_thread(self.write, conversation, measured)
        return LaidOut(segments, prompt, measured)

    def check_length(self, conversation: Conversation) -> None:
        """Refuse text that cannot fit before it is tokenized, which takes a second for each megabyte.

        Raises ContextLengthExceeded.
        """
        texts = (conversation.system or "", *(turn.text for turn in conversation.turns))
        characters = sum(map(len, texts))
        if characters > self.max_model_len * self.model.tokenizer.longest_piece:
            raise ContextLengthExceeded(
                f"This model's context is {self.max_model_len} tokens. Your messages have {characters} characters of "
                "text, which cannot fit: send less.",
                param="messages",
            )

    async def render_all(self, laid_out: LaidOut) -> list[RenderedImage]:
        """The pixels of every picture, in the order of the request. Raises BadImage."""
        return await asyncio.gather(*(self.in_thread(self.render, image) for image in laid_out.measured))

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    def measure(self, part: ImagePart) -> MeasuredImage:
        settings = self.settings
        return measure(part, self.model.image_mode, settings.max_image_bytes, settings.max_image_pixels)

    def write(self, conversation: Conversation, measured: list[MeasuredImage]) -> tuple[list[Segment], RenderedPrompt]:
        segments = self.model.family.layout(conversation.system, conversation.turns)
        lengths = [image.tokens for image in measured]
        prompt = tokenize(segments, self.model.tokenizer, self.model.checkpoint.image_token_id, lengths)
        return segments, prompt

    def render(self, image: MeasuredImage) -> RenderedImage:
        return render(image, self.model.image_mode)


def engine_image(image: RenderedImage, offset: int, length: int) -> EngineImage:
    return EngineImage(image.pixels, offset, length, image.cache_key, image.engine_size)
