"""Fields that several generating endpoints share."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from llava_api.protocol.formats import ChoiceTexts, Regex, SchemaOrText, StructuredOutputs
from llava_api.protocol.wire import JSON_PATHS, Ignored, PhpObject, RequestObject

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
StopText = Annotated[str, Field(max_length=256)]
Stop = Annotated[StopText, Field(min_length=1)]
MaxTokens = Annotated[int, Field(ge=-2)]
"""0 and the negative numbers of llama.cpp and Ollama ask for as many as fit."""
LOGIT_BIASES = 1024
MAX_STOPS = 64
"""OpenAI allows 4, but front ends for role play send one for each name of a scene."""


def none_for_false(value: object) -> object:
    """False asks for no log-probabilities, but 0 for those of the tokens themselves."""
    return None if value is False else value


class GeneratingRequest(RequestObject):
    """Extensions have the names of vLLM's server; the openai client sends them as ``extra_body``."""

    model: str = ""
    """A name of ``GET /v1/models``. With ``--any-model`` it may be another, or missing."""
    stream: bool | None = None
    """Send the answer as Server-Sent Events while it is generated."""
    temperature: float | None = Field(None, ge=0)
    """0 takes the most likely token each time; more than 2 is read as 2; default: the checkpoint's
    generation_config.json."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Sample from the most likely tokens that together have this probability; 0: take the most likely one."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Sample from this number of most likely tokens; 0 and -1: from all. An extension, as vLLM has it."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Leave out tokens less likely than this share of the most likely one's probability. An extension."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    """Above 1: tokens of the prompt and the answer become less likely. An extension."""
    min_tokens: int | None = Field(None, ge=0)
    """Fewest tokens before the answer may end. An extension."""
    ignore_eos: bool | None = None
    """Go on after the end of the answer, up to max_tokens: for load tests. An extension."""
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    """Tokens that end the answer, besides the model's own. An extension."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the answer's text; default true. An extension."""


class ResponseStreamOptions(RequestObject):
    include_obfuscation: Ignored = None
    """Accepted and not used: events are not padded."""


class StreamOptions(ResponseStreamOptions):
    include_usage: bool | None = None
    """Send one more chunk before ``[DONE]``, with empty choices and the token counts."""
    continuous_usage_stats: bool | None = None
    """Send the token counts so far in every chunk. An extension, as vLLM has it."""


class SamplingRequest(GeneratingRequest):
    """Fields of OpenAI's endpoints. On Responses they are extensions, as vLLM has them."""

    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens that are already in the answer become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens become less likely each time they occur in the answer."""
    logit_bias: (
        PhpObject[Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=LOGIT_BIASES)]] | None
    ) = None
    """Token id -> a number from -100 to 100 that is added to its logit."""
    stop: Annotated[StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)], JSON_PATHS] | None = None
    """Texts that end the answer; they are not part of it. Empty ones have no effect."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Equal requests with the same seed are sampled alike."""


class ChoicesRequest(SamplingRequest):
    """Fields of chat and text completions, whose answers may have several choices."""

    stream_options: StreamOptions | None = None
    """Has no effect without ``stream``."""
    n: int | None = Field(None, ge=1)
    """Number of answers to one prompt, up to the server's --max-choices."""
    structured_outputs: StructuredOutputs | None = None
    """A form for the answer. An extension, as vLLM has it."""
    guided_choice: ChoiceTexts | None = None
    """Older name of ``structured_outputs.choice``. An extension."""
    guided_regex: Regex | None = None
    """Older name of ``structured_outputs.regex``. An extension."""
    guided_json: SchemaOrText | None = None
    """Older name of ``structured_outputs.json``. An extension."""
    prompt_logprobs: Annotated[int | None, BeforeValidator(none_for_false)] = Field(None, ge=0, le=20)
    """Send the log-probabilities of the prompt's tokens, and this number of most likely tokens at each position. Not
    with ``stream``. An extension, as vLLM has it."""
    return_token_ids: bool | None = None
    """Send the token ids of the prompt and of the answers; in a stream, all of an answer's come with its
    ``finish_reason``. An extension, as vLLM has it."""
    user: Ignored = None
    """Accepted and not used."""
