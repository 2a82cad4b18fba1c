"""Replies of ``/api/...``, lines of their streams and errors, as in Ollama's API. Durations are in nanoseconds."""

from typing import Any, Literal, Self

from pydantic import Field

from llava_api.errors import ApiError
from llava_api.protocol.chat_reply import TokenLogprob
from llava_api.protocol.wire import ErrorShape, WireObject, is_none


class OllamaErrorReply(ErrorShape):
    error: str
    """What is wrong and what to do."""

    @classmethod
    def of(cls, error: ApiError, request_id: str) -> Self:
        return cls(error=error.message)


class OllamaReplyFunction(WireObject):
    index: int
    """Number of the call in the answer, from 0."""
    name: str
    arguments: dict[str, Any]


class OllamaReplyToolCall(WireObject):
    id: str
    function: OllamaReplyFunction


class OllamaReplyMessage(WireObject):
    role: Literal["assistant"] = "assistant"
    content: str
    """In a stream, the next piece of the answer."""
    tool_calls: list[OllamaReplyToolCall] | None = Field(default=None, exclude_if=is_none)


class OllamaReplyBase(WireObject):
    """A whole answer, or a line of a stream. The last line has an empty text and the counts."""

    model: str
    """As in the request, if it is a served name."""
    created_at: str
    """Time of this line."""
    done: bool = False
    done_reason: Literal["stop", "length", "load", "unload"] | None = Field(default=None, exclude_if=is_none)
    """length: the answer was cut; load and unload: nothing was asked. This and all below only in the last line."""
    total_duration: int | None = Field(default=None, exclude_if=is_none)
    load_duration: int | None = Field(default=None, exclude_if=is_none)
    """Always 0: the model is loaded when the server starts."""
    prompt_eval_count: int | None = Field(default=None, exclude_if=is_none)
    """Tokens of the prompt, images included."""
    prompt_eval_duration: int | None = Field(default=None, exclude_if=is_none)
    eval_count: int | None = Field(default=None, exclude_if=is_none)
    """Tokens of the answer."""
    eval_duration: int | None = Field(default=None, exclude_if=is_none)
    logprobs: list[TokenLogprob] | None = Field(default=None, exclude_if=is_none)
    """In every line of the answer, if asked for."""


class OllamaChatReply(OllamaReplyBase):
    message: OllamaReplyMessage


class OllamaGenerateReply(OllamaReplyBase):
    response: str
    """In a stream, the next piece of the answer."""


class OllamaDetails(WireObject):
    parent_model: str = ""
    """For a LoRA adapter, the model that it changes."""
    format: Literal["safetensors"] = "safetensors"
    family: str
    """The language model's."""
    families: list[str]
    """clip in it stands for a model that sees images."""
    parameter_size: str
    """As Ollama writes it, 7.1B; empty if it is not known."""
    quantization_level: str


class OllamaModel(WireObject):
    name: str
    model: str
    """The same as ``name``."""
    modified_at: str
    """When this server started."""
    size: int
    """Bytes of the checkpoint's folder."""
    digest: str
    """Changes when the server's version, checkpoint or settings change."""
    details: OllamaDetails


class OllamaModelList(WireObject):
    models: list[OllamaModel]


class OllamaRunningModel(OllamaModel):
    expires_at: str
    """Far away: the model stays loaded."""
    size_vram: int
    context_length: int


class OllamaRunningList(WireObject):
    models: list[OllamaRunningModel]


class OllamaShownModel(WireObject):
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    details: OllamaDetails
    model_info: dict[str, str | int]
    capabilities: list[str]
    modified_at: str
    """When this server started."""


class OllamaVersion(WireObject):
    version: str
    """The version of Ollama whose API this is, because clients compare it with the one that they need."""
