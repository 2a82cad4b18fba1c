"""What the model would be shown for a request, and why: prepared as a chat request, without the engine."""

import hashlib
from dataclasses import dataclass

from llava_api.chat.prepare import LaidOut, Preparer
from llava_api.chat.question import chat_question
from llava_api.images.load import MeasuredImage, RenderedImage
from llava_api.limits.account import Account
from llava_api.prompts.segments import as_text
from llava_api.protocol import explain as wire
from llava_api.protocol.chat import ChatCompletionRequest


@dataclass(frozen=True, slots=True)
class Explained:
    explanation: wire.Explanation
    rendered: list[RenderedImage]
    """In the order of the request."""


async def explain(preparer: Preparer, request: ChatCompletionRequest, account: Account) -> Explained:
    """Raises InvalidRequest and its subclasses, RateLimited and Busy.

    A request that is too long does not raise: ``context_left`` shows it.
    """
    request.model = preparer.served_name(request.model)
    question = chat_question(request, preparer.model, preparer.settings.max_choices)
    laid_out = await preparer.lay_out(question.conversation, account)
    rendered = await preparer.images.render(laid_out.measured, account.caller)
    return Explained(describe(preparer, request.model, laid_out, rendered), rendered)


def describe(preparer: Preparer, name: str, laid_out: LaidOut, rendered: list[RenderedImage]) -> wire.Explanation:
    model, prompt = preparer.model, laid_out.prompt
    places = [wire.Placeholder(image=p.image, offset=p.offset, length=p.length) for p in prompt.placeholders]
    images = zip(laid_out.measured, rendered, strict=True)
    return wire.Explanation(
        model=name,
        version=model.checkpoint.vision.version,
        family=model.family.name,
        family_reason=model.family_reason,
        image_mode=model.image_mode.name,
        image_mode_reason=model.image_mode_reason,
        prompt=as_text(laid_out.segments),
        prompt_token_ids=prompt.token_ids,
        prompt_tokens=len(prompt.token_ids),
        text_tokens=laid_out.text_tokens,
        image_tokens=laid_out.image_tokens,
        context_length=preparer.max_model_len,
        context_left=preparer.max_model_len - len(prompt.token_ids),
        stop_token_ids=list(model.stop_token_ids),
        stop_texts=list(model.stop_texts),
        placeholders=places,
        images=[describe_image(measured, image) for measured, image in images],
    )


def describe_image(measured: MeasuredImage, image: RenderedImage) -> wire.ExplainedImage:
    mode = measured.mode
    grid = mode.grid(measured.size)
    values = mode.normalisation.apply(image.pixels)
    width, height = measured.header.stored_size
    return wire.ExplainedImage(
        param=measured.param,
        width=width,
        height=height,
        format=measured.header.format,
        orientation=measured.header.orientation,
        shown_width=measured.size[0],
        shown_height=measured.size[1],
        mode=mode.name,
        detail="low" if mode.base_only else "high",
        grid=[1, 1] if grid is None else [grid.across, grid.down],
        tiles=1 if grid is None else grid.tiles,
        image_tokens=measured.tokens,
        pixels_shape=list(image.pixels.shape),
        pixels_sha256=hashlib.sha256(values.tobytes()).hexdigest(),
    )
