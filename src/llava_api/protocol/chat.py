"""``POST /v1/chat/completions``: the request."""

from typing import Annotated, ClassVar, Literal

from pydantic import FailFast, Field

from llava_api.protocol.formats import ResponseFormat
from llava_api.protocol.messages import Message
from llava_api.protocol.refused import NOT_LLAVA, OLD_TOOLS, VLLM
from llava_api.protocol.sampling import Sampling
from llava_api.protocol.tools import MAX_TOOLS, FunctionTool, ToolChoice
from llava_api.protocol.wire import Given

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]


class StreamOptions(Given):
    include_usage: bool | None = None
    """Send one more chunk before ``[DONE]``, with empty choices and the token counts."""
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers is not offered."""


class ChatCompletionRequest(Sampling):
    refused: ClassVar = {
        **NOT_LLAVA,
        **OLD_TOOLS,
        **VLLM,
        "max_output_tokens": "max_output_tokens is called max_completion_tokens here.",
        "max_new_tokens": "max_new_tokens is called max_completion_tokens here.",
        "prompt": "prompt belongs to /v1/completions; here it is messages.",
        "input": "input belongs to /v1/responses; here it is messages.",
        "echo": "echo belongs to /v1/completions; to continue an answer, send it as the last message with "
        "continue_final_message.",
        "best_of": "best_of is not offered: send n, and choose among the answers.",
        "store": "This server stores no chat completions: leave store out, or send false.",
    }

    model: str
    """A name of ``GET /v1/models``."""
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    """Older name of ``max_completion_tokens``."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer; default: what room the context leaves."""
    logprobs: bool | None = None
    """Send each token's log-probability."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """So many of the likeliest tokens at each place; needs ``logprobs``."""
    response_format: ResponseFormat | None = None
    """json_schema: the answer fits the schema, whatever the model would rather say."""
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; they are described to it in the system text."""
    tool_choice: ToolChoice | None = None
    """none, auto (the default), required, one function, or a choice of them (allowed_tools)."""
    parallel_tool_calls: bool | None = None
    """Let it make several calls in one answer; default true."""
    stream: bool | None = None
    """Send the answer as Server-Sent Events while it is made."""
    stream_options: StreamOptions | None = None
    """For streams only."""
    modalities: list[Literal["text"]] | None = Field(None, max_length=1)
    """LLaVA answers with text."""
    service_tier: ServiceTier | None = None
    """Accepted; every request is served as ``default``, which the reply says."""
    user: str | None = None
    """Accepted and not used."""
    safety_identifier: str | None = None
    """Accepted and not used."""
    prompt_cache_key: str | None = None
    """Accepted and not used: equal beginnings are found without it."""
    metadata: Metadata | None = None
    """Accepted and not used: nothing is stored."""
    continue_final_message: bool | None = None
    """Continue the last message, an assistant's, instead of answering it. An extension, as vLLM has it."""
    add_generation_prompt: bool | None = None
    """vLLM's clients send false with ``continue_final_message``; otherwise it must be true. An extension."""
