"""Fields that several generating endpoints share."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.protocol.wire import JSON_PATHS, RequestObject

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
LOGIT_BIASES = 1024


class GeneratingRequest(RequestObject):
    """Extensions have the names of vLLM's server; the openai client sends them as ``extra_body``."""

    model: str
    """A name of ``GET /v1/models``."""
    stream: bool | None = None
    """Send the answer as Server-Sent Events while it is generated."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the most likely token each time; default: the checkpoint's generation_config.json."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability."""
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
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers is not offered."""


class StreamOptions(ResponseStreamOptions):
    include_usage: bool | None = None
    """Send one more chunk before ``[DONE]``, with empty choices and the token counts."""


class SamplingRequest(GeneratingRequest):
    """Fields of chat and text completions."""

    stream_options: StreamOptions | None = None
    """Only for streams."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens that are already in the answer become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens become less likely each time they occur in the answer."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=LOGIT_BIASES)
    """Token id -> a number from -100 to 100 that is added to its logit."""
    stop: Annotated[Stop | Annotated[list[Stop], Field(max_length=4)], JSON_PATHS] | None = None
    """Up to four texts that end the answer; they are not part of it."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Equal requests with the same seed are sampled alike."""
    n: int | None = Field(None, ge=1)
    """Number of answers to one prompt, up to the server's --max-choices."""
    user: str | None = None
    """Accepted and not used."""
