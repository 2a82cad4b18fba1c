"""Sampling fields of requests -> checked sampling parameters."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llava_api.chat.model import ServedModel
from llava_api.engine.base import Sampling
from llava_api.errors import ErrorCode, InvalidRequest
from llava_api.limits.account import Account
from llava_api.protocol import sampling as wire

MAX_TEMPERATURE = 2
"""vLLM takes no more. Front ends for role play send up to 5, with which answers are noise as well."""


@dataclass(frozen=True, slots=True)
class Length:
    """An upper bound on the answer's length, and the names of the request's fields for it and for the prompt."""

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
    """The number of tokens that the answer may have. Raises InvalidRequest, before any image is decoded."""
    asked = length.max_tokens
    room = max_model_len - text_tokens - image_tokens
    if room < 1:
        raise context_length_exceeded(
            max_model_len,
            length.prompt_param,
            f"{text_tokens + image_tokens} tokens ({text_tokens} of text and {image_tokens} of images)",
        )
    room = min(room, asked or length.most or room)
    if sampling.min_tokens > room:
        raise InvalidRequest(f"min_tokens is more than the {room} tokens of the answer.", param="min_tokens")
    return room


def context_length_exceeded(max_model_len: int, param: str, amount: str) -> InvalidRequest:
    """In OpenAI's and vLLM's words: LiteLLM, LangChain and other clients look for them."""
    return InvalidRequest(
        f"This model's maximum context length is {max_model_len} tokens. However, your {param} resulted in {amount}. "
        f"Reduce the length of the {param}.",
        param=param,
        code=ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    )


def upper_bound(max_tokens: int | None) -> int | None:
    """None for as many as fit, which 0 and the negative numbers of llama.cpp and Ollama ask for too."""
    return max_tokens if max_tokens and max_tokens > 0 else None


def check_ids(ids: Iterable[int], model: ServedModel, param: str) -> None:
    """Raises InvalidRequest for a token that the model does not have."""
    unknown = next((token for token in ids if not 0 <= token < model.tokenizer.size), None)
    if unknown is not None:
        raise InvalidRequest(
            f"Invalid value for '{param}': {unknown} is no token id of this model, which has 0 to "
            f"{model.tokenizer.size - 1}.",
            param=param,
        )


def read_extensions(request: wire.GeneratingRequest, model: ServedModel) -> Sampling:
    """Parameters of all endpoints. Raises InvalidRequest."""
    own_stops = tuple(request.stop_token_ids or ())
    check_ids(own_stops, model, "stop_token_ids")
    ignore_end = bool(request.ignore_eos)
    temperature, top_p = request.temperature, request.top_p
    if temperature is None:
        temperature = model.checkpoint.default_temperature
    return Sampling(
        # The most likely tokens that have no probability together: the most likely one, as in llama.cpp's server.
        temperature=0 if top_p == 0 else min(temperature, MAX_TEMPERATURE),
        top_p=top_p or (model.checkpoint.default_top_p if top_p is None else 1),
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
    """Parameters of OpenAI's endpoints. Raises InvalidRequest."""
    sampling = read_extensions(request, model)
    stops = () if request.stop is None else (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    return replace(
        sampling,
        stop=tuple(text for text in stops if text) + sampling.stop,
        seed=request.seed,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=read_bias(request.logit_bias or {}, model),
    )


def prompt_logprobs_of(request: wire.ChoicesRequest) -> int | None:
    """Raises InvalidRequest."""
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs are not sent in a stream: leave stream out.", param="prompt_logprobs")
    return request.prompt_logprobs


def read_bias(biases: dict[str, float], model: ServedModel) -> tuple[tuple[int, float], ...]:
    wrong = next((token for token in biases if not (token.isdecimal() and len(token) < 10)), None)
    if wrong is not None:
        raise InvalidRequest(
            f"Invalid value for 'logit_bias': its keys are token ids, and {wrong[:64]!r} is none.", param="logit_bias"
        )
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
                f"{name} cannot be combined with a form of the answer or with tools: such an answer ends when it is "
                "complete.",
                param=name,
            )
    stops = sampling.stop if texts_too else tuple(text for text in sampling.stop if text not in model.stop_texts)
    return replace(sampling, grammar=grammar, stop=stops)


def choices_of(n: int | None, most: int) -> int:
    """Raises InvalidRequest for more than the server allows."""
    if n is not None and n > most:
        raise InvalidRequest(f"n may be up to {most} on this server.", param="n")
    return n or 1
