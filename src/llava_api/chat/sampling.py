"""Wire knobs -> checked knobs."""

from llava_api.chat.model import ServedModel
from llava_api.engine.base import Sampling
from llava_api.errors import ContextLengthExceeded, InvalidRequest
from llava_api.protocol.chat import ChatCompletionRequest

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256


def answer_room(request: ChatCompletionRequest, text_tokens: int, image_tokens: int, max_model_len: int) -> int:
    """How many tokens the answer may have. Raises ContextLengthExceeded, before any picture is decoded."""
    room = max_model_len - text_tokens - image_tokens
    asked = request.max_completion_tokens or request.max_tokens
    if room < 1 or (asked is not None and asked > room):
        wanted = f" and {asked} were asked for the answer" if asked is not None else " and none is left to answer"
        raise ContextLengthExceeded(
            f"This model's context is {max_model_len} tokens. Your messages have {text_tokens} tokens of text and "
            f"{image_tokens} of pictures{wanted}: send less, or ask for a shorter answer.",
            param="messages" if room < 1 else asked_by(request),
        )
    return room if asked is None else asked


def asked_by(request: ChatCompletionRequest) -> str:
    return "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"


def check_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in stops):
        raise InvalidRequest(
            f"stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters.", param="stop"
        )
    return stops


def read_sampling(request: ChatCompletionRequest, model: ServedModel, max_tokens: int) -> Sampling:
    checkpoint = model.checkpoint
    return Sampling(
        temperature=checkpoint.default_temperature if request.temperature is None else request.temperature,
        top_p=checkpoint.default_top_p if request.top_p is None else request.top_p,
        max_tokens=max_tokens,
        stop=check_stops(request.stop) + model.stop_texts,
        stop_token_ids=model.stop_token_ids,
        seed=request.seed,
    )
