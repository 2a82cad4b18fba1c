"""``POST /v1/chat/completions``: the request."""

from typing import Annotated, ClassVar, Literal

from pydantic import FailFast, Field

from llava_api.protocol.formats import ResponseFormat
from llava_api.protocol.messages import Message
from llava_api.protocol.refused import NOT_LLAVA, OLD_TOOLS, VLLM, VLLM_IGNORED, WITHOUT_EFFECT
from llava_api.protocol.sampling import ChoicesRequest, MaxTokens
from llava_api.protocol.tools import MAX_TOOLS, GivenTool, ToolChoice
from llava_api.protocol.wire import Ignored

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class ChatCompletionRequest(ChoicesRequest):
    refused: ClassVar = {
        **NOT_LLAVA,
        **OLD_TOOLS,
        **VLLM,
        "prompt": "prompt belongs to /v1/completions: send messages here.",
        "input": "input belongs to /v1/responses: send messages here.",
        "echo": "echo belongs to /v1/completions: leave it out here.",
        "best_of": "best_of is not supported: send n, and choose among the answers.",
    }
    ignored: ClassVar = {
        **WITHOUT_EFFECT,
        **VLLM_IGNORED,
        "max_output_tokens": "max_output_tokens is called max_completion_tokens here.",
        "max_new_tokens": "max_new_tokens is called max_completion_tokens here.",
        "store": "This server stores no chat completions: leave store out, or send false.",
    }

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_tokens: MaxTokens | None = None
    """Older name of ``max_completion_tokens``; of two numbers the smaller holds."""
    max_completion_tokens: MaxTokens | None = None
    """Most tokens of the answer; more than fit into the context, 0, -1, -2 and the default: as many as fit."""
    logprobs: bool | None = None
    """Send each token's log-probability."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Send this number of most likely tokens at each position; needs ``logprobs``."""
    response_format: ResponseFormat | None = None
    """json_schema: the answer always fits the schema."""
    tools: list[GivenTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; the system text describes them to it."""
    tool_choice: ToolChoice | None = None
    """none, auto (the default), required, one function, or some of them (allowed_tools)."""
    parallel_tool_calls: bool | None = None
    """Allow several calls in one answer; default true."""
    modalities: list[Literal["text"]] | None = Field(None, max_length=1)
    """LLaVA answers with text."""
    service_tier: Ignored = None
    """Accepted; every request is served as ``default``, and the reply says so."""
    safety_identifier: Ignored = None
    """Accepted and not used."""
    prompt_cache_key: Ignored = None
    """Accepted and not used: prompts with the same beginning are found without it."""
    metadata: Ignored = None
    """Accepted and not used: nothing is stored."""
    continue_final_message: bool | None = None
    """true: continue the last message, an assistant's; false: answer it. Default: true, unless the answer must be JSON
    or a call. An extension, as vLLM has it."""
    add_generation_prompt: bool | None = None
    """false: continue an assistant's last message, and leave out the assistant's header after a user's. An extension,
    as vLLM has it."""
