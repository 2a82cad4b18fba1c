"""``POST /api/chat``, ``/api/generate`` and ``/api/show``: the requests, as in Ollama's API."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, FailFast, Field

from llava_api.protocol.refused import FORM_FIELDS, sentences
from llava_api.protocol.sampling import MAX_STOPS, MaxTokens, StopText
from llava_api.protocol.tools import MAX_TOOLS, Arguments, Function, has_instead
from llava_api.protocol.wire import JSON_PATHS, Ignored, RequestObject, written_as

MAX_CALLS = 128


class OllamaOptions(RequestObject):
    """Defaults are the checkpoint's, not Ollama's. Options for loading a model, such as num_ctx, are ignored."""

    temperature: float | None = Field(None, ge=0)
    """0 takes the most likely token each time; more than 2 is read as 2."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Sample from the most likely tokens that together have this probability; 0 takes the most likely token."""
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Sample from this number of most likely tokens; 0 and -1: from all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Leave out tokens less likely than this share of the most likely one's probability."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Equal requests with the same seed are sampled alike; -1: no seed."""
    num_predict: MaxTokens | None = None
    """Most tokens of the answer; 0, -1 and -2: all that are left in the context."""
    stop: Annotated[StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)], JSON_PATHS] | None = None
    """Texts that end the answer; they are not part of it."""
    repeat_penalty: float | None = Field(None, ge=0.01, le=10)
    """Above 1: tokens of the prompt and the answer become less likely."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens that are already in the answer become less likely."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0: tokens become less likely each time they occur in the answer."""


class OllamaRequest(RequestObject):
    image_place: ClassVar = "as a list in images"
    refused: ClassVar = {
        **sentences(("{} belongs to vLLM's server: send format instead.", FORM_FIELDS)),
        "template": "This server writes prompts as the checkpoint was trained: leave template out.",
    }

    model: str = ""
    """A name of ``GET /api/tags``, with or without ``:latest``. With ``--any-model`` it may be another, or missing."""
    stream: bool = True
    """Send the answer as lines of JSON while it is generated."""
    format: Annotated[
        Literal["json"] | dict[str, Any] | None,
        JSON_PATHS,
        written_as('"json" or a JSON Schema', lambda given: not isinstance(given, dict) and given not in ("", "json")),
        BeforeValidator(lambda given: given or None),
    ] = None
    """json: the answer is any JSON object; a JSON Schema: the answer fits it."""
    options: OllamaOptions | None = None
    keep_alive: float | str | None = None
    """Accepted; the model stays loaded. With 0 and nothing to answer, the reply says unload, as Ollama's does."""
    logprobs: bool | None = None
    """Send each token's log-probability."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Send this number of most likely tokens at each position; needs ``logprobs``."""
    think: Ignored = None
    """Accepted and not used: LLaVA does not reason before it answers."""


class OllamaCalledFunction(RequestObject):
    name: str
    arguments: Arguments = "{}"
    """An object, or its JSON."""
    index: Ignored = None
    """Accepted and not used."""


class OllamaToolCall(RequestObject):
    function: OllamaCalledFunction
    id: str | None = None
    """For ``tool_call_id`` of the result."""
    type: Ignored = None
    """Accepted and not used."""


class OllamaMessage(RequestObject):
    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[
        str, written_as("a text, with the message's images in its field images", lambda given: isinstance(given, list))
    ] = ""
    images: list[str] | None = None
    """In base64, or as a ``data:``, http or https URL."""
    tool_calls: list[OllamaToolCall] | None = Field(None, max_length=MAX_CALLS, fail_fast=True)
    """Calls that the model made."""
    tool_name: str | None = None
    """The function whose result this is; default: the first that was called and has no result yet."""
    tool_call_id: str | None = None
    """The call whose result this is, instead of ``tool_name``."""
    thinking: Ignored = None
    """Accepted and not shown to the model."""


class OllamaTool(RequestObject):
    function: Function
    type: Ignored = None
    """Accepted and not used: every tool is a function."""


GivenOllamaTool = Annotated[
    OllamaTool,
    written_as(
        '{"type": "function", "function": {"name": ..., "parameters": {...}}}',
        lambda tool: has_instead("function", tool, "name", "input_schema"),
    ),
]


class OllamaChatRequest(OllamaRequest):
    messages: Annotated[list[OllamaMessage], FailFast()] = Field(default_factory=list)
    """If an assistant's message is the last, the model continues it. Without messages the answer is empty, and says
    that the model is loaded."""
    tools: list[GivenOllamaTool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    """Functions that the model may call; the system text describes them to it."""


class OllamaGenerateRequest(OllamaRequest):
    refused: ClassVar = {
        **OllamaRequest.refused,
        "context": "This server keeps no context: send the earlier messages to /api/chat.",
        "raw": "This server writes prompts as the checkpoint was trained: leave raw out, or use /v1/completions.",
        "suffix": "LLaVA cannot fill in the middle of a text: leave suffix out.",
    }

    prompt: str = ""
    """Without prompt and images the answer is empty, and says that the model is loaded."""
    images: list[str] | None = None
    """In base64, or as a ``data:``, http or https URL."""
    system: str | None = None


class OllamaShowRequest(RequestObject):
    model: str = ""
    """A name of ``GET /api/tags``, with or without ``:latest``."""
    name: str = ""
    """Older name of ``model``."""
    verbose: Ignored = None
    """Accepted and not used."""
