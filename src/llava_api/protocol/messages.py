"""Messages of ``/v1/chat/completions``."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from llava_api.protocol.parts import AssistantPart, TextPart, UserPart
from llava_api.protocol.refused import OLD_TOOLS
from llava_api.protocol.tools import ToolCall
from llava_api.protocol.wire import Given, Unused

MAX_PARTS = 2_000


class BaseMessage(Given):
    """What is said in each role."""

    @field_validator("content", "output", mode="before", check_fields=False)
    @classmethod
    def few_parts(cls, content: object) -> object:
        """Before each part is looked at: a body has room for a million wrong ones."""
        if isinstance(content, list) and len(content) > MAX_PARTS:
            raise ValueError(f"a message may have up to {MAX_PARTS} parts")
        return content


class SystemMessage(BaseMessage):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    """Accepted and not shown to the model."""


class UserMessage(BaseMessage):
    role: Literal["user"]
    content: str | Annotated[list[UserPart], Field(fail_fast=True)]
    name: str | None = None
    """Accepted and not shown to the model."""


class AssistantMessage(BaseMessage):
    # What OpenAI's own replies carry, so that a reply can be sent back as it came.
    refused: ClassVar = {
        "annotations": "LLaVA reads no annotations: leave them out.",
        "audio": "LLaVA neither hears nor speaks: leave audio out.",
        "function_call": OLD_TOOLS["function_call"],
    }
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    """Accepted and not shown to the model."""
    refusal: str | None = None
    """What the model said where it refused; shown to it like any other answer."""
    tool_calls: list[ToolCall] | None = Field(None, max_length=128, fail_fast=True)
    """Calls that the model made."""
    parsed: Unused = None
    """What the openai client made of the content; accepted and not used."""


class ToolMessage(BaseMessage):
    role: Literal["tool"]
    content: str | Annotated[list[UserPart], Field(fail_fast=True)]
    """What the function returned; pictures in it are an extension."""
    tool_call_id: str
    """The call that it answers: an id of the tool_calls before it."""
    name: str | None = None
    """Accepted; the function's name is known from the call."""


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
