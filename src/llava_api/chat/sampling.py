"""Sampling fields of requests -> checked sampling parameters."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llava_api.chat.model import ServedModel
from llava_api.engine.base import Sampling
from llava_api.errors import ContextLengthExceeded, ErrorCode, InvalidRequest
from llava_api.limits.account import Account
from llava_api.protocol import sampling as wire


@dataclass(frozen=True, slots=True)
class Length:
    """The wanted length of an answer, and the names of the request's fields for it and for the prompt."""

    max_tokens: int | None
    """None for as many as fit."""
    param: str = "max_tokens"
    prompt_param: str = "messages"
    most: int | None = None
    """The caller's limit, if any."""

    def within(self, account: Account) -> "Length":
        """Apply the caller's limit. Raises InvalidRequest if more was asked for."""
        most = account.limits.max_tokens_per_request
        if most is not None and self.max_tokens is not None and self.max_tokens > most:
            raise InvalidRequest(
                f"{self.param} may be up to {most} for you on this server.",
                param=self.param,
                code=ErrorCode.MAX_TOKENS_EXCEEDED,
            )
        return self if most is None else replace(self, most=most)


def answer_room(length: Length, text_tokens: int, image_tokens: int, max_model_len: int, sampling: Sampling) -> int:
    """The number of tokens that the answer may have. Raises ContextLengthExceeded, before any image is decoded."""
    asked = length.max_tokens
    room = max_model_len - text_tokens - image_tokens
    if room < 1 or (asked is not None and asked > room):
        wanted = f" and {asked} were asked for the answer" if asked is not None else " and none is left to answer"
        raise ContextLengthExceeded(
            f"This model's context is {max_model_len} tokens. Your request has {text_tokens} tokens of text and "
            f"{image_tokens} of images{wanted}: send less, or ask for a shorter answer.",
            param=length.prompt_param if room < 1 else length.param,
        )
    room = min(room, length.most or room) if asked is None else asked
    if sampling.min_tokens > room:
        raise InvalidRequest(f"min_tokens is more than the {room} tokens of the answer.", param="min_tokens")
    return room


def check_ids(ids: Iterable[int], model: ServedModel, param: str) -> None:
    """Raises InvalidRequest for a token that the model does not have."""
    if any(not 0 <= token < model.tokenizer.size for token in ids):
        raise InvalidRequest(
            f"Invalid value for '{param}': this model's token ids are 0 to {model.tokenizer.size - 1}.", param=param
        )


def read_extensions(
    request: wire.GeneratingRequest, model: ServedModel, temperature: float | None, top_p: float | None
) -> Sampling:
    """Parameters of all endpoints. Raises InvalidRequest."""
    own_stops = tuple(request.stop_token_ids or ())
    check_ids(own_stops, model, "stop_token_ids")
    ignore_end = bool(request.ignore_eos)
    return Sampling(
        temperature=model.checkpoint.default_temperature if temperature is None else temperature,
        top_p=model.checkpoint.default_top_p if top_p is None else top_p,
        stop=() if ignore_end else model.stop_texts,
        stop_token_ids=own_stops if ignore_end else (*model.stop_token_ids, *own_stops),
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        min_tokens=request.min_tokens or 0,
        ignore_eos=ignore_end,
        skip_special_tokens=request.skip_special_tokens is not False,
    )


def read_sampling(request: wire.SamplingRequest, model: ServedModel) -> Sampling:
    """Parameters of chat and text completions. Raises InvalidRequest."""
    sampling = read_extensions(request, model, request.temperature, request.top_p)
    stops = () if request.stop is None else (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    return replace(
        sampling,
        stop=stops + sampling.stop,
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=read_bias(request.logit_bias or {}, model),
    )


def read_bias(biases: dict[str, float], model: ServedModel) -> tuple[tuple[int, float], ...]:
    if not all(token.isdecimal() and len(token) < 10 for token in biases):
        raise InvalidRequest("Invalid value for 'logit_bias': its keys are token ids.", param="logit_bias")
    found = {int(token): bias for token, bias in biases.items()}
    check_ids(found, model, "logit_bias")
    return tuple(found.items())


def with_grammar(sampling: Sampling, grammar: str, model: ServedModel, texts_too: bool) -> Sampling:
    """Keep the answer to ``grammar``, which defines its end.

    ``texts_too``: the grammar allows free text, which ends as usual. A family's stop text, such as ``###``, may occur
    in JSON. Raises InvalidRequest for parameters that forbid the end.
    """
    for name, given in (("min_tokens", sampling.min_tokens), ("ignore_eos", sampling.ignore_eos)):
        if given:
            raise InvalidRequest(
                f"{name} cannot be combined with response_format or tools: their answer ends when it is complete.",
                param=name,
            )
    stops = sampling.stop if texts_too else tuple(text for text in sampling.stop if text not in model.stop_texts)
    return replace(sampling, grammar=grammar, stop=stops)


def check_stream_options(stream: bool | None, options: object) -> None:
    """Raises InvalidRequest for options of a stream that was not asked for."""
    if options is not None and not stream:
        raise InvalidRequest("stream_options is only for requests with stream: true.", param="stream_options")


def choices_of(n: int | None, most: int) -> int:
    """Raises InvalidRequest for more than the server allows."""
    if n is not None and n > most:
        raise InvalidRequest(f"n may be up to {most} on this server.", param="n")
    return n or 1
