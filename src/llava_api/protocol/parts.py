"""Content parts of messages: text and pictures."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llava_api.protocol.wire import Given

Detail = Literal["auto", "low", "high"]


class TextPart(Given):
    type: Literal["text"]
    text: str


class ImageUrl(Given):
    url: str
    """A ``data:`` URL with the picture in base64, an http or https URL, or, where the server allows it, ``file://``."""
    detail: Detail | None = None
    """low: on LLaVA-1.6 the base tile alone; auto and high: its whole tile grid. No difference on LLaVA-1.5."""


class ImagePart(Given):
    type: Literal["image_url"]
    image_url: ImageUrl | str
    """A bare string is its URL; OpenAI's API wants the object, many clients send the string."""


class InputTextPart(Given):
    """A text as the Responses API writes it."""

    type: Literal["input_text"]
    text: str


class InputImagePart(Given):
    """A picture as the Responses API writes it; clients send it to chat too."""

    refused: ClassVar = {"file_id": "No files are stored here: send the picture itself, as image_url."}
    type: Literal["input_image"]
    image_url: str
    """A ``data:`` URL with the picture in base64, an http or https URL, or, where the server allows it, ``file://``."""
    detail: Detail | None = None
    """low: on LLaVA-1.6 the base tile alone; auto and high: its whole tile grid. No difference on LLaVA-1.5."""


class RefusalPart(Given):
    type: Literal["refusal"]
    refusal: str


UserPart = Annotated[TextPart | ImagePart | InputTextPart | InputImagePart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
