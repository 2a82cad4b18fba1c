"""``POST /tokenize`` and ``/detokenize``, as vLLM's server has them."""

from typing import Annotated, ClassVar

from pydantic import Field

from llava_api.protocol.messages import Message
from llava_api.protocol.refused import VLLM
from llava_api.protocol.sampling import TokenId
from llava_api.protocol.tools import MAX_TOOLS, GivenTool, ToolChoice
from llava_api.protocol.wire import RequestObject, WireObject, is_none

MAX_TOKENS = 200_000


class TokenizeRequest(RequestObject):
    """A text, or messages as chat takes them."""

    refused: ClassVar = {name: VLLM[name] for name in ("chat_template", "media_io_kwargs", "mm_processor_kwargs")}

    model: str = ""
    """A name of ``GET /v1/models``. It may be missing: all of them have the same tokenizer."""
    prompt: str | None = None
    """What looks like a special token in it is ordinary text, as in ``/v1/completions``."""
    content: str | None = None
    """llama.cpp's name of ``prompt``; then BOS only comes with ``add_special: true``."""
    messages: list[Message] | None = Field(None, min_length=1, fail_fast=True)
    tools: list[GivenTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: ToolChoice | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    """With ``messages``, these have the same meaning as in chat."""
    add_special_tokens: bool | None = None
    """Put BOS before ``prompt``; default true. With ``messages`` it makes no difference."""
    add_special: bool | None = None
    """Put BOS before ``content``; default false."""
    return_token_strs: bool | None = None


class Tokenized(WireObject):
    count: int
    """With messages, the ``prompt_tokens`` of a chat completion."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    tokens: list[int]
    """Each image has its number of image tokens."""
    token_strs: list[str] | None = Field(default=None, exclude_if=is_none)
    """As the tokenizer writes them, with ``return_token_strs``."""


class DetokenizeRequest(RequestObject):
    model: str = ""
    """A name of ``GET /v1/models``. It may be missing: all of them have the same tokenizer."""
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]


class Detokenized(WireObject):
    prompt: str
    """The text, with the names of special tokens."""
