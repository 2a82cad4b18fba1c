"""Messages of ``/v1/chat/completions``, and the texts and images that they are made of."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from llava_api.protocol.tools import FunctionCall, ToolCall
from llava_api.protocol.wire import JSON_PATHS, Ignored, RequestObject, refused_field, written_as

MAX_PARTS = 2_000
Detail = Literal["auto", "low", "high"]
DETAILS = {"": None, "original": "high"}
"""Other values that clients send -> what they stand for."""
AnyDetail = Annotated[
    Detail | None,
    BeforeValidator(lambda given: DETAILS.get(given.lower(), given.lower()) if isinstance(given, str) else given),
]


class TextPart(RequestObject):
    type: Literal["text", "input_text", "output_text"]
    """input_text and output_text: the names of the Responses API."""
    text: str
    annotations: Ignored = None
    logprobs: Ignored = None
    parsed: Ignored = None
    """Accepted and not used: replies have them."""


class ImageUrl(RequestObject):
    url: str
    """A ``data:`` URL with the image in base64, an http or https URL, or, if the server allows it, ``file://``."""
    detail: AnyDetail = None
    """low: only the base tile of LLaVA-1.6; auto (the default), high and original: its whole tile grid. No difference
    on LLaVA-1.5."""


class ImagePart(RequestObject):
    type: Literal["image_url", "input_image"]
    """input_image: the name of the Responses API."""
    image_url: Annotated[ImageUrl | str, JSON_PATHS] | None = None
    """An object, as in chat, or only the URL, as in the Responses API and from many clients."""
    file_id: str | None = None
    """Instead of ``image_url``: the id of an uploaded image."""
    detail: AnyDetail = None
    """Place of ``image_url.detail`` in the Responses API."""

    @model_validator(mode="before")
    @classmethod
    def has_one_image(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("file_id") is not None:
            if data.get("image_url") is not None:
                raise refused_field("file_id", "Send either image_url or file_id.")
        elif isinstance(data, dict) and data.get("image_url") is None:
            missing: InitErrorDetails = {"type": "missing", "loc": ("image_url",), "input": None}
            raise ValidationError.from_exception_data("image_url", [missing])
        return data


class NamedFile(RequestObject):
    refused: ClassVar = {"file_data": "LLaVA reads images only: send an image as image_url, or upload it to /v1/files."}
    file_id: str
    """The id of an uploaded image."""
    filename: Ignored = None
    """Accepted and not used."""


class FilePart(RequestObject):
    """Chat's other name for an image that was uploaded."""

    type: Literal["file"]
    file: NamedFile


class RefusalPart(RequestObject):
    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[
    TextPart | ImagePart | FilePart | RefusalPart,
    Field(discriminator="type"),
    JSON_PATHS,
    written_as(
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}',
        lambda part: isinstance(part, dict) and part.get("type") == "image",
    ),
]
TYPES = {
    "image_url": "image_url",
    "source": "image",
    "inline_data": "image",
    "inlineData": "image",
    "refusal": "refusal",
    "tool_use_id": "tool_result",
    "input": "tool_use",
    "text": "text",
}
"""A field of a part -> the type of a part that has it, in OpenAI's or Anthropic's API; inline_data is Gemini's."""


def normalize_parts(content: object) -> object:
    """Parts that are texts, or objects without ``type``, as vLLM's server takes them.

    They are counted before each is validated, because a body has room for a million wrong ones.
    """
    if not isinstance(content, list):
        return content
    if len(content) > MAX_PARTS:
        raise ValueError(f"a message may have up to {MAX_PARTS} parts")
    return [with_type(part) for part in content]


def with_type(part: object) -> object:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    if part.get("text", "") is None:
        part = {**part, "text": ""}
    found = [kind for name, kind in TYPES.items() if part.get(name) is not None]
    return {**part, "type": found[0]} if len(found) == 1 and not part.get("type") else part


Part = TypeVar("Part", bound=RequestObject)
Content = Annotated[str | Annotated[list[Part], Field(fail_fast=True)], JSON_PATHS, BeforeValidator(normalize_parts)]
"""A text or a list of parts."""


class HasContent(RequestObject):
    """A message whose content may be null, for an empty text."""

    @model_validator(mode="before")
    @classmethod
    def null_is_empty(cls, data: Any) -> Any:
        return {**data, "content": ""} if isinstance(data, dict) and data.get("content", "") is None else data


class SystemMessage(HasContent):
    role: Literal["system", "developer"]
    content: Content[ContentPart]
    """Images in it are shown in a user's turn in its place."""
    name: Ignored = None
    """Accepted and not shown to the model."""


class UserMessage(HasContent):
    role: Literal["user"]
    content: Content[ContentPart]
    name: Ignored = None
    """Accepted and not shown to the model."""


class AssistantMessage(HasContent):
    # OpenAI's own replies have these fields, so that a reply can be sent back as it came.
    refused: ClassVar = {"audio": "LLaVA neither hears nor speaks: leave audio out."}
    ignored: ClassVar = {"annotations": "LLaVA reads no annotations: leave them out."}
    role: Literal["assistant"]
    content: Content[ContentPart] = ""
    name: Ignored = None
    """Accepted and not shown to the model."""
    refusal: str | None = None
    """What the model said when it refused; shown to the model like any other answer."""
    tool_calls: list[ToolCall] | None = Field(None, max_length=128, fail_fast=True)
    """Calls that the model made."""
    function_call: FunctionCall | None = None
    """Older form of ``tool_calls``."""
    parsed: Ignored = None
    """Accepted and not used: the openai client's parsed form of the content."""


class ToolMessage(HasContent):
    role: Literal["tool", "function"]
    """function: the older form."""
    content: Content[ContentPart] = ""
    """What the function returned; images in it are an extension."""
    tool_call_id: str | None = None
    """The call that it answers: an id of an earlier ``tool_calls``."""
    name: str | None = None
    """The function, if no call has that id; default: the first that was called and has no result yet."""


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role"), JSON_PATHS
]
