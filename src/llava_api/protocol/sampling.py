"""How the answer's tokens are chosen: the fields that several endpoints share."""

from typing import Annotated

from pydantic import Field

from llava_api.protocol.wire import JSON_PATHS, Given

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
LOGIT_BIASES = 1024


class Extensions(Given):
    """Fields of vLLM's server beyond OpenAI's, under vLLM's names; the openai client sends them as ``extra_body``."""

    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Sample from so many of the likeliest tokens; 0 and -1: from all. An extension, as vLLM has it."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Leave out tokens less likely than this share of the likeliest one's probability. An extension."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    """Above 1: tokens of the prompt and of the answer become less likely. An extension."""
    min_tokens: int | None = Field(None, ge=0)
    """Tokens before the answer may end. An extension."""
    ignore_eos: bool | None = None
    """Go on behind the end of the answer, up to max_tokens: for load tests. An extension."""
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    """Tokens that end the answer, besides the model's own. An extension."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the answer's text; default true. An extension."""


class Sampling(Extensions):
    """What chat and text completions share of OpenAI's API."""

    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token each time; default: as the checkpoint's generation_config.json says."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens that are in the answer already become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens become less likely each time they occur in the answer."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=LOGIT_BIASES)
    """Token id -> what is added to its logit, -100 to 100."""
    stop: Annotated[Stop | Annotated[list[Stop], Field(max_length=4)], JSON_PATHS] | None = None
    """Up to four texts that end the answer; they are not part of it."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The same request with the same seed is sampled alike."""
    n: int | None = Field(None, ge=1)
    """Answers to one prompt, up to what the server allows (--max-choices)."""
