"""``POST /v1/chat/completions``: request, reply and chunk."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator


class Wire(BaseModel):
    """Strict about types and names: what this server cannot do is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


MAX_PARTS = 2_000
Detail = Literal["auto", "low", "high"]


class TextPart(Wire):
    type: Literal["text"]
    text: str


class ImageUrl(Wire):
    url: str
    """A ``data:`` URL with the picture in base64, an http or https URL, or, where the server allows it, ``file://``."""
    detail: Detail | None = None
    """low: on LLaVA-1.6 the base tile alone; auto and high: its whole tile grid. No difference on LLaVA-1.5."""


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl | str
    """A bare string is its URL; OpenAI's API wants the object, many clients send the string."""


class InputImagePart(Wire):
    """A picture as the Responses API writes it; clients send it here too."""

    type: Literal["input_image"]
    image_url: str
    detail: Detail | None = None


class InputTextPart(Wire):
    """A text as the Responses API writes it."""

    type: Literal["input_text"]
    text: str


ContentPart = Annotated[TextPart | ImagePart | InputTextPart | InputImagePart, Field(discriminator="type")]


class BaseMessage(Wire):
    """What is said in each role."""

    @field_validator("content", mode="before", check_fields=False)
    @classmethod
    def few_parts(cls, content: object) -> object:
        """Before each part is looked at: a body has room for a million wrong ones."""
        if isinstance(content, list) and len(content) > MAX_PARTS:
            raise ValueError(f"a message may have up to {MAX_PARTS} parts")
        return content


class SystemMessage(BaseMessage):
    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(BaseMessage):
    role: Literal["user"]
    content: str | list[ContentPart]
    name: str | None = None


class AssistantMessage(BaseMessage):
    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Wire):
    include_usage: bool | None = None
    """Send one more chunk before ``[DONE]``, with empty choices and the token counts."""


class ChatCompletionRequest(Wire):
    model: str
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    """Older name of ``max_completion_tokens``."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens of the answer; default: what room the context leaves."""
    stop: str | list[str] | None = None
    """Up to four texts that end the answer; they are not part of it."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1)
    """One answer a request."""
    user: str | None = None
    """Accepted and not used."""


class PromptTokensDetails(Wire):
    cached_tokens: int
    image_tokens: int


class Usage(Wire):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ReplyMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class Choice(Wire):
    index: int = 0
    message: ReplyMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Unix seconds."""
    model: str
    choices: list[Choice]
    usage: Usage


class DeltaMessage(Wire):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Wire):
    index: int = 0
    delta: DeltaMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatCompletionChunk(Wire):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
